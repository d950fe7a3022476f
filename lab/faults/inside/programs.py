"""Programs of a fault's own on a node: started, put into the way of packets, told to leave."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from lab.faults.inside.steps import SECONDS, StepFailed, run, stat, write

LEVELS = 16
OURS = 1 << 30
"""The bit that all marks of ours have, above those of the levels."""


def spawn(folder: str, name: str, *argv: str) -> None:
    """Start a program of the fault's own beside everything, wait until it says `ready`, and note who it is.

    Its last argument is the mark for its packets. Later programs stand before earlier ones: each has a level, and the mark
    says which levels a packet has behind it, so that several faults on one port are passed one after the other.
    """
    levels = [int(path.read_text()) for path in Path(folder).parent.glob("*/*.level")]
    level = max(levels, default=-1) + 1
    if level >= LEVELS:
        # Lower ones may be free, but what stands there would be passed by what stands before it.
        raise StepFailed(
            f"the latest fault of this sort has the last of {LEVELS} levels on the node: heal that one first"
        )
    mark = OURS | sum(1 << other for other in range(level, LEVELS))
    reader, writer = os.pipe()
    log = Path(folder, f"{name}.log").open("ab")  # noqa: SIM115 -- the child's
    child = subprocess.Popen(
        [sys.executable, "-I", f"{folder}/{name}.py", *argv, str(mark)],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=log,
        start_new_session=True,
        cwd="/",
    )
    os.close(writer)
    with os.fdopen(reader) as pipe:  # ends with the first line or with the child
        line = pipe.readline().strip() if select.select([pipe], [], [], SECONDS)[0] else ""
    if not line.startswith("ready"):
        child.kill()
        raise StepFailed(f"{name}: {line or Path(folder, f'{name}.log').read_text()[-300:].strip() or 'it ended'}")
    found = stat(child.pid)
    write(f"{folder}/{name}.pid", f"{child.pid} {found[3] if found else -1}")
    write(f"{folder}/{name}.level", str(level))
    write(f"{folder}/{name}.port", line.partition(" ")[2])
    child.returncode = 0  # nobody waits for it here: init does


def redirect(folder: str, name: str, chain: str, protocol: str, port: str) -> None:
    """Lead a port's packets to what `spawn` started: TCP that comes in, UDP that goes out.

    What other faults' programs send on passes the levels that it has not behind it yet.
    """
    level = int(Path(folder, f"{name}.level").read_text())
    target = Path(folder, f"{name}.port").read_text()
    base = ["iptables", "-w", "5", "-t", "nat"]
    run([*base, "-N", chain])
    run([*base, "-A", chain, "-p", protocol, "--dport", port, "-j", "REDIRECT", "--to-ports", target])
    if protocol == "tcp":
        run([*base, "-I", "PREROUTING", "-j", chain])
        value, mask = OURS, OURS | 1 << level
    else:
        value, mask = 0, 1 << level
    run([*base, "-I", "OUTPUT", "-m", "mark", "--mark", f"{value:#x}/{mask:#x}", "-j", chain])


def dismiss(folder: str, name: str) -> None:
    """Tell what `spawn` started to do no more harm and to leave when it can."""
    note = Path(folder, f"{name}.pid")
    if note.exists():
        pid, started = map(int, note.read_text().split())
        if (found := stat(pid)) and found[3] == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        note.unlink()


def end(folder: str, name: str) -> None:
    """End what `spawn` started: SIGTERM, so that it puts right what it has changed, after two seconds SIGKILL."""
    note = Path(folder, f"{name}.pid")
    if not note.exists():
        return
    pid, started = map(int, note.read_text().split())
    deadline = time.monotonic() + 2
    sent = 0
    while (found := stat(pid)) and found[3] == started and found[1] not in "ZX":
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        if number != sent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        sent = number
        time.sleep(0.01)
    note.unlink(missing_ok=True)


def python(program: str, *argv: str) -> None:
    """Run a program of the fault's own to its end, if it is there."""
    if Path(program).exists():
        run([sys.executable, "-I", program, *argv])
