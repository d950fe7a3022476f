"""The clock is that of the loop."""

from __future__ import annotations

import asyncio
import time

from eg_distributed.clock import monotonic


class SlowLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own."""

    def time(self) -> float:
        """Return a time that no system has."""
        return super().time() - 1e9


def test_the_clock_is_that_of_the_running_loop() -> None:
    """Inside a loop durations go by its clock, whatever that is."""

    async def look() -> tuple[float, float]:
        return monotonic(), asyncio.get_running_loop().time()

    loop = SlowLoop()
    try:
        told, of_loop = loop.run_until_complete(look())
    finally:
        loop.close()
    assert told <= of_loop < 0.0


def test_outside_of_a_loop_the_clock_is_the_systems() -> None:
    """A thread without a loop gets the same time as one with an asyncio loop of this machine."""
    before = time.monotonic()
    assert before <= monotonic() <= time.monotonic()
