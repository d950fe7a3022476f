/**
 * What JupyterLab shows of hosts: the one of a notebook's kernel, and what happens to it. All of it is known to the server, and
 * everything works without us.
 */

import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { IToolbarWidgetRegistry } from '@jupyterlab/apputils';
import { NotebookPanel } from '@jupyterlab/notebook';

import { Happening, happeningIn } from './happenings';
import { HostItem } from './host';
import { Toasts } from './toasts';

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
    toolbars?.addFactory<NotebookPanel>('Notebook', 'eg-distributed-host', panel => {
      const item = new HostItem(panel.sessionContext, app.serviceManager.serverSettings);
      items.add(item);
      item.disposed.connect(() => items.delete(item));
      return item;
    });
  }
};

export default plugin;
