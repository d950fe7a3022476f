"""How fast a kernel prints, by its own clock: what has waited for its host, its client or a cut comes faster than that."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import Any, Final

__all__ = ["Printed", "made_at"]

_MOST: Final = 20_000
"""Messages that are remembered; as many within a window are a flood by any limit."""


def made_at(header: dict[str, Any]) -> float | None:
    """Return when a message was made, by its kernel's clock, in seconds since the epoch; None where it does not say."""
    made = header.get("date")
    if isinstance(made, str):
        try:
            made = datetime.fromisoformat(made[:-1] + "+00:00" if made.endswith("Z") else made)
        except ValueError:
            return None
    if not isinstance(made, datetime) or made.tzinfo is None:  # of which zone, nobody knows
        return None
    try:
        return made.timestamp()
    except (OverflowError, ValueError):
        return None


class Printed:
    """The messages of the last moments, by when they were made."""

    def __init__(self) -> None:
        self._made: deque[tuple[float, int]] = deque()
        self._bytes = 0

    def note(self, made: float, size: int, window: float) -> None:
        """Note a message of *size* bytes; those are forgotten that were made more than *window* seconds before it."""
        self._made.append((made, size))
        self._bytes += size
        while self._made and (abs(made - self._made[0][0]) > window or len(self._made) > _MOST):
            self._bytes -= self._made.popleft()[1]

    def is_below(self, messages: float, size: float, window: float) -> bool:
        """Return True if no more *messages*, nor bytes than *size*, were made a second; 0 is no limit."""
        is_flood = len(self._made) >= _MOST or 0 < messages < len(self._made) / window
        return not (is_flood or 0 < size < self._bytes / window)
