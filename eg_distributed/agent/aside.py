"""Work on disks, mounts and directories of users that may hang, each in a thread of its own, with a deadline.

The event loop's own executor has few threads, and six that hang would hold up everybody's kernels: it is for the agent's own
folder alone, without which there is no agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
import time
from typing import Any, Callable, Hashable, Optional

EACH = 4
"""Threads at once for one key; others wait for them."""
HANGS = 1.0
"""Seconds after which a call may hang: no other thread is made for its key until it is over."""
MOST = 512
"""Threads at once; as many keys have to hang for that."""

_running: dict[Hashable, list[float]] = {}  # since when each call runs, in monotonic time
_waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = set()
_lock = threading.Lock()


async def aside(
    key: Hashable,
    seconds: Optional[float],
    function: Callable[..., Any],
    *arguments: Any,
    late: Optional[Callable[[Any], object]] = None,
) -> Any:
    """Return what *function* returns, or raise what it raises, from a thread of its own.

    *key* says what it could hang on: calls of one key hold up each other, and no other call. Raises asyncio.TimeoutError after
    *seconds* (None: never), and OSError where 512 calls hang already. The thread of a call that was given up goes on; what it
    still returns is given to *late*, in a thread as well.
    """
    loop = asyncio.get_running_loop()
    until = None if seconds is None else loop.time() + seconds
    while (begun := _begin(key)) is None:
        freed: asyncio.Future[None] = loop.create_future()
        with _lock:
            _waiting.add((loop, freed))
        try:
            await asyncio.wait_for(freed, None if until is None else max(until - loop.time(), 0.0))
        finally:
            with _lock:
                _waiting.discard((loop, freed))
    future: asyncio.Future[Any] = loop.create_future()
    try:
        threading.Thread(target=_run, args=(key, begun, loop, future, late, function, arguments), daemon=True).start()
    except RuntimeError as error:  # the user has as many threads as it may
        _over(key, begun)
        raise OSError(errno.EAGAIN, "no thread can be started on this node") from error
    try:
        await asyncio.wait({future}, timeout=None if until is None else max(until - loop.time(), 0.0))
    except asyncio.CancelledError:
        if not future.cancel() and late is not None and future.exception() is None:
            _start(late, future.result())
        raise
    if future.cancel():
        raise asyncio.TimeoutError
    return future.result()


def _begin(key: Hashable) -> Optional[float]:
    """Note a call of *key* that begins now, and return when that is; None if it has to wait for others. Raises OSError."""
    now = time.monotonic()
    with _lock:
        since = _running.get(key, [])
        if len(since) >= EACH or any(now - begun > HANGS for begun in since):
            return None
        if sum(map(len, _running.values())) >= MOST:
            raise OSError(0, f"{MOST} calls hang on disks of this node")
        _running.setdefault(key, []).append(now)
        return now


def _run(
    key: Hashable,
    begun: float,
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    late: Optional[Callable[[Any], object]],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    result: Any = None
    failure: Optional[BaseException] = None
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001 - handed to whoever called
        failure = error
    _over(key, begun)

    def arrive() -> None:
        if future.done():  # given up
            if failure is None and late is not None:
                _start(late, result)
        elif failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)

    try:
        loop.call_soon_threadsafe(arrive)
    except RuntimeError:  # the loop has ended meanwhile
        if failure is None and late is not None:
            late(result)


def _over(key: Hashable, begun: float) -> None:
    """Note that a call of *key* is over, and have those that wait for its like look again."""
    with _lock:
        since = _running[key]
        since.remove(begun)
        if not since:
            del _running[key]
        waiting = list(_waiting)
    for waiter in waiting:
        _tell(*waiter)


def _tell(loop: asyncio.AbstractEventLoop, freed: asyncio.Future[None]) -> None:
    def tell() -> None:
        if not freed.done():
            freed.set_result(None)

    with contextlib.suppress(RuntimeError):  # its loop has ended
        loop.call_soon_threadsafe(tell)


def _start(late: Callable[[Any], object], result: Any) -> None:
    try:
        threading.Thread(target=late, args=(result,), daemon=True).start()
    except RuntimeError:  # no thread can be started: better late here than never
        late(result)
