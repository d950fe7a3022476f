"""Logs of kernels that are gone: kept on the node for a day, in a bounded number and size, for `jupyter distributed logs`.

Each is two files in the folder `logs` beside the kernels' own: `NAME.log`, as the kernel wrote it, and `NAME.json`, which says
whose it is. The operator's log files (`Distributed.log_dir`) stay where they are, and only the latter is made. All of it may be
called in threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Optional

from ..protocol import FindLogs, LogEntry, LogPart
from ..wire import integer, text
from .logs import cap, part
from .private import write_private

KEPT_FOR = 86400.0
"""Seconds after its end for which a kernel's log is kept."""
KEPT_LOGS = 200
"""Logs that are kept at most: a kernel that is restarted again and again has as many."""
KEPT_SIZE = 2 * 1024 * 1024
"""Bytes of one log that is kept; of a longer one, the last half of that."""
KEPT_BYTES = 64 * 1024 * 1024
"""Bytes of all that are kept."""
_place, _path = integer(0, 1 << 62), text(4096)
_CUT_SHORT = 60.0  # seconds for which a log without a record may be one that is just being kept


class KeptLog:
    """One start's log: *entry* says whose, *path* is the file; *start* and *base* as in `logs.part`.

    *end* is the position of its end where the file is ours; 0 for an operator's, to which later starts append. `stop` is where
    the next of them begins there, if there is one.
    """

    def __init__(self, entry: LogEntry, path: Path, start: int, base: int, end: int = 0) -> None:
        self.entry = entry
        self.path = path
        self.start = start
        self.base = base
        self.end = end
        self.stop: Optional[int] = None

    def read_part(self, position: int, size: int) -> LogPart:
        """Return what the kernel printed from *position* on, up to *size* bytes; raises OSError."""
        base = self.base
        if self.end:  # what was cut off since it was kept
            base = max(base, self.end - self.path.stat().st_size)
        told, behind = part(self.path, self.start, base, position, size, final=True, stop=self.stop)
        return LogPart(told, behind, behind == position, self.entry.exit_code)


def folder_of(home: Path) -> Path:
    """Return where the agent in *home* keeps logs."""
    return home / "logs"


def keep(home: Path, name: str, log: KeptLog, *, move: bool) -> None:
    """Keep *log* under a name that begins with *name*; *move*: its file as well. Never raises: a full disk costs the log."""
    folder = folder_of(home)
    path = folder / f"{name}-{os.urandom(3).hex()}.log"
    record = {**log.entry.write(), "log_path": str(log.path), "log_start": log.start, "log_base": log.base}
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if move:
            os.utime(log.path)  # a sweep under way takes a file without a record for a leftover if it is old
            os.rename(log.path, path)
            record.update(log_path=str(path), log_end=log.base + path.stat().st_size)
        try:
            write_private(path.with_suffix(".json"), json.dumps(record).encode())
        except OSError:
            path.unlink()


def find(home: Path, kernel: str) -> list[KeptLog]:
    """Return the kept logs of kernels whose ids begin with *kernel*, the newest first; raises OSError."""
    found = [log for path in _records(folder_of(home)) if (log := _load(path)) is not None]
    matching = [log for log in found if log.entry.kernel.startswith(kernel)]
    return sorted(matching, key=lambda log: -log.entry.start_time)[: FindLogs.MOST]


def sweep(home: Path) -> None:
    """Remove what is kept for too long, or too much; raises OSError."""
    folder = folder_of(home)
    records = _records(folder)
    total, now = 0, time.time()
    for number, record in enumerate(records):
        log = record.with_suffix(".log")
        with contextlib.suppress(FileNotFoundError):  # an operator's file is not here
            cap(log, KEPT_SIZE)
            total += log.stat().st_size
        if number >= KEPT_LOGS or total > KEPT_BYTES or now - record.stat().st_mtime > KEPT_FOR:
            log.unlink(missing_ok=True)
            record.unlink(missing_ok=True)
    names = {record.stem for record in records}
    for path in folder.glob("*"):
        if path.stem not in names and now - path.stat().st_mtime > _CUT_SHORT:
            path.unlink(missing_ok=True)


def _records(folder: Path) -> list[Path]:
    """Return the records in *folder*, the newest first."""
    found = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def _load(path: Path) -> Optional[KeptLog]:
    try:
        record = json.loads(path.read_bytes())
        entry = LogEntry.read(record)
        file = Path(_path(record["log_path"]))
        return KeptLog(
            entry, file, _place(record["log_start"]), _place(record["log_base"]), _place(record.get("log_end", 0))
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # one that is damaged hides no other
        return None
