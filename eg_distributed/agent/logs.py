"""A kernel's log on the node's disk, which the kernel writes itself; called in threads, since the disk may hang."""

from __future__ import annotations

import os
from pathlib import Path


def log_size(path: Path) -> int:
    """Return the size of the log at *path* in bytes, 0 where there is none yet; its folder is made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def append(path: Path, line: bytes) -> None:
    """Add a *line* of our own to the log. Raises OSError."""
    with open(path, "ab") as log:
        log.write(line)


def cap(path: Path, limit: int) -> bool:
    """Drop the older half of a log of more than *limit* bytes; return whether it had so many. Raises OSError."""
    if path.stat().st_size <= limit:
        return False
    with open(path, "r+b") as log:
        log.seek(-limit // 2, os.SEEK_END)
        kept = log.read()
        kept += log.read()  # what came meanwhile: the kernel appends by itself
        log.truncate(0)
    with open(path, "ab") as log:
        log.write(b"[older output was dropped here]\n" + kept)
    return True


def tail(path: Path, start: int, size: int) -> str:
    """Return the last *size* bytes of the log, at most, from the offset *start* on. Raises OSError."""
    with open(path, "rb") as log:
        end = log.seek(0, os.SEEK_END)
        log.seek(max(start, end - size))
        return log.read(size).decode("utf-8", "replace")
