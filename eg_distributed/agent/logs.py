"""A kernel's log on the node's disk, which the kernel writes itself; called in threads, since the disk may hang."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Optional


def log_size(path: Path) -> int:
    """Return the size of the log at *path* in bytes, 0 where there is none yet; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


_DROPPED = b"[older output was dropped here]\n"


def append(path: Path, line: bytes) -> None:
    """Add a *line* of our own to the log. Raises OSError."""
    with open(path, "ab") as log:
        log.write(line)


def cap(path: Path, limit: int) -> int:
    """Drop the older half of a log of more than *limit* bytes; return by how many bytes it moved, 0: not at all.

    Raises OSError.
    """
    if path.stat().st_size <= limit:
        return 0
    with open(path, "r+b") as log:
        begin = log.seek(-limit // 2, os.SEEK_END)
        kept = log.read()
        kept += log.read()  # what came meanwhile: the kernel appends by itself
        log.truncate(0)
    with open(path, "ab") as log:
        log.write(_DROPPED + kept)
    return begin - len(_DROPPED)


def part(
    path: Path, start: int, base: int, position: int, size: int, *, final: bool, stop: Optional[int] = None
) -> tuple[str, int]:
    """Return up to *size* bytes of the log from *position* on, as text, and where the next part begins. Raises OSError.

    Positions count from the log's first byte ever; *base* bytes of it are not in the file any more. What is before the offset
    *start* of the file is of earlier starts, and what is from *stop* on is of later ones. A character that is not there as a
    whole waits for its rest, unless the log is *final*.
    """
    with open(path, "rb") as log:
        begin = log.seek(max(start, position - base))
        if stop is not None:
            size = max(0, min(size, stop - begin))
        data = log.read(size)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    at_end = len(data) < size or (stop is not None and begin + len(data) >= stop)
    decoded = decoder.decode(data, final=final and at_end)
    return decoded, base + begin + len(data) - len(decoder.getstate()[0])


def tail(path: Path, start: int, size: int) -> str:
    """Return the last *size* bytes of the log, at most, from the offset *start* on. Raises OSError."""
    with open(path, "rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - size))
        return log.read(size).decode("utf-8", "replace")
