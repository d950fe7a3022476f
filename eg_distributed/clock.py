"""The clock by which both ends tell how long something takes: the running loop's. Standard library only.

The agent carries this file to its node. On asyncio's own loops it is the system's monotonic clock. Whoever brings a loop with
a clock of its own, as the simulation does, has everything go by that one: a second clock beside the loop's would make a
deadline and the silence that it is compared with two different times.
"""

from __future__ import annotations

import asyncio
import time


def monotonic() -> float:
    """Return the time of the loop that runs in this thread, in seconds; where none runs, the system's monotonic time."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return time.monotonic()
    return loop.time()
