"""Readings of configurations: each kept for a few seconds, shared by all who ask for it, and in nobody's way.

A reading may run a command (`Match exec`) or look a name up, and so take seconds. With one pool of places for all, as many slow
hosts as it has places would keep every other host waiting. So a reading that takes longer than a moment gives its place up and
goes on among the slow ones, where a host whose last reading was slow begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["NoPlace", "Readings"]

T = TypeVar("T")
Key = tuple[str, ...]

_KEPT_SECONDS = 5.0
"""For which an answer counts: long enough for a start on many hosts, short enough for an edit to count at once."""
_MOST_KEPT = 2048
_AT_ONCE = 8
"""Children that read at the same time: more only take the processor from each other."""
_SLOW_AT_ONCE = 128
"""Readings beside them that wait for a command or a name."""
_MOMENT = 0.25
"""Seconds after which a reading gives up its place among the quick ones; ssh alone needs ten milliseconds, or a hundred."""
_SLOW_SECONDS = 2.0
"""A reading that took this long begins among the slow ones the next time."""
_PLACE_SECONDS = 15.0
"""How long a place is waited for."""


class NoPlace(Exception):
    """Other readings left no place in time."""


class Readings(Generic[T]):
    """What was read on one event loop, and what is being read."""

    def __init__(self) -> None:
        self._answers: dict[Key, tuple[float, T]] = {}
        self._under_way: dict[Key, _UnderWay[T]] = {}
        self._quick = _Places(_AT_ONCE)
        self._slow = _Places(_SLOW_AT_ONCE)
        self._slow_keys: OrderedDict[Key, None] = OrderedDict()

    async def get(self, key: Key, read: Callable[[], Awaitable[T]]) -> T:
        """Return what was read for *key* just now, else what *read* returns, which has a deadline of its own.

        Raises what that raises, and NoPlace. Cancellation of the last who waits ends the reading.
        """
        made, found = self._answers.get(key, (0.0, None))
        if found is not None and time.monotonic() - made < _KEPT_SECONDS:
            return found
        reading = self._under_way.get(key)
        if reading is None or reading.task.done():
            reading = self._under_way[key] = _UnderWay(asyncio.ensure_future(self._read(key, read)))
            reading.task.add_done_callback(_retrieve)
        reading.waiting += 1
        try:
            await asyncio.wait({reading.task})  # no deadline here: place and reading have theirs
            return reading.task.result()
        finally:
            reading.waiting -= 1
            if not reading.waiting:
                if self._under_way.get(key) is reading:
                    del self._under_way[key]
                if not reading.task.done():
                    reading.task.cancel()
                    await asyncio.wait({reading.task}, timeout=1.0)

    async def _read(self, key: Key, read: Callable[[], Awaitable[T]]) -> T:
        place = self._slow if key in self._slow_keys else self._quick
        await place.take(_PLACE_SECONDS)
        began = time.monotonic()

        def give_way() -> None:
            nonlocal place
            if place is self._quick and self._slow.take_at_once():
                place.give_back()
                place = self._slow

        timer = asyncio.get_running_loop().call_later(_MOMENT, give_way)
        try:
            found = await read()
            if len(self._answers) >= _MOST_KEPT:
                self._answers.clear()
            self._answers[key] = (time.monotonic(), found)
            return found
        finally:
            timer.cancel()
            place.give_back()
            self._slow_keys.pop(key, None)
            if time.monotonic() - began >= _SLOW_SECONDS:
                self._slow_keys[key] = None
                while len(self._slow_keys) > _MOST_KEPT:
                    self._slow_keys.popitem(last=False)


def _retrieve(task: asyncio.Task[T]) -> None:
    """Look at how *task* ended: where all who waited were cancelled in that moment, asyncio would log its failure as lost."""
    if not task.cancelled():
        task.exception()


@dataclass
class _UnderWay(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class _Places:
    """So many may read at once; the others wait in order. Not a semaphore, which waits without a deadline."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take_at_once(self) -> bool:
        """Return True if there was a free place, which is taken now."""
        if not self._free:
            return False
        self._free -= 1
        return True

    async def take(self, seconds: float) -> None:
        """Wait for a place and take it; raises NoPlace after *seconds*."""
        if self.take_at_once():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait({turn}, timeout=seconds)
        except asyncio.CancelledError:
            if turn.done():
                self.give_back()
            raise
        finally:
            if not turn.done():
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
        if not turn.done():
            raise NoPlace

    def give_back(self) -> None:
        """Give a place to the one that has waited longest, if any."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1
