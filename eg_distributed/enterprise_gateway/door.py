"""One request after the other that starts a kernel, as far as Enterprise Gateway's own thread works on it.

Of a start Enterprise Gateway and Jupyter compute some ten milliseconds before it is handed to the cluster, in steps between
which other things would have their turn. But of three hundred requests at once each takes its step before anything else is
done, and a cell that came meanwhile waits for seconds. So one of them at a time is on its way to the cluster, and what else
there is to do is done in between. The requests are answered no later, since the thread is as busy either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Door"]


class Door:
    """Lets requests in, in the order in which they come; on one loop."""

    LONGEST = 0.05
    """Seconds for which one keeps others out, at most: one of another process proxy does not say when it is through."""

    def __init__(self) -> None:
        self._inside = asyncio.Semaphore(1)

    async def enter(self) -> Callable[[], None]:
        """Wait until it is this request's turn; return what is to be called when it is through. A second call does nothing."""
        await self._inside.acquire()
        is_inside = True

        def be_through() -> None:
            nonlocal is_inside
            if is_inside:
                is_inside = False
                timer.cancel()
                self._inside.release()

        timer = asyncio.get_running_loop().call_later(self.LONGEST, be_through)
        return be_through
