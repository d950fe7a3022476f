"""An event loop whose clock jumps: nothing is ever waited for, and nothing outside the process can be reached."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import heapq
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from unittest import mock

BEGIN = 10_000.0
"""The virtual time at which every simulation begins; not 0, which the code takes for "never"."""

_FEW_TIMERS = 100  # that were cancelled, and are no burden


class Stuck(Exception):
    """Something is awaited that nothing will ever bring about."""


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run."""

    def __init__(self, coroutine: Any, *, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


class _Handle(asyncio.Handle):
    """What is to be called soon. Thirty are made for each start, so nothing is kept for a loop that is being debugged."""

    __slots__ = ()

    def __init__(self, callback: Any, args: Any, loop: VirtualLoop, context: contextvars.Context | None) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop, self._callback, self._args, self._cancelled = loop, callback, args, False
        self._repr = self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    """What is to be called at a time; the same."""

    __slots__ = ()
    _loop: VirtualLoop

    def __init__(
        self, when: float, callback: Any, args: Any, loop: VirtualLoop, context: contextvars.Context | None
    ) -> None:
        self._when = when
        self._context = contextvars.copy_context() if context is None else context
        self._loop, self._callback, self._args, self._cancelled = loop, callback, args, False
        self._repr = self._source_traceback = None

    def cancel(self) -> None:
        """Have nothing called."""
        if not self._cancelled:
            self._cancelled = True
            self._callback, self._args = len, ()  # what they hold is let go
            self._loop.note_cancelled()


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio loop in virtual time. Threads, files and sockets are errors here.

    It goes round by itself, and not as asyncio's does: with nothing to wait for, and timers that are compared as tuples and not
    by a method, a simulation takes a tenth less. Timers of one moment go off in the order in which they were set.
    """

    _ready: collections.deque[asyncio.Handle]  # asyncio's own, which typeshed does not know
    _stopping: bool  # the same

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._timers_cancelled = 0  # at most so many, which are still among the others
        numbers = itertools.count()
        self.set_task_factory(
            lambda loop, coroutine, **options: _Task(coroutine, loop=loop, number=next(numbers), **options)
        )

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self.now

    def _run_once(self) -> None:
        """Call what is ready; where nothing is, put the clock on to the next timer. Called by asyncio, again and again."""
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
                self._timers_cancelled -= 1
            if not timers:
                raise Stuck("no timer is left, and nothing is ready")
            self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            _, _, timer = heapq.heappop(timers)
            if timer._cancelled:
                self._timers_cancelled -= 1
            else:
                ready.append(timer)
        while ready and not self._stopping:
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def call_soon(  # type: ignore[override]  # typeshed's has a TypeVarTuple
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Have *callback* called when the loop next goes round."""
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]  # the same
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Have *callback* called in *delay* virtual seconds."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # the same
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Have *callback* called at *when*."""
        timer = _Timer(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def note_cancelled(self) -> None:
        """Count a timer that was cancelled, and throw those out where they are the most: deadlines are hardly ever reached."""
        self._timers_cancelled += 1
        if self._timers_cancelled > _FEW_TIMERS and 2 * self._timers_cancelled > len(self._timers):
            self._timers[:] = [each for each in self._timers if not each[2]._cancelled]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def _write_to_self(self) -> NoReturn:
        raise RuntimeError("another thread wakes the virtual loop")

    def call_soon_threadsafe(  # type: ignore[override]  # typeshed's has a TypeVarTuple
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Do as `call_soon`: there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> NoReturn:  # type: ignore[override]
        """Raise: a thread has a time of its own."""
        raise RuntimeError(f"{func!r} is to run in a thread, in a simulation")


@contextlib.contextmanager
def nothing_real() -> Iterator[None]:
    """Have every thread and every socket be an error."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("a simulation has no threads and no sockets")

    with (
        mock.patch.object(threading.Thread, "start", refuse),
        mock.patch.object(socket.socket, "__init__", refuse),
    ):
        yield


@contextlib.contextmanager
def same_in_every_run(*kinds: type) -> Iterator[None]:
    """Have sets of *kinds* be in the order in which their members were made, and not in that of their addresses."""

    def number_of(each: object, numbers: Iterator[int] = itertools.count()) -> int:  # noqa: B008 - one for all of them
        number: int = vars(each).setdefault("_number", next(numbers))
        return number

    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(mock.patch.object(kind, "__hash__", number_of))
        yield
