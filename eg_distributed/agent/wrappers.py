"""Which process is the kernel, where argv begins with another program: `conda run`, `setsid`, `srun`, a login shell.

The naive way is to take the process that was executed for the kernel, and to signal its group. An interrupt then ends a wrapper
that is a Python program (and with it the kernel), and never reaches a kernel that its wrapper put into another session; and
ending the group leaves that kernel on the node, busy, for ever. So the kernel is the process that listens on its sockets: it is
interrupted, with what it runs in the foreground, and never its wrappers; all of them are ended.

Until it listens, the kernel is looked for among the processes whose command line has its connection file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import Any, Optional

from ..wire import integer, items, text
from . import processes
from .processes import Process

_LEFTOVERS_GRACE = 1.0  # seconds between SIGTERM and SIGKILL
_ROUNDS = 10  # how often what is left is killed, since processes may have been made meanwhile


class Family:
    """The processes of one kernel: the one that was executed, the kernel, and the wrappers between the two.

    *kernel* is None until it is known. A `group` of 0 is one that others have a part in: a server that starts processes for
    its clients, say.
    """

    def __init__(self, pid: int, started: str) -> None:
        self.executed = Process(pid, started, pid, pid, 0)
        self.kernel: Optional[Process] = None
        self.wrappers: list[Process] = []

    @property
    def is_wrapped(self) -> bool:
        """Return True if the kernel is known, and is not the process that was executed."""
        return self.kernel is not None and self.kernel.pid != self.executed.pid

    # -- finding the kernel --------------------------------------------------------------------------------------

    def learn(self, listening: Optional[int], connection_file: str) -> None:
        """Take the process that is *listening* for the kernel; without one, look at the tree of processes. Raises nothing."""
        if listening == self.executed.pid:  # no wrapper, as a rule: no look at all processes delays that start
            self.kernel, self.wrappers = self.executed, []
            return
        running = processes.all_running()
        found = None if listening is None else running.get(listening)
        if found is None or not self._is_younger(found):  # a server that was there before is not ours to end
            found = self._deepest(running, connection_file)
        self._take(found, running)

    def find_starting(self, connection_file: str) -> bool:
        """Look for processes that were started with *connection_file*, besides the executed one; return True if any run.

        They count as wrappers, until one of them listens. Called only while the kernel starts: later on, a console that
        a user opens on the node would have that file as well.
        """
        running = processes.all_running()
        named = self._named(running, connection_file)
        known = {each.pid for each in named}
        named += [each for each in self.wrappers if each.pid not in known]
        self.wrappers = self._with_groups(named, running)
        return any(each.pid in running for each in self.wrappers if each.pid != self.executed.pid)

    def _take(self, found: Optional[Process], running: dict[int, Process]) -> None:
        if found is None:
            self.kernel = self.executed
            return
        above = _ancestors(found, running)
        pids = [each.pid for each in above]
        if self.executed.pid in pids:
            above = above[: pids.index(self.executed.pid) + 1]
        else:  # its wrapper has left it: what else of that session stands above it belongs to it
            above = [each for each in above if each.session == found.session and self._is_younger(each)]
        kernel, *self.wrappers = self._with_groups([found, *above], running)
        self.kernel = kernel

    def _deepest(self, running: dict[int, Process], connection_file: str) -> Optional[Process]:
        """Follow the processes that were started with *connection_file* from the executed one down, as long as there is one."""
        named = self._named(running, connection_file)
        found = running.get(self.executed.pid)
        while found is not None:
            below = [each for each in named if each.parent == found.pid]
            if len(below) != 1:
                return found
            found = below[0]
        return None

    def _named(self, running: dict[int, Process], connection_file: str) -> list[Process]:
        wanted = os.fsencode(connection_file)
        younger = [each for each in running.values() if self._is_younger(each)]
        lines = processes.command_lines(younger)
        return [each for each in younger if wanted in lines[each.pid]]

    def _is_younger(self, found: Process) -> bool:
        """Return True if *found* was started after the executed process, or is that process."""
        return processes.ticks(found.started) >= processes.ticks(self.executed.started)

    def _with_groups(self, found: list[Process], running: dict[int, Process]) -> list[Process]:
        """Return *found*, without the groups that are in a session of others: one whose leader is none of them, and runs."""
        ours = {self.executed.pid, *(each.pid for each in found)}
        return [
            each if each.session in ours or each.session not in running else each._replace(group=0) for each in found
        ]

    def _members(self) -> list[Process]:
        return [self.executed, *self.wrappers, *([self.kernel] if self.kernel is not None else [])]

    def is_running(self) -> bool:
        """Return True if the kernel runs; while it is not known, if the executed process does."""
        each = self.kernel or self.executed
        return processes.is_running(each.pid, each.started)

    # -- signals -------------------------------------------------------------------------------------------------

    def interrupt(self, signum: int) -> bool:
        """Signal the kernel and those of its group that it started, and no wrapper; return False if it has ended.

        Children that a cell left in the background are in that group as well, and orphans of theirs: a local Jupyter
        interrupts them, too. What a wrapper has started beside the kernel, such as `tee` for its output, is none of them.
        """
        kernel = self.kernel
        if kernel is None or kernel.pid == self.executed.pid:
            return processes.signal_process(self.executed.pid, self.executed.started, signum, group=True)
        running = processes.all_running()
        if kernel.pid not in running or running[kernel.pid].started != kernel.started:
            return False
        group, wrappers = running[kernel.pid].group, {each.pid for each in self.wrappers}
        delivered = processes.signal_one(kernel.pid, kernel.started, signum)
        for each in running.values() if kernel.group else ():
            if each.group == group and each.pid not in wrappers and each.pid != kernel.pid:
                above = [one.pid for one in _ancestors(each, running)]
                below_kernel = kernel.pid in above
                if below_kernel or not wrappers.intersection(above):
                    processes.signal_one(each.pid, each.started, signum)
        return delivered

    def end(self, signum: int) -> bool:
        """Signal the groups of the kernel and of its wrappers; return False if nothing was there to be signalled."""
        done = set()
        if processes.signal_process(self.executed.pid, self.executed.started, signum, group=True):
            done.add(self.executed.pid)
        delivered = bool(done)
        for each in self._members()[1:]:
            found = processes.look(each.pid)
            if found is None or found.started != each.started or found.group in done:
                continue
            if each.group and found.group != os.getpgrp():
                done.add(found.group)
                delivered |= processes.end_group(found.group, signum)
            else:
                delivered |= processes.signal_one(each.pid, each.started, signum)
        return delivered

    # -- what is left --------------------------------------------------------------------------------------------

    def rest(self) -> list[Process]:
        """Return what of the groups still runs: children of cells, wrappers that wait, listeners of launchers.

        A group is told by its number and by its session, and by being younger than the executed process, since numbers are
        used again.
        """
        if self.executed.pid <= 0 or not processes.is_same_boot(self.executed.started):
            return []
        groups = {each.group: each.session for each in self._members() if each.group}
        found = (each for each in processes.all_running().values() if self._is_younger(each))
        return [each for each in found if each.group == self.executed.pid or groups.get(each.group) == each.session]

    async def end_rest(self, rest: list[Process]) -> None:
        """End *rest*, which `rest` returned just now: SIGTERM, and SIGKILL a second later for what is there then."""
        if not rest:
            return
        for each in rest:
            processes.signal_one(each.pid, each.started, signal.SIGTERM)
        deadline = time.monotonic() + _LEFTOVERS_GRACE
        while (left := await processes.in_thread(self.rest)) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for _ in range(_ROUNDS):
            for each in left:
                processes.signal_one(each.pid, each.started, signal.SIGKILL)
            left = await processes.in_thread(self.rest)
            if not left:
                return
            await asyncio.sleep(0.02)

    # -- the record on disk --------------------------------------------------------------------------------------

    def write(self) -> dict[str, Any]:
        """Return what a record has of the kernel and its wrappers."""
        return {"kernel": self.kernel and list(self.kernel), "wrappers": [list(each) for each in self.wrappers]}

    def read(self, record: Any) -> None:
        """Take what `write` returned; anything else, such as a record of an older release, leaves the kernel unknown."""
        with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
            kernel, wrappers = record["kernel"], [_process(each) for each in record["wrappers"]]
            self.kernel, self.wrappers = _process(kernel) if kernel else None, wrappers


def _process(value: Any) -> Process:
    """Return the process in a record; raises Malformed and TypeError."""
    pid, started, *others = items(lambda each: each, 5, 5)(value)
    number = integer(0, 1 << 31)
    return Process(integer(1, 1 << 31)(pid), text(256)(started), *(number(each) for each in others))


def _ancestors(found: Process, running: dict[int, Process]) -> list[Process]:
    """Return the processes above *found*, its parent first."""
    above: list[Process] = []
    seen = {found.pid}
    parent = running.get(found.parent)
    while parent is not None and parent.pid not in seen:  # parents may have changed while they were read
        seen.add(parent.pid)
        above.append(parent)
        parent = running.get(parent.parent)
    return above
