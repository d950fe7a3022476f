"""Processes of this machine, known by pid and start time.

psutil reads /proc for all rooms of the lab's own side. What runs inside machines (init.py, supervisor.py, faults/inside) has
Python's standard library alone, and reads /proc by `lab.faults.inside.steps`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import psutil

TICKS: Final = os.sysconf("SC_CLK_TCK")
"""Clock ticks in a second, the unit of start times."""
_OVER: Final = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
_STOPPED: Final = {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}


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
        """What it does, in psutil's words (`running`, `stopped` …); empty when it is over or another process has its pid."""
        found = look([self.pid]).get(self.pid)
        return found.status if found is not None and found.started == self.started and not found.is_over else ""

    @property
    def is_stopped(self) -> bool:
        """Return True if it stands still by a signal or a tracer."""
        return self.status in _STOPPED

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
        return self.status in _OVER


def look(pids: Iterable[int]) -> dict[int, Facts]:
    """Return the facts of those of *pids* that there are, zombies included.

    psutil tells start times in seconds of the clock: boot time plus ticks. The boot time moves when the clock is set, so what was
    added is taken off again, and all is read once more if it moved meanwhile.
    """
    wanted = list(pids)
    while True:
        boot = psutil.boot_time()
        found = {pid: facts for pid in wanted if (facts := _facts(pid, boot)) is not None}
        if psutil.boot_time() == boot:
            return found


def _facts(pid: int, boot: float) -> Facts | None:
    try:
        # Made after *boot* was read: psutil keeps a start time with the object, and before 7.1 the boot time for all of them.
        process = psutil.Process(pid)
        with process.oneshot():
            return Facts(process.status(), process.ppid(), round((process.create_time() - boot) * TICKS))
    except (psutil.Error, ValueError):
        return None


def identify(pid: int) -> Process | None:
    """Return *pid* with its start time, None if it is gone."""
    found = look([pid]).get(pid)
    return Process(pid, found.started) if found else None


def own() -> Process:
    """Return the calling process."""
    found = identify(os.getpid())
    assert found is not None
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
