"""The agent's own folder, in a thread of its own: no kernel's stream waits for a home that has stopped answering."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, Callable, Optional

from .private import write_private

_IDLE = 10.0
"""Seconds without anything to do after which the thread ends; the next job starts another."""
_AGAIN = 1.0
"""Seconds until a thread is tried again where the user has as many as it may."""
_REMAIN_MOST = 1000
"""Folders that are tried to be removed again; what else remains is the next agent's to remove."""


class _Job:
    """Something to be done on the disk; *future*, of *loop*, is for who waits for it, if anybody does."""

    def __init__(
        self,
        do: Callable[[], Any],
        loop: asyncio.AbstractEventLoop,
        future: Optional[asyncio.Future[Any]] = None,
    ) -> None:
        self.do: Optional[Callable[[], Any]] = do
        self._loop = loop
        self._future = future

    def run(self) -> None:
        """Do it, unless it was given up; called in the thread."""
        do, self.do = self.do, None
        if do is None:
            return
        result: Any = None
        failure: Optional[BaseException] = None
        try:
            result = do()
        except Exception as error:  # noqa: BLE001 - handed to whoever waits, or to the log; the next job is still done
            failure = error
            if self._future is None and not isinstance(error, OSError):
                print(f"a file of a kernel was not written: {error!r}", file=sys.stderr, flush=True)
        if self._future is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                self._loop.call_soon_threadsafe(self._tell, result, failure)

    def _tell(self, result: Any, failure: Optional[BaseException]) -> None:
        if self._future is None or self._future.done():
            return
        if failure is not None:
            self._future.set_exception(failure)
        else:
            self._future.set_result(result)


class Disk:
    """What is written and removed in the agent's folder, one thing after another in the order in which it was asked for.

    One for each agent, owned by it. Records may be put as often as anything changes: of one that was not written yet only the
    newest is. So what waits is bounded by the kernels that are there, and the starts that are under way.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._records: dict[Path, bytes] = {}
        self._thread: Optional[threading.Thread] = None
        self._remaining: deque[Callable[[], bool]] = deque(
            maxlen=_REMAIN_MOST
        )  # the disk's thread's own, but for a look

    def put(self, path: Path, content: bytes) -> None:
        """Write *content* to *path* as soon as may be, mode 0600, as a whole or not at all; a disk that is full costs it."""
        with self._changed:
            is_there = path in self._records
            self._records[path] = content
        if not is_there:
            self.do(lambda: write_private(path, self._newest(path)))

    def do(self, job: Callable[[], Any]) -> None:
        """Have *job* done in its turn; what it raises is written to the agent's log, but for an OSError."""
        self._add(_Job(job, asyncio.get_running_loop()))

    def do_until(self, job: Callable[[], bool]) -> None:
        """Have *job* done in its turn, and again after each `retry` until it returns True: a home may be read-only now."""

        def once() -> None:
            if not job():
                self._remaining.append(job)

        self.do(once)

    def retry(self) -> None:
        """Have what could not be done yet tried again."""
        if self._remaining:
            self.do(self._do_remaining)

    def _do_remaining(self) -> None:
        for _ in range(len(self._remaining)):
            job = self._remaining.popleft()
            if not job():
                self._remaining.append(job)

    async def done(self, seconds: float, job: Callable[[], Any]) -> Any:
        """Return what *job* returns, or raise what it raises, once it was its turn.

        Raises asyncio.TimeoutError after *seconds*; one that has not begun by then never does.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        added = _Job(job, loop, future)
        self._add(added)
        try:
            return await asyncio.wait_for(future, seconds)
        finally:
            added.do = None  # what was given up keeps no memory while the disk hangs

    async def settle(self, seconds: float) -> bool:
        """Wait until what was asked for so far is done; return False if that takes longer than *seconds*."""
        with self._changed:
            if self._thread is None and not self._jobs:
                return True
        try:
            await self.done(seconds, lambda: None)
        except asyncio.TimeoutError:
            return False
        return True

    def _newest(self, path: Path) -> bytes:
        with self._changed:
            return self._records.pop(path)

    def _add(self, job: _Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        self._have_thread()

    def _have_thread(self) -> None:
        """Start the thread unless it is there; where none can be had, try again later: nothing is dropped."""
        with self._changed:
            if self._thread is not None or not self._jobs:
                return
            self._thread = thread = threading.Thread(target=self._work, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._thread = None
                asyncio.get_running_loop().call_later(_AGAIN, self._have_thread)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._changed.wait(_IDLE)
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            job.run()
            del job  # it may hold a start's files
