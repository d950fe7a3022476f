"""Processes that play machines: known by pid and start time, and found by a mark in their environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from lab.drivers.local import programs
from lab.drivers.machines import Usage
from lab.errors import EnvironmentUnfit, LabNotReady
from lab.processes import Process, argv, environments, identify, look

MARK = "EG_DISTRIBUTED_LAB"
"""Every process of a machine has this variable, with the machine's folder as its value. Kernels and agents leave their
parent's session and process group on purpose, so neither of these would find them."""

CHAIN = 2
"""How many processes of `init.py` may stand above a machine's server."""


def has_proc() -> bool:
    """Return True if this machine tells what processes were started with, as Linux does in /proc."""
    return Path("/proc/self/environ").exists()


def require_proc() -> None:
    """Raise EnvironmentUnfit where processes can't be told apart; called before anything is started."""
    if not has_proc():
        raise EnvironmentUnfit(
            f"the local driver does not run on {sys.platform}",
            cause="it knows its processes by /proc",
            remedy="start a container engine and use `lab up --driver docker`",
        )


def belonging(folder: Path, roots: Iterable[Process] = ()) -> set[Process]:
    """Return all processes of the machines in *folder* (one machine's, or a whole lab's).

    These are the marked ones, the *roots*, and all their descendants: sshd writes its title over its environment, and a
    kernel may have been given one without the mark.
    """
    members = {root.pid for root in roots if root.status}
    # Start times first: of a pid that is another process's by the time its environment is read, the old identity is returned,
    # which no signal reaches.
    table = {pid: facts for pid, facts in look(psutil.pids()).items() if not facts.is_over}
    members |= {pid for pid, variables in environments().items() if _is_below(variables.get(MARK, ""), str(folder))}
    grown = True
    while grown:
        heirs = {pid for pid, facts in table.items() if facts.parent in members} - members
        members |= heirs
        grown = bool(heirs)
    members.discard(os.getpid())
    return {Process(pid, table[pid].started) for pid in members if pid in table}


def _is_below(place: str, folder: str) -> bool:
    return place == folder or place.startswith(f"{folder}/")


def usage(members: Iterable[Process]) -> Usage:
    """Add up processor time, resident memory and threads of *members*; those that end meanwhile count for nothing."""
    seconds, memory, threads = 0.0, 0, 0
    for member in members:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(member.pid)
            with process.oneshot():
                times, resident, count = process.cpu_times(), process.memory_info().rss, process.num_threads()
            seconds += times.user + times.system
            memory += resident
            threads += count
    return Usage(seconds, memory, threads)


def main_process(machine: Path) -> Process:
    """Return the main process that the machine's folder names; one that never was if it names none."""
    try:
        pid, started = json.loads((machine / "machine.json").read_text())["process"]
    except (OSError, ValueError, KeyError):
        return Process(0, 0)
    return Process(pid, started)


def chain(machine: Path) -> list[Process]:
    """Return the machine's main process and the firstborn below it, down to its SSH server: `init.py`, process 1, sshd."""
    found = [main_process(machine)]
    while True:
        children = _children(found[-1].pid)
        # Process 1 is a fork of the main process, with the same argv. It has adopted orphans, too, but its firstborn is
        # what it was made for. A server's children are sessions.
        if not children or len(found) == 1 + CHAIN or not programs.is_init(argv(found[-1].pid)):
            return found
        found.append(min(children, key=lambda process: (process.started, process.pid)))


def _children(parent: int) -> list[Process]:
    try:
        children = psutil.Process(parent).children()
    except psutil.Error:
        return []
    table = look(child.pid for child in children)
    return [Process(pid, facts.started) for pid, facts in table.items() if not facts.is_over]


def end_others(machine: Path, kept: Iterable[Process]) -> None:
    """SIGKILL all processes of a machine but *kept*; raise LabNotReady if one is still there after ten seconds."""
    spared, seen = set(kept), set[Process]()
    deadline = time.monotonic() + 10
    while True:
        seen |= belonging(machine, [main_process(machine), *seen]) - spared
        left = [process for process in seen if process.status]
        if not left:
            return
        if time.monotonic() > deadline:
            raise LabNotReady(f"processes of {machine.name} do not end", cause=f"pids {[each.pid for each in left]}")
        for process in left:
            process.signal(signal.SIGKILL)
        time.sleep(0.01)


def stop_all(machine: Path) -> None:
    """SIGSTOP all processes of a machine and wait until its main process stands; the kernel takes its time on a busy machine."""
    signal_all(machine, signal.SIGSTOP)
    main, deadline = main_process(machine), time.monotonic() + 5
    while main.status and not main.is_stopped and time.monotonic() < deadline:
        time.sleep(0.01)


def signal_all(machine: Path, number: int) -> None:
    """Send a signal to all processes of a machine."""
    for process in belonging(machine, [main_process(machine)]):
        process.signal(number)


def end_all(folder: Path, machines: Sequence[Path], *, grace: float = 5.0) -> int:
    """End all processes of *machines* below *folder*: SIGTERM, after *grace* seconds SIGKILL; return how many there were.

    Raises LabNotReady if one is still there ten seconds after that (a process in the kernel's hands).
    """
    kill_at = time.monotonic() + grace
    deadline = kill_at + 10
    asked: set[Process] = set()
    seen: set[Process] = set()
    while True:
        # What was seen once is ours to the end: an orphan without a mark is no descendant of anything any more.
        roots = [*seen, *map(main_process, machines)]
        left = {process for process in belonging(folder, roots) if process.status}
        seen |= left
        if not left:
            _reap(seen)
            return len(seen)
        now = time.monotonic()
        if now > deadline:
            pids = ", ".join(str(process.pid) for process in left)
            raise LabNotReady(f"processes of {folder.name} do not end", cause=f"pids {pids}")
        for process in left:
            if now >= kill_at:
                process.signal(signal.SIGKILL)
            elif process not in asked:
                asked.add(process)
                process.signal(signal.SIGTERM)
                # A stopped process hears SIGTERM only once it runs again.
                process.signal(signal.SIGCONT)
        _reap(left)
        time.sleep(0.05)


def _reap(processes: Iterable[Process]) -> None:
    """Collect those that are our own children: a zombie has no environment, but would keep its number."""
    for process in processes:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def spawn(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> Process:
    """Start a machine's main process in a session of its own, so that it outlives the command that started it."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env), cwd=cwd, start_new_session=True
        )
    # Nobody waits for it here: whoever finds it over reaps it (`_reap`), else init does after we are gone.
    child.returncode = 0
    found = identify(child.pid)
    return found or Process(child.pid, -1)
