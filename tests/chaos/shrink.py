"""Makes a schedule that fails as short as it can be: Zeller's ddmin, which drops larger parts first, then smaller ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def ddmin(items: Sequence[T], fails: Callable[[list[T]], Awaitable[bool]], tries: int = 60) -> list[T]:
    """Return a part of *items*, in their order, that still *fails* where no single item can be left out of it.

    *fails* is asked *tries* times at most; what is the shortest by then is returned. *items* as a whole are taken to fail.
    """
    found, parts = list(items), 2
    while len(found) > 1 and tries > 0:
        size = max(1, len(found) // parts)
        for first in range(0, len(found), size):
            rest = found[:first] + found[first + size :]
            if not rest or tries <= 0:
                continue
            tries -= 1
            if await fails(rest):
                # The other parts stay as fine as they are: what is left has one part less.
                found, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(found))
    return found
