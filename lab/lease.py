"""The lab's own lease: whose it is and until when, so that nothing outlives its owner.

A lab that a test session made belongs to a process. A *keeper*, a small process of its own session beside the owner, waits
for the owner's end and then removes the lab: also when the owner was killed and could not do it. While the owner lives, the
keeper puts off the day on which each machine ends itself (`/run/lab/lease`), so that the lab is over as well when owner and
keeper are killed together. A reaper container was rejected: it needs an image and the engine's socket, and has one life for
each process instead of one for each lab.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from lab import events
from lab.drivers.local.processes import Process, identify
from lab.drivers.machines import Machine
from lab.errors import LabError, LabUsageError
from lab.names import LABEL, check_name
from lab.state import StateFolder

if TYPE_CHECKING:
    from lab.inventory import Inventory

LABEL_OWNER: Final = f"{LABEL}.owner"
"""`user@host/pid/start`; pid and start are 0 for a lab that belongs to a person and no process."""
LABEL_EXPIRES: Final = f"{LABEL}.expires"
"""End of the lease's first term, UNIX seconds. A label can't be renewed: see `Lease.is_over`."""

TERM_SECONDS: Final = 60.0
"""How long a lab lives on without its keeper. Renewed at a third of it: two renewals may fail on a busy machine."""
FILE: Final = "lease.json"
NEVER: Final = 0.0


@dataclass(frozen=True)
class Lease:
    """Whose a lab is: a process (*pid* and *started*, in clock ticks since boot) of *owner* on *host*, or a person (pid 0).

    *expires* is the end of the current term (UNIX seconds); *seconds* is how far each renewal reaches, 0 where nothing renews.
    """

    owner: str
    host: str
    pid: int = 0
    started: int = 0
    seconds: float = 0
    expires: float | None = None

    @property
    def holder(self) -> str:
        """The label's text."""
        return f"{self.owner}@{self.host}/{self.pid}/{self.started}"

    @property
    def process(self) -> Process | None:
        """The owning process, if there is one and it would be on this machine."""
        return Process(self.pid, self.started) if self.pid and self.host == socket.gethostname() else None

    def is_over(self) -> bool:
        """Say whether the lab may go: its owner's process has ended, or a lease of fixed length has run out.

        A renewed lease whose owner can't be seen from here (another host, another container) is never over by what a
        label says: the label tells the first term only. Its machines end themselves.
        """
        if self.pid:
            process = self.process
            return process is not None and not process.status
        return self.expires is not None and time.time() > self.expires


def mine(pid: int | None = None) -> Lease:
    """Return a lease of this user's process *pid* (default: the calling one), without a term yet."""
    process = identify(os.getpid() if pid is None else pid)
    if process is None:
        raise LabUsageError(f"there is no process {pid} to own a lab")
    return Lease(_user(), socket.gethostname(), process.pid, process.started)


def me() -> str:
    """Return `user@host`, as labels name who made a lab."""
    return f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A uid without a name, as in many a container.
        return str(os.getuid())


# -- what is written where ---------------------------------------------------------------------------------------------


def read(lab_name: str) -> Lease | None:
    """Return the lease of a lab of this user by its folder; None if it has none (it stays until `lab down`)."""
    found = _read(lab_name)
    return _lease(found) if found else None


def expiry(lab: Inventory | str) -> float | None:
    """Return when the lab's machines end themselves unless the lease is renewed (UNIX seconds); None means never."""
    found = read(lab if isinstance(lab, str) else lab.name)
    return found.expires if found else None


def labels(lab_name: str) -> dict[str, str]:
    """Return the labels for what a driver makes now: owner and first term; none for a lab without a lease."""
    found = read(lab_name)
    if found is None or found.expires is None:
        return {}
    return {LABEL_OWNER: found.holder, LABEL_EXPIRES: f"{found.expires:.0f}"}


def from_labels(found: Mapping[str, str]) -> Lease | None:
    """Return the lease that labels tell; None if they tell none, or something that no lab wrote. Called by `lab ls` and `gc`."""
    try:
        who, pid, started = found[LABEL_OWNER].rsplit("/", 2)
        owner, _, host = who.rpartition("@")
        return Lease(owner, host, int(pid), int(started), expires=float(found[LABEL_EXPIRES]))
    except (KeyError, ValueError):
        return None


def _read(lab_name: str) -> dict[str, Any]:
    try:
        found = json.loads((StateFolder(check_name(lab_name)).path / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lease(found: Mapping[str, Any]) -> Lease | None:
    try:
        return Lease(**{name: found[name] for name in Lease.__dataclass_fields__})
    except (KeyError, TypeError):
        return None


def _write(lab_name: str, lease: Lease, keeper: Process | None) -> None:
    folder = StateFolder(lab_name)
    kept = asdict(lease) | {"keeper": [keeper.pid, keeper.started] if keeper else None}
    folder.write(folder.path / FILE, json.dumps(kept))


def renew(lab_name: str, keeper: Process) -> bool:
    """Write the next term of a lease that *keeper* keeps; False if it doesn't (any more). Called by the keeper alone."""
    found = _read(lab_name)
    lease = _lease(found)
    if lease is None or found.get("keeper") != [keeper.pid, keeper.started]:
        return False
    path = StateFolder(lab_name).path / FILE
    partial = path.with_suffix(".renewed")
    try:
        # Not by StateFolder.write: that would bring the folder of a removed lab back.
        partial.write_text(json.dumps(found | {"expires": time.time() + lease.seconds}))
        partial.replace(path)
    except OSError:
        return False
    return True


# -- taking and giving back --------------------------------------------------------------------------------------------


def hold(lab_name: str, *, pid: int | None = None, seconds: float = TERM_SECONDS) -> Lease:
    """Make the lab *lab_name* belong to the process *pid* (default: the calling one); call it before `Lab.up`.

    From now on the lab is removed when that process ends, however it ends. Called by the pytest plugin and by SSHCluster. The
    same call again changes the owner and the term.
    """
    check_name(lab_name)
    owner = mine(pid)
    end_keeper(lab_name)
    lease = Lease(owner.owner, owner.host, owner.pid, owner.started, seconds, time.time() + seconds)
    _start_keeper(lab_name, lease)
    events.record(lab_name, "lease.held", owner=lease.holder, seconds=seconds)
    return lease


def _start_keeper(lab_name: str, lease: Lease) -> None:
    """Write the lease down and start who watches over it. It outlives this process on purpose."""
    _write(lab_name, lease, None)
    argv = [sys.executable, "-m", "lab.lifetime.keeper", lab_name]
    log = StateFolder(lab_name).path / "keeper.log"
    with log.open("ab") as out:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True, close_fds=True
        )
    # Nobody here waits for it, and Python is not to warn about that.
    child.returncode = 0
    _write(lab_name, lease, identify(child.pid))


def grant(lab_name: str, seconds: float) -> Lease:
    """Let the lab *lab_name* live for *seconds* from now, whoever is there then; called by `lab up --lease`, before `Lab.up`.

    A keeper removes it then; its machines end themselves as well, should the keeper be killed.
    """
    end_keeper(check_name(lab_name))
    lease = Lease(_user(), socket.gethostname(), seconds=0, expires=time.time() + seconds)
    _start_keeper(lab_name, lease)
    events.record(lab_name, "lease.granted", owner=lease.holder, seconds=seconds)
    return lease


def release(lab_name: str, lab: Inventory | None = None) -> None:
    """End the lease: the lab stays until `lab down`. Called by `--lab-keep`, and when a lab is removed anyway.

    Give *lab* when it shall live on, so that its machines are told. Fine if there is no lease.
    """
    end_keeper(check_name(lab_name))
    path = StateFolder(lab_name).path / FILE
    if path.exists():
        path.unlink(missing_ok=True)
        if lab is not None:
            extend(lab, NEVER)
            events.record(lab_name, "lease.released")


def end_keeper(lab_name: str) -> None:
    """End who watches over the lease, unless it is the calling process; called by who takes the lab away or its lease over."""
    found = _read(lab_name).get("keeper")
    if found and found[0] != os.getpid():
        keeper = Process(*found)
        keeper.signal(signal.SIGTERM)
        with contextlib.suppress(ChildProcessError):
            # Ours, if this process started it: no zombie stays.
            deadline = time.monotonic() + 5
            while keeper.status and time.monotonic() < deadline and not os.waitpid(keeper.pid, os.WNOHANG)[0]:
                time.sleep(0.01)


def extend(lab: Inventory, until: float) -> None:
    """Tell every machine of *lab* when to end itself. One that is down, hangs or goes away is told at the next renewal.

    Called by the keeper and by `release`. Raises what listing the machines raises, nothing for a single one.
    """

    def tell(machine: Machine) -> None:
        # What docker's client raises is an OSError, too, as is a folder that somebody removes just now.
        with contextlib.suppress(LabError, OSError):
            machine.extend_lease(until)

    machines = lab.machines
    with ThreadPoolExecutor(4, thread_name_prefix="lab-lease") as pool:
        list(pool.map(tell, machines))
