"""An event loop whose clock jumps: nothing is ever waited for, and nothing outside the process can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from unittest import mock

BEGIN = 10_000.0
"""The virtual time at which every simulation begins; not 0, which the code takes for "never"."""


class Stuck(Exception):
    """Something is awaited that nothing will ever bring about."""


class _Instant:
    """What stands in for a selector: instead of waiting, it puts the clock on to the next timer."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise Stuck("no timer is left, and nothing is ready")
        self._loop.now += timeout
        return []


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run."""

    def __init__(self, coroutine: Any, *, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """An asyncio loop in virtual time. Threads, files and sockets are errors here."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self._selector = _Instant(self)
        numbers = itertools.count()
        self.set_task_factory(
            lambda loop, coroutine, **options: _Task(coroutine, loop=loop, number=next(numbers), **options)
        )

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self.now

    def _process_events(self, event_list: list[object]) -> None:
        """Nothing comes from outside."""

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
