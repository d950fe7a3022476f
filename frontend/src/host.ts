import { ISessionContext } from '@jupyterlab/apputils';
import { ServerConnection } from '@jupyterlab/services';
import { Widget } from '@lumino/widgets';

import { Distributed, Happening } from './happenings';

/** The host of a notebook's kernel, beside the kernel's name; nothing for a kernel that is not ours. */
export class HostItem extends Widget {
  /** Which question is the last: answers of earlier ones count no more. */
  private asked = 0;
  /** The kernel that was asked about last: one that is not ours is asked about once. */
  private known: string | undefined;
  /** Whether the kernel starts: where it is, is known once it runs. */
  private starts = false;

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
    if (status === 'starting' || status === 'restarting' || status === 'autorestarting') {
      this.starts = true;
    } else if (this.starts || this.known !== this.context.session?.kernel?.id) {
      this.starts = false;
      void this.look();
    }
  }

  async look(): Promise<void> {
    this.known = this.context.session?.kernel?.id;
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
    const silent = found.since !== undefined;
    const since = silent ? ` since ${new Date(found.since!).toLocaleTimeString()}` : '';
    this.node.dataset.host = found.host;
    this.node.dataset.state = silent ? 'silent' : 'there';
    // The first label of a name, and all of an address.
    this.node.textContent = (/^[\d.:]+$/.test(found.host) ? found.host : found.host.split('.')[0]) + (silent ? ' (out of reach)' : '');
    this.node.title = silent ? `${found.host} has not answered${since}; the kernel is kept` : `The kernel is on ${found.host}`;
    this.show();
  }
}
