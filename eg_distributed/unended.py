"""What is still to be ended on hosts, as a file: a gateway that ends, or is killed, leaves the rest of it to its next process.

Without it, a kernel that was deleted or replaced while its host was out of reach would run on for a day beside its replacement.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from pathlib import Path

from .agent.private import write_private

__all__ = ["Unended", "read_unended", "write_unended"]

_MOST = 1000
"""Attempts that are kept; the oldest go first, and their agents end them as orphans."""
_TEXT = 1000  # characters of a name
_SIZE = 4 * 1024 * 1024  # bytes of the file


@dataclass(frozen=True)
class Unended:
    """An attempt that is to be ended."""

    host: str
    kernel: str
    attempt: str
    since: float
    """When that was asked for, in seconds since 1970."""


def read_unended(path: Path) -> list[Unended]:
    """Return what *path*, in a private folder, says is to be ended; raises OSError, or ValueError for what is malformed."""
    with path.open("rb") as file:
        content = file.read(_SIZE + 1)
    if len(content) > _SIZE:
        raise ValueError("it is too large")
    try:
        rows = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(rows, list):
        raise ValueError("it holds no list")
    return [_read(row) for row in rows[-_MOST:]]


def _read(row: object) -> Unended:
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError("an entry is no list of four")
    host, kernel, attempt, since = row
    if not all(isinstance(name, str) and len(name) <= _TEXT for name in (host, kernel, attempt)):
        raise ValueError("a name is no text, or too long")
    if not isinstance(since, (int, float)) or isinstance(since, bool):
        raise ValueError("a time is no number")
    return Unended(host, kernel, attempt, float(since))


def write_unended(path: Path, attempts: list[Unended]) -> None:
    """Have *path* say that *attempts* are to be ended, the newest thousand of them; nothing to end is no file. Raises OSError."""
    if attempts:
        write_private(path, json.dumps([astuple(attempt) for attempt in attempts[-_MOST:]]).encode())
    else:
        path.unlink(missing_ok=True)
