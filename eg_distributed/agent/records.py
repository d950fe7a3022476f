"""Records of kernels that other agents have, or had: an agent that is ending, or an older release's that serves on.

Kernels outlive their agents. A record is taken over only once the agent that wrote it is gone; until then, its kernels are
neither ours nor dead.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import AbstractSet, Any, Optional

from ..protocol import ELSEWHERE, Description, Found
from ..wire import Check, Message, checked, flag, integer, items, number, one_of, optional, scalar, table, text
from . import processes

RECORD = "record.json"
LONGEST = 4096
"""Characters of a folder's path in a record; no system has longer ones."""


def _process(least: int) -> Check:
    """Return a check for a pid of *least* or more with when it started, both as `processes` has them."""
    pid, started = integer(least, 1 << 31), optional(text(256))

    def check(value: Any) -> Any:
        both = items(lambda each: each, 2, 2)(value)
        return pid(both[0]), started(both[1]) or ""

    return check


@dataclass(eq=False, repr=False)
class KernelRecord(Description):
    """A kernel's record, which any process of its user can write. What has a default is missing in an older release's."""

    agent: tuple[int, str] = checked(_process(1))
    """The agent that wrote it."""
    started: str = checked(text(256))
    transport: str = checked(one_of("ipc", "tcp", "launcher"))
    connection: Message = checked(table(scalar, 100))
    interrupt: tuple[int, str] = checked(_process(0))
    interrupt_signal: int = checked(integer(0, 64))
    keep_log: bool = checked(flag)
    log_start: int = checked(integer(0, 1 << 62))
    orphan_timeout: float = checked(number(0, 1e12))
    family: Any = checked(lambda value: value, None)
    """See `Family.read`."""
    listener: int = checked(integer(0, 65535), 0)
    temporary: str = checked(text(LONGEST), "/tmp")
    users: Optional[list[int]] = checked(optional(items(integer(0, 1 << 32))), None)
    log_base: int = checked(integer(0, 1 << 62), 0)
    end_time: float = checked(number(0, 1e12), 0.0)
    lease: int = checked(integer(0, 1 << 62), 1)


class Records:
    """The records below the folder *kernels*; owned by the agent."""

    def __init__(self, kernels: Path) -> None:
        self._kernels = kernels
        self.held: dict[str, Found] = {}
        """What living agents other than this one have, by the kernel's id, as of the last `look`."""
        self.over: list[Path] = []
        """Folders of attempts of this agent's own that it has no more, as of the last `look`."""
        self._has_looked = False

    def look(self, known: AbstractSet[str]) -> list[Path]:
        """Note which kernels other agents have; return the folders of those whose agents are gone. Called in a thread.

        *known* are the names of the folders that this agent uses itself. Raises nothing.
        """
        held: dict[str, Found] = {}
        free: list[Path] = []
        over: list[Path] = []
        for folder in sorted(self._kernels.glob("*")):
            if folder.name in known:
                continue
            # Of another boot, or of another machine on a shared home, which would take ours as well: looked at once, at first.
            agent, found = _read(folder / RECORD, any_boot=not self._has_looked)
            if found is not None and agent is not None:
                held[found.kernel] = found
            elif found is not None:
                free.append(folder)
            elif agent is not None:
                over.append(folder)
        self.held, self.over, self._has_looked = held, over, True
        return free


def _read(path: Path, *, any_boot: bool) -> tuple[Optional[int], Optional[Found]]:
    """Return the pid of the living agent that wrote a record (None: it is gone), and what the record says, if anything.

    Of this agent's own only the pid. Without *any_boot*, a record that was written before this machine was started, or on
    another one, says nothing.
    """
    try:
        record = json.loads(path.read_bytes())
        pid, started = record["agent"]
        if (pid, started) == (os.getpid(), processes.start_time(os.getpid())):
            return os.getpid(), None
        if not any_boot and not processes.is_same_boot(started or ""):
            return None, None
        # Before the look at the process: one that ends in between is found to be gone, and its record is whole.
        found = Found.read({**record, "state": ELSEWHERE})
        return (pid if processes.is_running(pid, started or "") else None), found
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, None
