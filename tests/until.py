"""Waiting for what has no event: one loop with a deadline for all tests. What does not come in time fails by its name.

`until` is for async tests and runs its probe on their event loop; `until_in_thread` is for probes that block, such as a look
at a machine of the lab; `block_until` is for tests without a loop. All of them raise, so no caller has to assert.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

PROCESS_SECONDS = 30.0
"""How long a test waits for its own process and what that has started: only what is broken takes as long."""
BLOCKED_SECONDS = 20.0
"""How long a test without an event loop waits unless it says otherwise, most of them for a machine that comes back."""
MACHINE_SECONDS = 15.0
"""How long a test of kernels waits for a machine of the lab: what a kernel leaves is gone by then."""

T = TypeVar("T")


@overload
async def until(what: str, probe: Callable[[], Awaitable[T | None]], seconds: float = ..., pause: float = ...) -> T: ...
@overload
async def until(what: str, probe: Callable[[], T | None], seconds: float = ..., pause: float = ...) -> T: ...
async def until(
    what: str,
    probe: Callable[[], T | None] | Callable[[], Awaitable[T | None]],
    seconds: float = PROCESS_SECONDS,
    pause: float = 0.005,
) -> T:
    """Call *probe* (a coroutine function, or a function that does not block) until its result is true; return that.

    Between two calls are *pause* seconds. Raises AssertionError with *what* and the last result after *seconds*; the probe is
    called once more when they are over, so that a slow machine alone is not a failure.
    """
    deadline = time.monotonic() + seconds
    while True:
        over = time.monotonic() >= deadline
        found = probe()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if over:
            raise _late(what, seconds, found)
        await asyncio.sleep(pause)


async def until_in_thread(
    what: str, probe: Callable[[], T | None], seconds: float = MACHINE_SECONDS, pause: float = 0.1
) -> T:
    """Wait as `until` does, with *probe* in a thread: the event loop serves the test's clients meanwhile."""
    return await until(what, functools.partial(asyncio.to_thread, probe), seconds, pause)


def block_until(what: str, probe: Callable[[], T | None], seconds: float = BLOCKED_SECONDS, pause: float = 0.02) -> T:
    """Wait as `until` does, in a test that has no event loop."""
    deadline = time.monotonic() + seconds
    while True:
        over = time.monotonic() >= deadline
        if found := probe():
            return found
        if over:
            raise _late(what, seconds, found)
        time.sleep(pause)


def _late(what: str, seconds: float, found: object) -> AssertionError:
    return AssertionError(f"{what}: not within {seconds:g} s, last seen {found!r}")
