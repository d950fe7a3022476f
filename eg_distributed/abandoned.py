"""Attempts that must not live on: a start that failed, a kernel that was deleted or given up while its host was out of reach.

The cluster owns one `Abandoned` for all its hosts. An attempt is ended at once where its host answers. Where it does not,
the attempt stays on the list, is a reason for its node to come back, and is ended as soon as that has connected. Attempts,
not kernels, are ended: the same kernel may have been started again meanwhile, on the same host.
"""

from __future__ import annotations

import asyncio
import logging
import time

from .errors import HostError, KernelGone
from .node import Node
from .protocol import Stop

log = logging.getLogger(__name__)


class Abandoned:
    """The attempts of one gateway that are to be ended, by host. All methods run on the cluster's loop.

    *lifetime* is the orphan_timeout setting, in seconds: what has waited for longer has been ended by its own agent; 0: never.
    """

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._since: dict[tuple[str, str, str], float] = {}  # (host, kernel id, attempt): since when, in monotonic time
        self._ending: set[asyncio.Task[None]] = set()

    def __contains__(self, attempt: tuple[str, str, str]) -> bool:
        return attempt in self._since

    def mark(self, node: Node, kernel_id: str, attempt: str) -> None:
        """Have an attempt ended when its node next connects, unless `end` has done so before."""
        self._since.setdefault((node.name, kernel_id, attempt), time.monotonic())

    def keep(self, node: Node, kernel_id: str, attempt: str) -> None:
        """Let an attempt live on after all: its host is back before anything has taken its place."""
        self._since.pop((node.name, kernel_id, attempt), None)

    async def end(self, node: Node, kernel_id: str, attempt: str) -> None:
        """End an attempt and forget it, now or, if its host does not answer, as soon as it is back. Raises nothing."""
        self.mark(node, kernel_id, attempt)
        try:
            await node.request(Stop(kernel_id, attempt, grace=0.0, forget=True))
        except (HostError, KernelGone) as error:
            log.debug("%s: attempt %s of kernel %s has not ended yet: %s", node.name, attempt, kernel_id, error)
            node.come_back()
        else:
            self._since.pop((node.name, kernel_id, attempt), None)

    def end_soon(self, node: Node, kernel_id: str, attempt: str) -> None:
        """Do as `end`, without making the caller wait for the host."""
        self.mark(node, kernel_id, attempt)
        self._ending.add(task := asyncio.ensure_future(self.end(node, kernel_id, attempt)))
        task.add_done_callback(self._ending.discard)

    def end_all_on(self, node: Node) -> None:
        """End what is on the list for *node*, which has just connected; one that cannot be killed delays no other."""
        for host, kernel_id, attempt in list(self._since):
            if host == node.name:
                self.end_soon(node, kernel_id, attempt)

    def has_any_on(self, host: str) -> bool:
        """Return True if *host* is still needed for an attempt's end."""
        if self._lifetime > 0:
            now = time.monotonic()
            self._since = {key: since for key, since in self._since.items() if now - since <= self._lifetime}
        return any(key[0] == host for key in self._since)
