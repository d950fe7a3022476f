"""Processes of this machine, known by pid and start time.

psutil tells the lab's own side what a process was started with, what it uses and which sockets it has. Its start time is in
seconds of the clock, which move when the clock is set; labs keep ticks since boot on disk. And it takes three looks at a process
for state, parent and start time together, of which a reset of a local machine takes a thousand. So these three are read here, by
the one parser of /proc/PID/stat on this side. What runs inside machines (faults/inside) has one of its own, on the standard
library alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Process:
    """A pid that can't be mistaken for a later process of the same number. *started* is in clock ticks since boot.

    Labs keep both numbers on disk. Ticks since boot, as the kernel has them, are the only start time that stays the same when
    the clock is set, so they are what is kept and compared.
    """

    pid: int
    started: int

    @property
    def numbers(self) -> list[int]:
        """The pair that files keep: `Process(*numbers)` is this one again."""
        return [self.pid, self.started]

    @property
    def status(self) -> str:
        """The kernel's letter (R, S, D, T …); empty when it is over or another process has its pid."""
        found = look([self.pid]).get(self.pid)
        return found.status if found is not None and found.started == self.started and not found.is_over else ""

    @property
    def is_stopped(self) -> bool:
        """Return True if it stands still by a signal or a tracer."""
        return self.status in {"T", "t"}

    def signal(self, number: int) -> None:
        """Send a signal if the process is still the one that it was."""
        if self.status:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class Facts:
    """One process as it was when it was looked at; *started* as in `Process`."""

    status: str
    parent: int
    started: int

    @property
    def is_over(self) -> bool:
        """Return True if nothing is left of it but its exit status."""
        return self.status in {"Z", "X"}


def look(pids: Iterable[int]) -> dict[int, Facts]:
    """Return the facts of those of *pids* that there are, zombies included."""
    return {pid: facts for pid in pids if (facts := _facts(pid)) is not None}


def _facts(pid: int) -> Facts | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 -- a third of the time that a Path takes
            text = file.read()
    except OSError:
        return None
    # The name in parentheses may hold blanks and parentheses itself.
    fields = text.rpartition(b")")[2].split()
    return Facts(fields[0].decode(), int(fields[1]), int(fields[19]))


def identify(pid: int) -> Process | None:
    """Return *pid* with its start time, None if it is gone."""
    found = look([pid]).get(pid)
    return Process(pid, found.started) if found else None


def own() -> Process:
    """Return the calling process."""
    found = identify(os.getpid())
    assert found is not None
    return found


def environments() -> dict[int, dict[str, str]]:
    """Return the environment of each process that there is and that may be looked into; as `environment`."""
    found = {}
    # psutil keeps these objects from one call to the next, which halves the time; environments are read again each time.
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found[process.pid] = process.environ()
    return found


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with; empty where it is gone or may not be read."""
    try:
        return psutil.Process(pid).environ()
    except (psutil.Error, ValueError):
        return {}


def argv(pid: int) -> list[str]:
    """Return the command line of a process; empty when there is none."""
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, ValueError):
        return []
