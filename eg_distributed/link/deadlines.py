"""Waiting with a deadline, in the way that never loses a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["within"]

T = TypeVar("T")


async def within(awaitable: Awaitable[T], seconds: float) -> T:
    """Return what *awaitable* returns within *seconds*; raises asyncio.TimeoutError, and what it raises.

    Not asyncio.wait_for: up to Python 3.11 that returns a result which comes in the same moment as a cancellation, and an attempt
    that was given up would go on to its own deadlines. What was under way is cancelled, and its end awaited for a second.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
