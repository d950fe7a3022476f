"""Attempts that must not live on: a start that failed, a kernel that was deleted or given up while its host was out of reach.

The cluster owns one `Abandoned` for all its hosts. An attempt is ended at once where its host answers. Where it is out of
reach, the attempt stays on the list, is a reason for its node to come back, and is ended as soon as that has connected. Where
the host is connected and ending fails, as it does for a process that hangs on a disk, it is tried again, ever more patiently.
Attempts, not kernels, are ended: the same kernel may have been started again meanwhile, on the same host.

What could not be ended at once is in a file as well, from which the gateway's next process takes it up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Any

from .aside import aside
from .clock import monotonic
from .errors import DistributedError, KernelGone, KernelTaken
from .link.deadlines import within
from .node import Node
from .protocol import Stop
from .unended import Unended, read_unended, write_unended

log = logging.getLogger(__name__)
_Key = tuple[str, str, str]  # host, kernel id, attempt

Aside = Callable[[Hashable, Callable[[], Any]], Awaitable[Any]]
"""Calls what may hang on a disk where it holds up nobody; see `aside.aside`."""

FIRST_RETRY = 1.0
"""Seconds before an attempt that could not be ended, although its host is connected, is ended again; twice that the next time."""
_FILE_DEADLINE = 2.0  # seconds for reading or writing the file
_LAST_RETRY = 300.0  # each try may leave something that waits on the node


class Abandoned:
    """The attempts of one gateway that are to be ended, by host. All methods run on the cluster's loop.

    *lifetime* is the orphan_timeout setting, in seconds: what has waited for longer has been ended by its own agent; 0: never.
    *find_file(make)* returns where the file is, in a private folder of ours, or None where there is none: *make* that folder.
    *call_aside* reads and writes it.
    """

    def __init__(
        self, lifetime: float, find_file: Callable[[bool], Path | None] = lambda _: None, call_aside: Aside = aside
    ) -> None:
        self._lifetime = lifetime
        self._aside = call_aside
        self._find_file = find_file
        self._earlier: list[Unended] | None = None  # of earlier processes, not taken up yet; None: not read yet
        self._has_taken_up = False
        self._is_stale = False  # what the file says
        self._saving: asyncio.Task[None] | None = None
        self._since: dict[_Key, float] = {}  # since when, in monotonic time
        self._leases: dict[_Key, int] = {}  # the numbers that were held of their kernels, where they are known
        self._kept: set[_Key] = set()  # what is not taken up from the file
        self._told: set[_Key] = set()  # those of which the log has that they have not ended
        self._causes: dict[_Key, str] = {}  # why they have not
        self._next: dict[
            _Key, float
        ] = {}  # when that is tried again, in monotonic time; without: when their host is back
        self._ending: dict[_Key, asyncio.Task[None]] = {}

    def __contains__(self, attempt: _Key) -> bool:
        return attempt in self._since

    def mark(self, node: Node, kernel_id: str, attempt: str, lease: int = 0) -> None:
        """Have an attempt ended when its node next connects, unless `end` has done so before.

        Not if another gateway has adopted its kernel since this one was given the number *lease* of it; 0: it was given none.
        """
        key = node.name, kernel_id, attempt
        self._since.setdefault(key, monotonic())
        if lease:
            self._leases[key] = lease

    def keep(self, node: Node, kernel_id: str, attempt: str) -> None:
        """Let an attempt live on after all: its host is back before anything has taken its place, or it is adopted."""
        if not self._has_taken_up:
            self._kept.add((node.name, kernel_id, attempt))
        self._forget((node.name, kernel_id, attempt))

    async def end(self, node: Node, kernel_id: str, attempt: str, lease: int = 0) -> None:
        """End an attempt and forget it; where that fails, it is tried again without the caller. Raises nothing."""
        self.mark(node, kernel_id, attempt, lease)
        if not await self._try(node, kernel_id, attempt):
            self._go_on(node, kernel_id, attempt, FIRST_RETRY)

    def end_soon(self, node: Node, kernel_id: str, attempt: str, lease: int = 0) -> None:
        """Do as `end`, without making the caller wait for the host."""
        self.mark(node, kernel_id, attempt, lease)
        self._go_on(node, kernel_id, attempt, 0.0)

    def _go_on(self, node: Node, kernel_id: str, attempt: str, pause: float) -> None:
        """End an attempt in the background, first in *pause* seconds; without a pause, what waits for one is not waited for."""
        key = node.name, kernel_id, attempt
        if (before := self._ending.get(key)) is not None:
            if pause:
                return
            before.cancel()  # its host is back, say, and the next try would be in minutes

        def ended(task: asyncio.Task[None]) -> None:
            if self._ending.get(key) is task:
                del self._ending[key]

        self._ending[key] = asyncio.ensure_future(self._persist(node, kernel_id, attempt, pause))
        self._ending[key].add_done_callback(ended)

    async def _persist(self, node: Node, kernel_id: str, attempt: str, pause: float) -> None:
        """Try to end an attempt until it has ended, its time is over, or its host is lost, which `end_all_on` makes good."""
        key = node.name, kernel_id, attempt
        while True:
            if pause:
                if not node.connected.is_set():
                    return
                seconds = pause * random.uniform(1, 1.5)
                self._next[key] = monotonic() + seconds
                self._save_soon()
                await asyncio.sleep(seconds)
            self._drop_old()
            if key not in self._since or await self._try(node, kernel_id, attempt):
                return
            pause = min(max(2 * pause, FIRST_RETRY), _LAST_RETRY)

    async def _try(self, node: Node, kernel_id: str, attempt: str) -> bool:
        """Try to end an attempt once; return True if it has ended. What went wrong is told once for each attempt."""
        key = node.name, kernel_id, attempt
        try:
            await node.request(Stop(kernel_id, attempt, grace=0.0, forget=True, lease=self._leases.get(key, 0)))
        except KernelGone:
            pass
        except KernelTaken as error:
            log.warning("kernel %s: attempt %s is not ended: %s", kernel_id, attempt, error)
            self._forget(key)
            return True
        except DistributedError as error:
            again = "it is tried again until it has ended"
            if not node.connected.is_set():
                self._next.pop(key, None)
                again = "it is ended as soon as its host is back"
                node.come_back()
            level = logging.DEBUG if key in self._told else logging.WARNING
            log.log(level, "kernel %s: attempt %s has not ended yet; %s. %s", kernel_id, attempt, again, error)
            self._told.add(key)
            self._causes[key] = str(error)
            self._save_soon()
            return False
        if key in self._told:
            log.info("kernel %s: attempt %s has ended on %s after all", kernel_id, attempt, node.name)
        self._forget(key)
        return True

    def _forget(self, key: _Key) -> None:
        self._since.pop(key, None)
        self._leases.pop(key, None)
        self._causes.pop(key, None)
        self._next.pop(key, None)
        if key in self._told:
            self._told.discard(key)
            self._save_soon()

    def _drop_old(self) -> None:
        """Forget what its own agent has ended by now."""
        if self._lifetime > 0:
            now = monotonic()
            for key in [key for key, since in self._since.items() if now - since > self._lifetime]:
                self._forget(key)

    def end_all_on(self, node: Node) -> None:
        """End what is on the list for *node*, which has just connected; one that cannot be killed delays no other."""
        for host, kernel_id, attempt in list(self._since):
            if host == node.name:
                self.end_soon(node, kernel_id, attempt)

    def has_any_on(self, host: str) -> bool:
        """Return True if *host* is still needed for an attempt's end."""
        self._drop_old()
        return any(key[0] == host for key in self._since)

    # -- the file ------------------------------------------------------------------------------------------------

    async def take_up(self, find: Callable[[str], Node]) -> None:
        """Go on with what an earlier process of this gateway could not end; *find* returns a host's node.

        Called by the cluster once, when kernels that live on have been adopted: their attempts are kept.
        """
        earlier = await self._read()
        self._earlier, self._has_taken_up = [], True
        now = time.time()
        for each in earlier:
            age = max(now - each.since, 0.0)
            node = find(each.host)
            key = node.name, each.kernel, each.attempt
            if key in self._kept or 0 < self._lifetime < age:
                continue
            self._since.setdefault(key, monotonic() - age)
            if each.lease:
                self._leases.setdefault(key, each.lease)
            self._told.add(key)
            self._causes[key] = each.cause
            if node.connected.is_set():
                self.end_soon(node, each.kernel, each.attempt)
            else:
                node.come_back()
        self._kept.clear()
        if earlier:
            log.info("%d kernels that an earlier process of this gateway could not end are ended now", len(earlier))
            self._save_soon()

    async def save(self) -> None:
        """Have the file say what is still to be ended; called by the cluster when it ends. Raises nothing."""
        self._told.update(self._since)
        if self._told:
            self._save_soon()
        if self._saving is not None:
            await asyncio.wait({self._saving}, timeout=_FILE_DEADLINE)

    def _save_soon(self) -> None:
        self._is_stale = True
        if self._saving is None or self._saving.done():
            self._saving = asyncio.ensure_future(self._save())

    async def _save(self) -> None:
        while self._is_stale:
            earlier = await self._read()
            if self._earlier is None:  # still: they may have been taken up meanwhile
                self._earlier = earlier
            self._is_stale = False
            now, wall = monotonic(), time.time()
            current = [
                Unended(
                    *key,
                    wall - (now - since),
                    self._causes.get(key, ""),
                    wall + (self._next[key] - now) if key in self._next else 0.0,
                    self._leases.get(key, 0),
                )
                for key, since in self._since.items()
                if key in self._told
            ]
            attempts = [*self._earlier, *current]

            def write(attempts: list[Unended] = attempts) -> None:
                if (path := self._find_file(bool(attempts))) is not None:
                    write_unended(path, attempts)

            try:
                await within(self._aside(("write unended", id(self)), write), _FILE_DEADLINE)
            except (OSError, DistributedError, asyncio.TimeoutError) as error:
                log.warning(
                    "what is to be ended on hosts could not be written down for this gateway's next start: %s", error
                )

    async def _read(self) -> list[Unended]:
        """Return what earlier processes have left, from the file the first time."""
        if self._earlier is not None:
            return self._earlier

        def read() -> list[Unended]:
            path = self._find_file(False)
            return read_unended(path) if path is not None else []

        try:
            return await within(self._aside(("read unended", id(self)), read), _FILE_DEADLINE)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, DistributedError, asyncio.TimeoutError) as error:
            log.warning("what an earlier process of this gateway had to end on hosts cannot be read: %r", error)
            return []
