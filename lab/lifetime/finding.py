"""What labs there are on this machine: drivers read them from labels, leases and the labs' own folders."""

from __future__ import annotations

from lab.drivers.choice import kinds
from lab.drivers.found import FoundLab
from lab.files import Busy, held
from lab.state import locks_root


def unseen() -> str:
    """Return why labs of some driver (on a container engine, say) can't be seen now; nothing if all can."""
    return "; ".join(filter(None, (kind.unseen() for kind in kinds())))


def find_labs() -> list[FoundLab]:
    """Return every lab that can be seen: on the engine that answers, and in this user's folders; by name."""
    found = {(lab.name, lab.driver): lab for kind in kinds() for lab in kind.find()}
    return sorted(found.values(), key=lambda lab: (lab.name, lab.driver))


def is_busy(name: str) -> bool:
    """Say whether a process of this user works on the lab *name* now; whoever wants to would have to wait."""
    return is_locked(f"lab-{name}")


def is_locked(lock: str) -> bool:
    """Say whether a process of this user holds *lock* (lab/state.py)."""
    path = locks_root() / f"{lock}.lock"
    if not path.exists():
        return False
    try:
        with held(path):
            return False
    except Busy:
        return True
