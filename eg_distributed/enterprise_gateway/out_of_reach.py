"""What Enterprise Gateway says of a kernel whose host does not answer: by `/api/kernels`, to its culler, to who interrupts it."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol, runtime_checkable

from enterprise_gateway.services.kernels.remotemanager import RemoteMappingKernelManager
from jupyter_server.base.zmqhandlers import deserialize_binary_message, deserialize_msg_from_ws_v1
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler
from tornado.web import HTTPError

from eg_distributed.clients.frames import Header
from eg_distributed.clients.out_of_reach import watch
from eg_distributed.errors import DistributedError

from .reconnects import connection_of

log = logging.getLogger(__name__)

_UNREACHABLE = 503


@runtime_checkable
class Signalled(Protocol):
    """The part of a process proxy that knows what became of its last signal."""

    def take_signalled(self) -> asyncio.Future[DistributedError | None] | None:
        """Return what becomes of the last signal, None if none was sent since the last call."""
        ...


def install() -> None:
    """Have Enterprise Gateway's kernel manager and websockets say what the watch knows; called at import, once."""
    managers = RemoteMappingKernelManager
    managers.kernel_model = _with_host(managers.kernel_model)
    managers.cull_kernel_if_idle = _unless_silent(managers.cull_kernel_if_idle)
    managers.interrupt_kernel = _answering_for_signals(managers.interrupt_kernel)
    ZMQChannelsHandler.on_message = _noting_cells(ZMQChannelsHandler.on_message)


def _with_host(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Wrap `kernel_model`, which `/api/kernels` and `/api/sessions` answer with."""

    @functools.wraps(original)
    def kernel_model(self: Any, kernel_id: str) -> dict[str, Any]:
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and not hasattr(kernel, "last_activity"):
            # It has started just now. Nothing but the end of its start marks it, and who asks for the list before has 500.
            kernel.execution_state, kernel.last_activity = "starting", datetime.now(timezone.utc)
        model = original(self, kernel_id)
        if (watching := watch()) is not None and (said := watching.model(kernel_id)):
            model["distributed"] = said
        return model

    return kernel_model


def _unless_silent(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `cull_kernel_if_idle`: of a kernel that cannot be heard nobody knows whether it is idle."""

    @functools.wraps(original)
    async def cull_kernel_if_idle(self: Any, kernel_id: str) -> None:
        if (watching := watch()) is None or not watching.is_silent(kernel_id):
            await original(self, kernel_id)

    return cull_kernel_if_idle


def _answering_for_signals(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `interrupt_kernel`: the request is answered once the signal has arrived, or with the reason why it has not.

    Not by keeping the interrupt for the host's return: it would hit whatever cell runs then.
    """

    @functools.wraps(original)
    async def interrupt_kernel(self: Any, kernel_id: str) -> None:
        watching = watch()
        if watching is not None and (reason := watching.reason(kernel_id, "the interrupt was not sent")):
            raise HTTPError(_UNREACHABLE, reason=reason)
        manager = self.get_kernel(kernel_id)
        proxy: Signalled | None = getattr(manager, "process_proxy", None)
        if isinstance(proxy, Signalled) and not manager.has_kernel:
            # jupyter_client raises a RuntimeError for it, which is "Internal Server Error" to who has asked.
            host = watching.model(kernel_id).get("host", "") if watching is not None else ""
            raise HTTPError(
                _UNREACHABLE,
                reason=f"Kernel {kernel_id}{f' on {host}' if host else ''}: it is just being started again, so the interrupt "
                "was not sent. Remedy: try again once it runs, if there is something to interrupt then.",
            )
        await original(self, kernel_id)
        sent = proxy.take_signalled() if isinstance(proxy, Signalled) else None
        failure = await sent if sent is not None else None
        if failure is not None:
            raise HTTPError(_UNREACHABLE, reason=f"Kernel {kernel_id}: the interrupt did not arrive. {failure}")

    return interrupt_kernel


def _noting_cells(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `on_message`: who runs a cell while its host is silent is told in that cell."""

    @functools.wraps(original)
    def on_message(self: Any, ws_msg: Any) -> Any:
        if (watching := watch()) is not None and watching.is_silent(self.kernel_id):
            try:
                watching.cell_sent(connection_of(self), _header(self, ws_msg))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                log.debug("kernel %s: a message whose header cannot be read: %r", self.kernel_id, error)
        return original(self, ws_msg)

    return on_message


def _header(client: Any, ws_msg: Any) -> Header:
    """Return the header of a message that came over a websocket; raises what its parsers raise."""
    header: Header
    if client.subprotocol == "v1.kernel.websocket.jupyter.org":
        header = json.loads(deserialize_msg_from_ws_v1(ws_msg)[1][0])
        return header
    header = (deserialize_binary_message(ws_msg) if isinstance(ws_msg, bytes) else json.loads(ws_msg))["header"]
    return header
