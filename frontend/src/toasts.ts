import { Notification } from '@jupyterlab/apputils';

import { Happening } from './happenings';

/** How long what needs nobody's attention is shown, in milliseconds. */
const SHORT = 10_000;

/** Tells people what happens to hosts: one toast for each outage, which says in the end that the host is back. */
export class Toasts {
  /** The toasts of hosts that are out of reach, by the host's name. */
  private outages = new Map<string, string>();

  /** Whether an outage is shown. */
  get any(): boolean {
    return this.outages.size > 0;
  }

  /** Take away the toasts of hosts that are not among the *silent* ones: their end was told while nobody listened. */
  compare(silent: Set<string>): void {
    for (const [host, shown] of this.outages) {
      if (!silent.has(host)) {
        this.outages.delete(host);
        Notification.dismiss(shown);
      }
    }
  }

  tell({ action, host, message }: Happening): void {
    const shown = this.outages.get(host);
    switch (action) {
      case 'out_of_reach':
        if (shown === undefined || !Notification.update({ id: shown, message })) {
          this.outages.set(host, Notification.warning(message, { autoClose: false }));
        }
        break;
      case 'back':
        this.outages.delete(host);
        if (shown === undefined || !Notification.update({ id: shown, message, type: 'success', autoClose: SHORT })) {
          Notification.success(message, { autoClose: SHORT }); // somebody has closed the first
        }
        break;
      case 'left':
        this.outages.delete(host);
        if (shown !== undefined) {
          Notification.update({ id: shown, message, type: 'info', autoClose: SHORT });
        }
        break;
      case 'moved':
        Notification.info(message, { autoClose: SHORT });
        break;
      default:
        Notification.error(message, { autoClose: false });
    }
  }
}
