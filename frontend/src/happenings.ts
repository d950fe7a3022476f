/** What the server tells by Jupyter events: eg_distributed/jupyter_server/events.py has the schema. */

export const SCHEMA = 'https://eg-distributed.invalid/events/host/v1';

export interface Happening {
  action: 'out_of_reach' | 'back' | 'left' | 'moved' | 'lost' | 'restart_refused' | 'restart_failed';
  host: string;
  /** Ids of the kernels that it is about. */
  kernels: string[];
  /** What people are to read. */
  message: string;
}

const ACTIONS: readonly string[] = ['out_of_reach', 'back', 'left', 'moved', 'lost', 'restart_refused', 'restart_failed'];

/** Return what *emission*, any event of the server, says of a host; null if it is about something else, or not as we know it. */
export function happeningIn(emission: object): Happening | null {
  const found = emission as Partial<Happening> & { schema_id?: unknown };
  if (found.schema_id !== SCHEMA || !ACTIONS.includes(String(found.action))) {
    return null; // of a newer server, perhaps
  }
  const { action, host, kernels, message } = found;
  return typeof host === 'string' && typeof message === 'string' && Array.isArray(kernels)
    ? { action: action!, host, kernels: kernels.map(String), message }
    : null;
}

/** What `/api/kernels` says of a kernel of ours beside the rest. */
export interface Distributed {
  host: string;
  state: string;
  /** Since when its host has not answered; a host that answers has none. */
  since?: string;
}
