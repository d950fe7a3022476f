"""Faults of the lab: named, composable, each with an id, an owner and a duration; they heal by themselves.

    with lab.faults.add(lab, "delay", [lab.node("node1")], duration=15, milliseconds=200) as fault:
        print(fault.mechanism)

The catalogue is in network.py, shaping.py, resolving.py, host.py, ssh.py, login.py and daemons.py. inject.py inflicts,
fault.py sees and heals, watchdog.py heals by itself, plan.py has timelines, reach.py and inside/ carry out what all these
decide.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from lab.errors import LabUsageError
from lab.faults import inject
from lab.faults.daemons import KINDS as DAEMONS
from lab.faults.fault import Fault, active, heal
from lab.faults.host import KINDS as HOST
from lab.faults.inject import NOBODY
from lab.faults.login import KINDS as LOGIN
from lab.faults.model import FaultKind, Mechanism, Option
from lab.faults.network import KINDS as NETWORK
from lab.faults.plan import Step, resolve, run_plan
from lab.faults.resolving import KINDS as RESOLVING
from lab.faults.shaping import KINDS as SHAPING
from lab.faults.ssh import KINDS as SSH
from lab.machines import Machine

if TYPE_CHECKING:
    from lab.lab import Lab

__all__ = [
    "NOBODY",
    "Fault",
    "FaultKind",
    "Mechanism",
    "Option",
    "Step",
    "active",
    "add",
    "catalogue",
    "heal",
    "kind",
    "resolve",
    "run_plan",
]


@cache
def _kinds() -> dict[str, FaultKind]:
    return {each.name: each for each in (*NETWORK, *SHAPING, *RESOLVING, *HOST, *SSH, *LOGIN, *DAEMONS)}


def catalogue() -> list[FaultKind]:
    """Return all faults, by group; what `lab fault catalogue` prints."""
    return list(_kinds().values())


def kind(name: str) -> FaultKind:
    """Return one fault of the catalogue; raise LabUsageError with the nearest names."""
    found = _kinds().get(name)
    if found is None:
        near = difflib.get_close_matches(name, _kinds(), 3, 0.5)
        remedy = f"did you mean {' or '.join(near)}?" if near else "`lab fault catalogue` names all"
        raise LabUsageError(f"there is no fault {name!r}", remedy=remedy)
    return found


def add(
    lab: Lab,
    name: str,
    nodes: Sequence[Machine],
    *,
    duration: float | str | None = None,
    owner: str | None = None,
    seed: int | None = None,
    **options: Any,
) -> Fault:
    """Inflict the fault *name* on *nodes* and return it once it holds on all of them; on none, if one can't have it.

    No nodes: the machine that the fault is for, where there is just one (the Spark master of `spark-master-down`).

    It heals when *duration* (seconds, or `15s`) is over or its owner dies, whatever becomes of the caller. *owner* None is the
    calling process, a pid another one, `lab` none. *seed* decides what is random in it. *options* may be texts, as a
    command line has them.

    Raises LabUsageError (unknown fault or option, a value that can't be), LabConflict (another fault holds what this one
    needs), FaultUnavailable (no mechanism works here; the cause says what was tried), LabNotReady (a node doesn't answer).
    """
    return inject.add(lab, kind(name), nodes, duration=duration, owner=owner, seed=seed, options=options)
