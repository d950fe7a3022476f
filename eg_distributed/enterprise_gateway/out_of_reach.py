"""What people are told of a kernel whose host does not answer: in the notebook, by `/api/kernels`, and when they interrupt it.

A host that does not answer ends no kernel, and what its clients send waits for it. Without a word about that a cell just hangs,
an interrupt is answered with 204 and lost, and a culler takes the silence for idleness.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Protocol

from enterprise_gateway.services.kernels.remotemanager import RemoteMappingKernelManager
from jupyter_server.base.zmqhandlers import deserialize_binary_message, deserialize_msg_from_ws_v1
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler
from tornado.ioloop import PeriodicCallback
from tornado.web import HTTPError

from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError
from eg_distributed.kernel import RemoteKernel, State

from . import notebooks

log = logging.getLogger(__name__)

_LOOK: float = 1.0
"""Seconds between two looks at all kernels; each costs a comparison a kernel."""
_STALL: float = 2.5
"""Seconds without a tick of the cluster's thread that count as a stall, and after one until hosts have been heard again."""
_CELLS = 100
"""Cells of one kernel that are told of one outage."""
_UNREACHABLE = 503


class Signalled(Protocol):
    """The part of a process proxy that knows what became of its last signal."""

    def take_signalled(self) -> asyncio.Future[DistributedError | None] | None:
        """Return what becomes of the last signal, None if none was sent since the last call."""
        ...


def clock(seconds: float) -> str:
    """Return a time since the epoch as people read it, in the gateway's own zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S %Z")


class _Outage:
    """A host's silence, as the notebooks of one kernel are told of it."""

    def __init__(self, kernel: RemoteKernel, since: float) -> None:
        self._kernel = kernel
        node = kernel.node
        self.host = node.name if node is not None else "its host"
        self.since = since
        self._told: dict[str, notebooks.Header] = {}
        """The cells, by the id of what is shown in their output."""

    @property
    def goes_on(self) -> bool:
        """Return True unless the host has answered since."""
        return self._kernel.out_of_reach_since is not None

    def tell(self, client: Any, cell: notebooks.Header, *, runs: bool) -> None:
        """Say it in the output of *cell*, which *runs*, or waits for the host."""
        if cell.get("msg_type") != "execute_request" or len(self._told) >= _CELLS:
            return
        shown = f"eg_distributed-{cell.get('msg_id')}"
        if shown not in self._told:
            self._told[shown] = cell
            cell_too = "" if runs else " This cell runs once the host is back."
            text = f"{self.host} has not answered since {clock(self.since)}. Your kernel and its output are kept.{cell_too}"
            _show(client, "display_data", shown, text, cell)

    def end(self) -> None:
        """Say that it is over, in place of what was said before."""
        if not self._told:
            return
        if self._kernel.lost:
            text = f"{self.host} has not answered since {clock(self.since)}. The kernel has been given up."
        else:
            text = f"{self.host} did not answer from {clock(self.since)} to {clock(time.time())}."
            text += " The kernel has ended." if self._kernel.state is State.DEAD else " It is back, with your kernel."
        for client in notebooks.clients(self._kernel.id):
            for shown, cell in self._told.items():
                _show(client, "update_display_data", shown, text, cell)


def _show(client: Any, kind: str, shown: str, text: str, cell: notebooks.Header) -> None:
    content = {"data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": shown}}
    notebooks.show(client, kind, content, cell)


class Watch:
    """Notices that hosts of kernels fall silent and come back; one for a gateway, on its loop, for as long as that runs."""

    def __init__(self, cluster: Cluster, manager: Any) -> None:
        self._cluster = cluster
        self._manager = manager
        self._outages: dict[str, _Outage] = {}
        self._stalled_at = -_STALL
        self._looking = PeriodicCallback(self._look, _LOOK * 1000)

    def start(self) -> None:
        """Begin; called on the gateway's loop."""
        self._looking.start()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._cluster.ticked_at > _STALL:
            self._stalled_at = now  # it is the gateway itself that has had no time to hear anybody
        if now - self._stalled_at < _STALL:
            return
        kernels = {kernel.id: kernel for kernel in list(self._cluster.kernels.values())}
        for kernel_id, kernel in kernels.items():
            since = kernel.out_of_reach_since
            if since is not None and kernel_id not in self._outages:
                self._begin(kernel, since)
            elif since is None and kernel_id in self._outages:
                self._end(kernel_id)
        for kernel_id in self._outages.keys() - kernels.keys():
            self._end(kernel_id)

    def _begin(self, kernel: RemoteKernel, since: float) -> None:
        outage = self._outages[kernel.id] = _Outage(kernel, since)
        manager = self._manager._kernels.get(kernel.id)
        if manager is not None and manager.execution_state == "busy":
            for client in notebooks.clients(kernel.id):
                outage.tell(client, notebooks.last_cell(client), runs=True)

    def _end(self, kernel_id: str) -> None:
        self._outages.pop(kernel_id).end()
        manager = self._manager._kernels.get(kernel_id)
        if manager is not None:
            manager.last_activity = datetime.now(timezone.utc)  # or a culler would take the silence for idleness now

    def cell_sent(self, client: Any, cell: notebooks.Header) -> None:
        """Take note of a request that a *client* sent; called while the kernel's host may be silent."""
        outage, kernel = self._outages.get(client.kernel_id), self._cluster.kernels.get(client.kernel_id)
        if outage is None:
            return
        if kernel is None or kernel.out_of_reach_since is None:
            self._end(client.kernel_id)  # it is back, and no look has noticed yet
        else:
            outage.tell(client, cell, runs=False)

    def is_silent(self, kernel_id: str) -> bool:
        """Return True if the kernel's notebooks have been told that its host does not answer."""
        return kernel_id in self._outages

    def reason(self, kernel_id: str, what: str) -> str:
        """Return why *what* cannot be done with the kernel now; empty if nothing speaks against it."""
        outage = self._outages.get(kernel_id)
        if outage is None or not outage.goes_on:
            return ""
        return (
            f"Kernel {kernel_id}: {outage.host} has not answered since {clock(outage.since)}, so {what}. The kernel is kept. "
            "Remedy: try again once the host is back, or restart the kernel."
        )

    def model(self, kernel_id: str) -> dict[str, str]:
        """Return what `/api/kernels` says of a kernel of ours beside the rest: host, state and, if it is silent, since when."""
        kernel = self._cluster.kernels.get(kernel_id)
        node = kernel.node if kernel is not None else None  # once: it is the other thread's
        if kernel is None or node is None:
            return {}
        outage = self._outages.get(kernel_id)
        if outage is None or not outage.goes_on:
            return {"host": node.name, "state": kernel.state.value}
        since = datetime.fromtimestamp(outage.since, timezone.utc).isoformat(timespec="seconds")
        return {"host": node.name, "state": State.UNKNOWN.value, "since": since}


_watch: Watch | None = None


def begin(cluster: Cluster, manager: Any, call_soon: Callable[[Callable[[], None]], Any]) -> None:
    """Watch the *cluster*, whose kernels are the mapping *manager*'s; *call_soon* is the gateway's loop's."""
    global _watch
    _watch = Watch(cluster, manager)
    call_soon(_watch.start)


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
        if _watch is not None and (said := _watch.model(kernel_id)):
            model["distributed"] = said
        return model

    return kernel_model


def _unless_silent(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `cull_kernel_if_idle`: of a kernel that cannot be heard nobody knows whether it is idle."""

    @functools.wraps(original)
    async def cull_kernel_if_idle(self: Any, kernel_id: str) -> None:
        if _watch is None or not _watch.is_silent(kernel_id):
            await original(self, kernel_id)

    return cull_kernel_if_idle


def _answering_for_signals(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `interrupt_kernel`: the request is answered once the signal has arrived, or with the reason why it has not.

    Not by keeping the interrupt for the host's return: it would hit whatever cell runs then.
    """

    @functools.wraps(original)
    async def interrupt_kernel(self: Any, kernel_id: str) -> None:
        if _watch is not None and (reason := _watch.reason(kernel_id, "the interrupt was not sent")):
            raise HTTPError(_UNREACHABLE, reason=reason)
        proxy: Signalled | None = getattr(self.get_kernel(kernel_id), "process_proxy", None)
        await original(self, kernel_id)
        sent = proxy.take_signalled() if proxy is not None and hasattr(proxy, "take_signalled") else None
        failure = await sent if sent is not None else None
        if failure is not None:
            raise HTTPError(_UNREACHABLE, reason=f"Kernel {kernel_id}: the interrupt did not arrive. {failure}")

    return interrupt_kernel


def _noting_cells(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `on_message`: who runs a cell while its host is silent is told in that cell."""

    @functools.wraps(original)
    def on_message(self: Any, ws_msg: Any) -> Any:
        if _watch is not None and _watch.is_silent(self.kernel_id):
            try:
                _watch.cell_sent(self, _header(self, ws_msg))
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                log.debug("kernel %s: a message whose header cannot be read: %r", self.kernel_id, error)
        return original(self, ws_msg)

    return on_message


def _header(client: Any, ws_msg: Any) -> notebooks.Header:
    """Return the header of a message that came over a websocket; raises what its parsers raise."""
    header: notebooks.Header
    if client.subprotocol == "v1.kernel.websocket.jupyter.org":
        header = json.loads(deserialize_msg_from_ws_v1(ws_msg)[1][0])
        return header
    header = (deserialize_binary_message(ws_msg) if isinstance(ws_msg, bytes) else json.loads(ws_msg))["header"]
    return header
