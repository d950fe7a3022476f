"""The agent's own folder, in a thread of its own: no kernel's stream waits for a home that has stopped answering."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from pathlib import Path
from typing import Any, Callable, Optional

from .aside import aside
from .private import write_private


class Disk:
    """What is written and removed below the folder *home*, one thing after another in the order in which it was asked for.

    One for each agent, owned by it. Records may be put as often as anything changes: of one that was not written yet only the
    newest is. So what waits is bounded by the kernels that are there, and the starts that are under way.
    """

    def __init__(self, home: Path) -> None:
        self._key = ("folder", home)
        self._jobs: deque[tuple[Callable[[], Any], Optional[asyncio.Future[Any]]]] = deque()
        self._records: dict[Path, bytes] = {}
        self._working: Optional[asyncio.Task[None]] = None

    def put(self, path: Path, content: bytes) -> None:
        """Write *content* to *path* as soon as may be, mode 0600, as a whole or not at all; a disk that is full costs it."""
        if path not in self._records:
            self.do(lambda: write_private(path, self._records.pop(path)))
        self._records[path] = content

    def do(self, job: Callable[[], Any]) -> None:
        """Have *job* done in its turn; what it raises is written to the agent's log, but for an OSError."""
        self._add(job, None)

    async def done(self, seconds: float, job: Callable[[], Any]) -> Any:
        """Return what *job* returns, or raise what it raises, once it was its turn.

        Raises asyncio.TimeoutError after *seconds*; one that has not begun by then never does.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._add(job, future)
        return await asyncio.wait_for(future, seconds)

    async def settle(self, seconds: float) -> bool:
        """Wait until what was asked for so far is done; return False if that takes longer than *seconds*."""
        if self._working is None or self._working.done():
            return True
        try:
            await self.done(seconds, lambda: None)
        except asyncio.TimeoutError:
            return False
        return True

    def _add(self, job: Callable[[], Any], future: Optional[asyncio.Future[Any]]) -> None:
        self._jobs.append((job, future))
        if self._working is None or self._working.done():
            self._working = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            if future is not None and future.done():
                continue
            try:
                # Without a deadline: what comes behind it would overtake it. Whoever waits has one.
                result = await aside(self._key, None, job)
            except Exception as error:  # noqa: BLE001 - it is the caller's, or to be found in the log; the next is still done
                if future is not None:
                    if not future.done():
                        future.set_exception(error)
                elif not isinstance(error, OSError):
                    print(f"a file of a kernel was not written: {error!r}", file=sys.stderr, flush=True)
            else:
                if future is not None and not future.done():
                    future.set_result(result)
