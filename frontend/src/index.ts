/**
 * What JupyterLab shows of hosts: the one of a notebook's kernel, and what happens to it. All of it is known to the server, and
 * everything works without us.
 */

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IToolbarWidgetRegistry } from '@jupyterlab/apputils';
import { NotebookPanel } from '@jupyterlab/notebook';
import { ServerConnection } from '@jupyterlab/services';

import { Distributed, Happening, happeningIn } from './happenings';
import { HostItem } from './host';
import { Toasts } from './toasts';

/** How often it is looked whether an outage that is shown still goes on, in milliseconds. */
const LOOK = 15_000;

/** Return the hosts that do not answer, by what the server says of its kernels. */
async function silentHosts(settings: ServerConnection.ISettings): Promise<Set<string>> {
  const answer = await ServerConnection.makeRequest(`${settings.baseUrl}api/kernels`, {}, settings);
  if (!answer.ok) {
    throw new ServerConnection.ResponseError(answer);
  }
  const models: { distributed?: Distributed }[] = await answer.json();
  const found = models.map(model => model.distributed).filter(said => said?.since !== undefined);
  return new Set(found.map(said => said!.host));
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'eg-distributed:plugin',
  description: 'Shows on which host a kernel is, and says when that host is out of reach.',
  autoStart: true,
  optional: [IToolbarWidgetRegistry],
  activate: (app: JupyterFrontEnd, toolbars: IToolbarWidgetRegistry | null) => {
    const toasts = new Toasts();
    const items = new Set<HostItem>();
    app.serviceManager.events.stream.connect((_, emission) => {
      const happening: Happening | null = happeningIn(emission);
      if (happening !== null) {
        toasts.tell(happening);
        items.forEach(item => item.heard(happening));
      }
    });
    // Events are differences, and none comes twice: a page that slept, or whose server was started again, has missed some.
    setInterval(() => {
      if (toasts.any) {
        silentHosts(app.serviceManager.serverSettings).then(
          silent => {
            toasts.compare(silent);
            items.forEach(item => void item.look());
          },
          () => undefined // a server that is away is told by JupyterLab itself
        );
      }
    }, LOOK);
    toolbars?.addFactory<NotebookPanel>('Notebook', 'eg-distributed-host', panel => {
      const item = new HostItem(panel.sessionContext, app.serviceManager.serverSettings);
      items.add(item);
      item.disposed.connect(() => items.delete(item));
      return item;
    });
  }
};

export default plugin;
