"""Turns of logging in: how many logins of a gateway are under way at once, and who goes first.

A login costs ten milliseconds of the thread that carries everybody's cells. When the gateway's own network comes back, all
hosts log in at the same moment; without turns five hundred of them share the thread for longer than the connect timeout, fail
together, and begin again together. A turn is waited for before that timeout begins.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Turns"]

_MOST = 32
"""Logins at once: of starts and commands, as many of hosts that were lost just now, and as many of those that are tried again."""
_SECONDS = 2.0
"""How long a turn lasts at most: a login that takes longer waits for its host, and needs nothing of this thread."""
_FEW = 8
"""Hosts that may be lost within a second without any of them waiting before it comes back."""
_SPACING, _LONGEST = 0.02, 2.0
"""Seconds for each host that was lost in the last second, over which their coming back is spread, and at most."""


class Turns:
    """The turns of one gateway's hosts; owned by the Cluster, taken by its Nodes, on the cluster's loop."""

    def __init__(self, most: int = _MOST, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._urgent = asyncio.Semaphore(most)
        self._fresh = asyncio.Semaphore(most)
        self._patient = asyncio.Semaphore(most)
        self._losses: deque[float] = deque(maxlen=round(_LONGEST / _SPACING))  # when, in the loop's time

    @asynccontextmanager
    async def turn(self, hurry: asyncio.Event, *, fresh: bool = False) -> AsyncIterator[None]:
        """Wait for a turn and hold it, for two seconds at most.

        Who is waited for, as *hurry* says from the beginning or at any time later, never stands behind hosts that come back; nor
        does a *fresh* one, which has not failed since it was connected, behind those that have failed.
        """
        semaphore = await self._acquire(hurry, self._fresh if fresh else self._patient)
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                semaphore.release()

        timer = asyncio.get_running_loop().call_later(self._seconds, release)
        try:
            yield
        finally:
            timer.cancel()
            release()

    async def _acquire(self, hurry: asyncio.Event, patient: asyncio.Semaphore) -> asyncio.Semaphore:
        if not hurry.is_set():
            acquiring = asyncio.ensure_future(patient.acquire())
            hurrying = asyncio.ensure_future(hurry.wait())
            try:
                await asyncio.wait({acquiring, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                if acquiring.done():
                    patient.release()
                raise
            finally:
                hurrying.cancel()
                acquiring.cancel()  # a semaphore whose waiter is cancelled keeps no turn for it
            if acquiring.done():
                return patient
        await self._urgent.acquire()
        return self._urgent

    def note_loss(self) -> None:
        """Take note of a host that was lost just now."""
        self._losses.append(asyncio.get_running_loop().time())

    def delay(self) -> float:
        """Return the seconds that a lost host waits before it comes back: none, unless many have been lost with it."""
        now = asyncio.get_running_loop().time()
        while self._losses and now - self._losses[0] > 1.0:
            self._losses.popleft()
        return random.uniform(0.0, _SPACING * len(self._losses)) if len(self._losses) > _FEW else 0.0
