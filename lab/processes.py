"""Processes of this machine, known by pid and start time."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A pid that can't be mistaken for a later process of the same number. *started* is in clock ticks since boot."""

    pid: int
    started: int

    @property
    def status(self) -> str:
        """The kernel's letter (R, S, D, T …), empty when the process is over or is somebody else's by now."""
        found = stat(self.pid)
        return found[0] if found is not None and found[2] == self.started and found[0] not in "ZX" else ""

    def signal(self, number: int) -> None:
        """Send a signal if the process is still the one that it was."""
        if self.status:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def stat(pid: int) -> tuple[str, int, int] | None:
    """Return (state, parent, start time) of a process; None when there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses itself.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), int(fields[19])


def identify(pid: int) -> Process | None:
    """Return *pid* with its start time, None if it is gone."""
    found = stat(pid)
    return Process(pid, found[2]) if found else None
