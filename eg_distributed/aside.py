"""Work that may hang, each in a thread of its own: look-ups of names, files on a home or a mount that may be gone.

The event loop's own executor has few threads, and six names that resolve slowly would hold up all hosts. And Python waits for
an executor's threads before it ends: a gateway that is told to stop would hang with them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["aside"]

T = TypeVar("T")

_MOST = 256
"""Threads at once; more hang only where a whole site's names or homes do."""
_running: dict[Hashable, Future[Any]] = {}
_lock = threading.Lock()


async def aside(key: Hashable, function: Callable[[], T]) -> T:
    """Return what *function* returns, or raise what it raises, from a thread of its own; the caller sets the deadline.

    Who asks for the same *key* while it runs gets the same answer, so that attempts that are given up and made again
    never add threads. Raises OSError where 256 such threads hang already. Cancellation leaves the thread to its end.
    """
    with _lock:
        future: Future[T] | None = _running.get(key)
        if future is None:
            if len(_running) >= _MOST:
                raise OSError(f"{_MOST} look-ups of names or files hang on this machine")
            future = Future()
            future.set_running_or_notify_cancel()
            _running[key] = future
            threading.Thread(target=_run, args=(key, function, future), name=f"aside {key}", daemon=True).start()
    return await asyncio.shield(asyncio.wrap_future(future))


def _run(key: Hashable, function: Callable[[], T], future: Future[T]) -> None:
    result: T | None = None
    failure: BaseException | None = None
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - handed to those who wait
        failure = error
    with _lock:
        del _running[key]
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)  # type: ignore[arg-type]


def _forked() -> None:
    """Have nothing run, in a child that was forked: its parent's threads are not there, and one may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _running.clear()


os.register_at_fork(after_in_child=_forked)
