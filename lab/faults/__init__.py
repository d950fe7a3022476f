"""Faults of the lab: named, composable, each with an id, an owner and a duration; they heal by themselves.

    with lab.faults.add(lab, "delay", [lab.node("node1")], duration=15, milliseconds=200) as fault:
        print(fault.mechanism)

The catalogue is in network.py, shaping.py, resolving.py, host.py, ssh.py, login.py and daemons.py. inject.py inflicts,
fault.py sees and heals, watchdog.py heals by itself, plan.py has timelines, reach.py and inside/ carry out what all these
decide.
"""

from __future__ import annotations

from lab.faults.fault import Fault, active, heal
from lab.faults.index import catalogue, kind
from lab.faults.inject import NOBODY, add
from lab.faults.model import FaultKind, Mechanism, Option
from lab.faults.plan import Step, resolve, run_plan

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
