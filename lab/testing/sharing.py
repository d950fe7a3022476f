"""Who uses a lab that a test session or a cluster has made: whoever comes shares it, and it goes with the last of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from lab import lease
from lab.drivers.choice import find_driver
from lab.errors import LabNotFound
from lab.lab import Lab
from lab.lifetime import holding
from lab.lifetime.removal import remove
from lab.process_file import ProcessFile
from lab.processes import Process, identify
from lab.state import StateFolder

FILE: Final = "users.json"


class Users:
    """The users of one lab, in its folder. A lab that a person made has no such file, and is nobody's to remove.

    A user is a process and a *token*, since one process may use a lab several times. Whoever attaches, makes or leaves
    holds the lock (`held`): so that nobody meets a half-made lab, and nobody's lab is removed under it.
    """

    def __init__(self, lab_name: str) -> None:
        self.lab_name = lab_name
        self._file = ProcessFile(lab_name, FILE, kind="session", what=f"the test session's lab {lab_name}")

    def held(self) -> AbstractContextManager[None]:
        """Hold the lab's lock among all sessions and clusters; raise LabConflict when it isn't free in time."""
        return self._file.locked()

    def living(self) -> list[Process] | None:
        """Return the processes that use the lab; None if no session or cluster made it, or nobody did."""
        found = self._read()
        return None if found is None else [Process(pid, started) for pid, started, _ in found]

    def attach_or_make(self, token: str, make: Callable[[], Lab], *, pid: int | None = None, seconds: float) -> Lab:
        """Return the lab if it is there, else what *make* returns; *pid* (default: the calling process) uses it from now on.

        What is made belongs to that process, by a lease of *seconds* (see lab/lifetime). What *make* raises is passed on, with
        the lab as half-made as it is. Called with the lock held.
        """
        if self.living() == []:
            # All were killed; its keeper is about to do the same.
            self.remove()
        with contextlib.suppress(LabNotFound):
            find_driver(self.lab_name, StateFolder(self.lab_name))
            found = Lab.attach(self.lab_name)
            if self.living() is not None:
                self._join(token, pid)
            return found
        holding.hold(self.lab_name, pid=pid, seconds=seconds)
        self._join(token, pid)
        return make()

    def _join(self, token: str, pid: int | None) -> None:
        me = [*_process(pid), token]
        rest = [each for each in self._read() or [] if each != me]
        self._file.write([*rest, me])

    def is_one(self, token: str, pid: int | None = None) -> bool:
        """Whether *pid* uses the lab by *token*."""
        return [*_process(pid), token] in (self._read() or [])

    def leave(self, token: str, *, pid: int | None = None) -> None:
        """Use the lab no more; the last one removes it. Fine for who doesn't use it. Called with the lock held."""
        if not self.is_one(token, pid):
            return
        rest = [each for each in self._read() or [] if each != [*_process(pid), token]]
        if not rest:
            self.remove()
            return
        self._file.write(rest)
        owner = lease.read(self.lab_name)
        if owner is not None and [owner.pid, owner.started] not in [each[:2] for each in rest]:
            # The lab is another's from now on: it has to outlive who made it.
            holding.hold(self.lab_name, pid=rest[0][0], seconds=owner.seconds)

    def forget(self) -> None:
        """Let the lab stay whoever leaves; called by `--lab-keep`, with the lock held."""
        self._file.remove()

    def remove(self) -> None:
        """Remove the lab, whole or half-made."""
        remove(self.lab_name)

    def _read(self) -> list[list[Any]] | None:
        """Return (pid, start time, token) of each user that lives."""
        found = self._file.read()
        return None if found is None else [each for each in found if Process(each[0], each[1]).status]


def _process(pid: int | None) -> list[int]:
    found = identify(os.getpid() if pid is None else pid)
    return found.numbers if found else [0, 0]
