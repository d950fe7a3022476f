"""Faults of the lab: named, composable, each with an id, an owner and a duration; they heal by themselves.

    with lab.faults.add(lab, "delay", [lab.node("node1")], duration=15, milliseconds=200) as fault:
        print(fault.mechanism)

catalogue/ has the kinds. inject.py inflicts, healing.py sees and heals, guard.py starts the watchdog, which heals by itself,
plan.py has timelines, notes.py what is known of active faults; reach.py and inside/ carry out what all these decide.
"""

from __future__ import annotations

from lab.faults.catalogue.index import catalogue, kind
from lab.faults.healing import Fault, active, heal
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
