"""What is still to be ended on hosts, as a file: a gateway that ends, or is killed, leaves the rest of it to its next process.

Without it, a kernel that was deleted or replaced while its host was out of reach would run on for a day beside its replacement.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from .agent.private import write_private

__all__ = ["NAME", "Unended", "find_unended", "read_unended", "runtime_folders", "write_unended"]

NAME = "unended-%s.json"
"""The file's name in the folder of a gateway's sockets; filled in is what tells gateways apart."""

_MOST = 1000
"""Attempts that are kept; the oldest go first, and their agents end them as orphans."""
_TEXT = 1000  # characters of a name
_CAUSE = 300  # characters of a cause; more of them by a thousand attempts would be more than the file may have
_LATEST = 1e12  # seconds since 1970
_SIZE = 4 * 1024 * 1024  # bytes of the file


@dataclass(frozen=True)
class Unended:
    """An attempt that is to be ended."""

    host: str
    kernel: str
    attempt: str
    since: float
    """When that was asked for, in seconds since 1970."""
    cause: str = ""
    """Why it has not ended yet; empty: an older release's file."""
    next_try: float = 0.0
    """When it is tried again, in seconds since 1970; 0: as soon as its host is back."""
    lease: int = 0
    """The number that was held of its kernel (see `Adopt` in protocol.py); 0: it is not known."""


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
    if not isinstance(row, list) or len(row) not in (4, 6, 7):
        raise ValueError("an entry is no list of seven")
    row += ["", 0.0, 0][len(row) - 4 :]
    host, kernel, attempt, since, cause, next_try, lease = row
    if not all(isinstance(name, str) and len(name) <= _TEXT for name in (host, kernel, attempt, cause)):
        raise ValueError("a name is no text, or too long")
    if not isinstance(lease, int) or isinstance(lease, bool) or not 0 <= lease <= 1 << 62:
        raise ValueError("a number of a lease is none")
    return Unended(host, kernel, attempt, _time(since), cause, _time(next_try), lease)


def _time(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError("a time is no number")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds <= _LATEST:  # never true of a NaN
        raise ValueError("a time is out of bounds")
    return seconds


def write_unended(path: Path, attempts: list[Unended]) -> None:
    """Have *path* say that *attempts* are to be ended, the newest thousand of them; nothing to end is no file. Raises OSError.

    Never more than is read again: of very long names, only as many of the newest are kept as the file may have.
    """
    if not attempts:
        path.unlink(missing_ok=True)
        return
    rows: list[str] = []
    size = len("[]")
    for attempt in reversed(attempts[-_MOST:]):
        # In ASCII: names and causes may have bytes in them that are no text, which UTF-8 cannot say.
        row = json.dumps(astuple(replace(attempt, cause=attempt.cause[:_CAUSE])))
        size += len(row) + len(", ")
        if size > _SIZE:
            break
        rows.append(row)
    write_private(path, f"[{', '.join(reversed(rows))}]".encode("ascii"))


def runtime_folders(given: str) -> list[Path]:
    """Return the folders of sockets of this user's gateways here: *given*, the runtime_dir setting, or those in /tmp."""
    if given:
        return [Path(given).expanduser()]
    return sorted(Path("/tmp").glob(f"eg-distributed-{os.getuid()}-*"))  # noqa: S108 - looked at by `find_unended`


def find_unended(folders: Iterable[Path]) -> tuple[list[Unended], dict[str, str]]:
    """Return what the files in *folders* say is to be ended, and by path why others cannot be read; for the command line.

    Folders that are not this user's alone say nothing.
    """
    found: list[Unended] = []
    errors: dict[str, str] = {}
    for folder in folders:
        try:
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
                continue
            paths = sorted(folder.glob(NAME % "*"))
        except OSError:  # it has just been removed, as a gateway that ends does
            continue
        for path in paths:
            try:
                found += read_unended(path)
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                errors[str(path)] = str(error)
    return found, errors
