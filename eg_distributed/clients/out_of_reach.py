"""What people are told of a kernel whose host does not answer: in the notebook, by `/api/kernels`, and when they interrupt it.

A host that does not answer ends no kernel, and what its clients send waits for it. Without a word about that a cell just hangs,
an interrupt is answered with 204 and lost, and a culler takes the silence for idleness.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from eg_distributed.cluster import Cluster
from eg_distributed.kernel import RemoteKernel, State

from . import notebooks, sessions
from .connection import Connection
from .frames import Header

_LOOK: float = 1.0
"""Seconds between two looks at all kernels; each costs a comparison a kernel."""
_STALL: float = 2.5
"""Seconds without a tick of the cluster's thread that count as a stall, and after one until hosts have been heard again."""
_CELLS = 100
"""Cells of one kernel that are told of one outage."""


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
        self._told: dict[str, Header] = {}
        """The cells, by the id of what is shown in their output."""

    @property
    def goes_on(self) -> bool:
        """Return True unless the host has answered since."""
        return self._kernel.out_of_reach_since is not None

    def tell(self, client: Connection, cell: Header, *, runs: bool) -> None:
        """Say it in the output of *cell*, which *runs*, or waits for the host."""
        if cell.get("msg_type") != "execute_request" or len(self._told) >= _CELLS:
            return
        shown = f"eg_distributed-{cell.get('msg_id')}"
        if shown not in self._told:
            self._told[shown] = cell
            cell_too = "" if runs else " This cell runs once the host is back."
            text = f"{self.host} has not answered since {clock(self.since)}. Your kernel and its output are kept.{cell_too}"
            client.show("display_data", _display(shown, text), cell)

    def end(self) -> None:
        """Say that it is over, in place of what was said before."""
        if not self._told:
            return
        if self._kernel.lost:
            text = f"{self.host} has not answered since {clock(self.since)}. The kernel has been given up."
        else:
            text = f"{self.host} did not answer from {clock(self.since)} to {clock(time.time())}."
            text += " The kernel has ended." if self._kernel.state is State.DEAD else " It is back, with your kernel."
        for client in sessions.of_kernel(self._kernel.id):
            for shown, cell in self._told.items():
                client.show("update_display_data", _display(shown, text), cell)


def _display(shown: str, text: str) -> dict[str, Any]:
    return {"data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": shown}}


class Watch:
    """Notices that hosts of kernels fall silent and come back; one for a gateway, on its loop, for as long as that runs."""

    def __init__(self, cluster: Cluster, manager: Any) -> None:
        self._cluster = cluster
        self._manager = manager
        self._outages: dict[str, _Outage] = {}
        self._stalled_at = -_STALL

    def is_of(self, cluster: Cluster) -> bool:
        """Return True if this is about *cluster*."""
        return cluster is self._cluster

    def start(self) -> None:
        """Begin; called on the gateway's loop."""
        asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _look(self) -> None:
        self.start()  # the next look comes, whatever becomes of this one
        now = time.monotonic()
        if now - self._cluster.ticked_at > _STALL:
            self._stalled_at = now  # it is the gateway itself that has had no time to hear anybody
        if now - self._stalled_at < _STALL:
            return
        # Hosts first: there are a few, and as a rule all of them answer, while an idle gateway may have a thousand kernels.
        if not self._outages and all(host.node.silent_since is None for host in list(self._cluster.hosts.values())):
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
            for client in sessions.of_kernel(kernel.id):
                outage.tell(client, notebooks.last_cell(client), runs=True)

    def _end(self, kernel_id: str) -> None:
        self._outages.pop(kernel_id).end()
        manager = self._manager._kernels.get(kernel_id)
        if manager is not None:
            manager.last_activity = datetime.now(timezone.utc)  # or a culler would take the silence for idleness now

    def cell_sent(self, client: Connection, cell: Header) -> None:
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


def watch() -> Watch | None:
    """Return what watches this server's cluster, None before there is one."""
    return _watch


def begin(cluster: Cluster, manager: Any, call_soon: Callable[[Callable[[], None]], Any]) -> None:
    """Watch the *cluster*, whose kernels are the mapping *manager*'s; *call_soon* is the gateway's loop's."""
    global _watch
    _watch = Watch(cluster, manager)
    call_soon(_watch.start)
