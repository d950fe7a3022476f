import { ISessionContext } from '@jupyterlab/apputils';
import { ServerConnection } from '@jupyterlab/services';
import { Widget } from '@lumino/widgets';

import { Happening } from './happenings';

/** What `/api/kernels` says of a kernel of ours beside the rest. */
interface Distributed {
  host: string;
  state: string;
  since?: string;
}

/** The host of a notebook's kernel, beside the kernel's name; nothing for a kernel that is not ours. */
export class HostItem extends Widget {
  /** Which question is the last: answers of earlier ones count no more. */
  private asked = 0;

  constructor(
    private context: ISessionContext,
    private settings: ServerConnection.ISettings
  ) {
    super();
    this.addClass('jp-eg-distributed-host');
    this.hide();
    context.kernelChanged.connect(this.look, this);
    context.statusChanged.connect(this.changed, this);
    void this.look();
  }

  /** Look again if a *happening* is about this kernel, or its host. */
  heard(happening: Happening): void {
    const id = this.context.session?.kernel?.id;
    if (happening.host === this.node.dataset.host || (id !== undefined && happening.kernels.includes(id))) {
      void this.look();
    }
  }

  dispose(): void {
    if (!this.isDisposed) {
      this.context.kernelChanged.disconnect(this.look, this);
      this.context.statusChanged.disconnect(this.changed, this);
      super.dispose();
    }
  }

  private changed(_: ISessionContext, status: string): void {
    // Not with each cell: a kernel comes to another host by a start alone.
    if (status === 'starting' || status === 'restarting' || status === 'autorestarting' || this.node.dataset.host === undefined) {
      void this.look();
    }
  }

  private async look(): Promise<void> {
    const asked = ++this.asked;
    const found = await this.ask().catch(() => undefined); // a server that is away is told by JupyterLab itself
    if (asked === this.asked && !this.isDisposed) {
      this.draw(found);
    }
  }

  private async ask(): Promise<Distributed | undefined> {
    const id = this.context.session?.kernel?.id;
    if (id === undefined) {
      return undefined;
    }
    const url = `${this.settings.baseUrl}api/kernels/${encodeURIComponent(id)}`;
    const answer = await ServerConnection.makeRequest(url, {}, this.settings);
    return answer.ok ? (await answer.json()).distributed : undefined;
  }

  private draw(found: Distributed | undefined): void {
    if (found === undefined || typeof found.host !== 'string') {
      delete this.node.dataset.host;
      this.hide();
      return;
    }
    const silent = found.state === 'unknown';
    const since = found.since !== undefined ? ` since ${new Date(found.since).toLocaleTimeString()}` : '';
    this.node.dataset.host = found.host;
    this.node.dataset.state = found.state;
    // The first label of a name, and all of an address.
    this.node.textContent = (/^[\d.:]+$/.test(found.host) ? found.host : found.host.split('.')[0]) + (silent ? ' (out of reach)' : '');
    this.node.title = silent ? `${found.host} has not answered${since}; the kernel is kept` : `The kernel is on ${found.host}`;
    this.show();
  }
}
