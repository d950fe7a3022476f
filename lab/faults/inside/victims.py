"""One named process of a node: stopped, continued, killed."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from lab.faults.inside.steps import StepFailed, pids, stat, write


def named(pattern: str) -> int:
    """Return the one process whose command line holds *pattern*, or whose pid it is; not one of those that look for it."""
    own, pid = set(), os.getpid()
    while pid and (found := stat(pid)):
        own.add(pid)
        pid = found[2]
    matching = []
    for pid in sorted(set(pids()) - own):
        with contextlib.suppress(OSError):
            line = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(pid) == pattern or (not pattern.isdigit() and pattern in line):
                matching.append(pid)
    if len(matching) != 1:
        raise StepFailed(f"{len(matching)} processes match {pattern!r}, and it has to be one")
    return matching[0]


def kill_named(pattern: str, name: str) -> None:
    """Send a signal to the process that *pattern* names."""
    os.kill(named(pattern), getattr(signal, f"SIG{name}"))


def stop_named(folder: str, pattern: str) -> None:
    """Stop the process that *pattern* names, and note which it is."""
    pid = named(pattern)
    found = stat(pid)
    if found is None or found[1] in "TtZX":
        raise StepFailed(f"process {pid} does not run")
    write(f"{folder}/stopped", f"{pid} {found[3]}")
    os.kill(pid, signal.SIGSTOP)


def continue_named(folder: str) -> None:
    """Undo `stop_named`, if that process is still there."""
    note = Path(folder, "stopped")
    if note.exists():
        pid, started = map(int, note.read_text().split())
        if (found := stat(pid)) and found[3] == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        note.unlink()
