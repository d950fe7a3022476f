"""The lab's own lease: whose it is and until when, so that nothing outlives its owner.

A lab that a test session made belongs to a process. A *keeper*, a small process of its own session beside the owner, waits
for the owner's end and then removes the lab: also when the owner was killed and could not do it. While the owner lives, the
keeper puts off the day on which each machine ends itself (`/run/lab/lease`), so that the lab is over as well when owner and
keeper are killed together. A reaper container was rejected: it needs an image and the engine's socket, and has one life for
each process instead of one for each lab.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from lab.errors import LabUsageError
from lab.names import LABEL
from lab.process_file import ProcessFile
from lab.processes import Process, identify

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
    return Lease(user(), socket.gethostname(), process.pid, process.started)


def me() -> str:
    """Return `user@host`, as labels name who made a lab."""
    return f"{user()}@{socket.gethostname()}"


def user() -> str:
    """Return the name of the user who runs this process, or the number if it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A uid without a name, as in many a container.
        return str(os.getuid())


def read(lab_name: str) -> Lease | None:
    """Return the lease of a lab of this user by its folder; None if it has none (it stays until `lab down`)."""
    found = stored(lab_name)
    return parse(found) if found else None


def expiry(lab_name: str) -> float | None:
    """Return when the lab's machines end themselves unless the lease is renewed (UNIX seconds); None means never."""
    found = read(lab_name)
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


def file(lab_name: str) -> ProcessFile:
    """Return the lab's lease file."""
    return ProcessFile(lab_name, FILE, kind="lease", what=f"the lease of the lab {lab_name}")


def stored(lab_name: str) -> dict[str, Any]:
    """Return what the lab's lease file says, with its keeper; nothing where there is none."""
    found = file(lab_name).read()
    return found if isinstance(found, dict) else {}


def parse(found: Mapping[str, Any]) -> Lease | None:
    """Return the lease in what `stored` returned; None if it holds none."""
    try:
        return Lease(**{name: found[name] for name in Lease.__dataclass_fields__})
    except (KeyError, TypeError):
        return None


def write(lab_name: str, lease: Lease, keeper: Process | None) -> None:
    """Write the lab's lease file; called by lab/lifetime alone."""
    file(lab_name).write(asdict(lease) | {"keeper": keeper.numbers if keeper else None})


def keeper_of(lab_name: str) -> Process | None:
    """Return the process that keeps the lab's lease, alive or not; None where the file names none."""
    numbers = stored(lab_name).get("keeper")
    return Process(*numbers) if numbers else None


def renew(lab_name: str, keeper: Process) -> bool:
    """Write the next term of a lease that *keeper* keeps; False if it doesn't (any more). Called by the keeper alone."""
    found = stored(lab_name)
    lease = parse(found)
    if lease is None or found.get("keeper") != keeper.numbers:
        return False
    try:
        file(lab_name).rewrite(found | {"expires": time.time() + lease.seconds})
    except OSError:
        return False
    return True


def remove(lab_name: str) -> bool:
    """Delete the lab's lease file; return True if there was one. Called by lab/lifetime alone."""
    return file(lab_name).remove()
