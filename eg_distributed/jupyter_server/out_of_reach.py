"""What a Jupyter server says of a kernel whose host does not answer: by `/api/kernels`, to its culler, to who restarts it.

All of it hangs on the server's one mapping kernel manager, an object, and on its web application; no class of jupyter_server is
changed. An interrupt that cannot be done is refused by the provisioner, which is where it arrives in any case.
"""

from __future__ import annotations

import functools
import json
from typing import Any, Final

from jupyter_client.jsonutil import json_default
from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from jupyter_server.services.kernels.handlers import KernelActionHandler
from jupyter_server.utils import url_path_join
from tornado.web import HTTPError, authenticated

from eg_distributed.clients import out_of_reach, service, sessions

__all__ = ["begin"]

_RESTART: Final = r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)/(?P<action>restart)"
_STATES: Final = ("busy", "idle")
_GO_AWAY: Final = 1012
"""How websockets are closed: clients are to connect again."""


class RestartHandler(KernelActionHandler):
    """Answers a restart that failed with host, cause and remedy, where jupyter_server's says "Exception restarting kernel"."""

    @authenticated  # type: ignore[untyped-decorator, unused-ignore]
    @authorized  # type: ignore[untyped-decorator, unused-ignore]
    async def post(self, kernel_id: str, action: str) -> None:
        """Restart the kernel."""
        try:
            await self.kernel_manager.restart_kernel(kernel_id)
        except Exception as error:  # whatever it is, the client waits for a kernel that restarts
            await _have_clients_look_again(self.kernel_manager, kernel_id)
            if isinstance(error, HTTPError):
                raise
            raise HTTPError(500, "Exception restarting kernel") from error
        self.finish(json.dumps(await ensure_async(self.kernel_manager.kernel_model(kernel_id)), default=json_default))


async def _have_clients_look_again(kernels: Any, kernel_id: str) -> None:
    """Close the websockets of a kernel that was not restarted, so that its clients connect again, and lose nothing by it.

    Not where the kernel was ended and could not be started: what becomes of that its clients hear over these.

    JupyterLab shows "restarting" from its click on, and sends no cell, until it has connected anew (in part before 4.6); then it
    shows "unknown" until it is told the state, which a kernel whose host does not answer can't do itself.
    """
    manager = kernels._kernels.get(kernel_id)
    if manager is None or not await ensure_async(manager.is_alive()):
        return
    state = getattr(manager, "execution_state", None)
    for connection in sessions.of_kernel(kernel_id):
        if state in _STATES:
            service.tell_next(connection, "status", {"execution_state": state})
        connection.send_away(_GO_AWAY, "the kernel was not restarted")


def begin(app: Any) -> None:
    """Have *app*, a ServerApp, say what is known of hosts that do not answer; called before it serves HTTP."""
    kernels = app.kernel_manager
    if getattr(getattr(app, "gateway_config", None), "gateway_enabled", False):
        return  # its kernels are a gateway's
    kernel_model, cull_kernel_if_idle = kernels.kernel_model, kernels.cull_kernel_if_idle

    @functools.wraps(kernel_model)
    def model_with_host(kernel_id: str) -> Any:
        model: Any = kernel_model(kernel_id)
        watching = out_of_reach.watch()
        # A manager of somebody else's may answer with a coroutine.
        if isinstance(model, dict) and watching is not None and (said := watching.model(kernel_id)):
            model["distributed"] = said
        return model

    @functools.wraps(cull_kernel_if_idle)
    async def cull_unless_silent(kernel_id: str) -> None:
        # Of a kernel that cannot be heard nobody knows whether it is idle.
        if (watching := out_of_reach.watch()) is None or not watching.is_silent(kernel_id):
            await cull_kernel_if_idle(kernel_id)

    kernels.kernel_model, kernels.cull_kernel_if_idle = model_with_host, cull_unless_silent
    route = url_path_join(app.web_app.settings["base_url"], _RESTART)
    app.web_app.add_handlers(".*$", [(route, RestartHandler)])
