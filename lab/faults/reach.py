"""Carry out a fault's steps on a machine, from any process on this side: in the node, or by the machine's own methods."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from lab.drivers.machines import Limits, Machine, Node
from lab.errors import FaultUnavailable, LabError, LabNotFound, LabNotReady
from lab.faults.inside import bundle
from lab.faults.model import Step

SECONDS = 30.0
"""For all the steps that one fault takes inside one node."""


class StepsFailed(LabError):
    """What a mechanism does could not be done on a node; the next mechanism is tried."""

    id = "fault-steps-failed"


def carry_out(machine: Machine, steps: Sequence[Step], *, elevated: bool = False, undoing: bool = False) -> None:
    """Do *steps* in order; raise StepsFailed. An undo does them all and raises what failed first.

    Raises LabNotReady when the machine doesn't answer at all, and LabNotFound when it is gone.
    """
    failure: LabError | None = None
    for outside, group in groupby(steps, key=lambda step: step[0].startswith("!")):
        try:
            if outside:
                for step in group:
                    _outside(machine, step)
            else:
                _inside(machine, list(group), elevated=elevated, undoing=undoing)
        except LabError as error:
            if not undoing:
                raise
            failure = failure or error
    if failure is not None:
        raise failure


# -- this side ---------------------------------------------------------------------------------------------------------


_FORMER = {"Memory": "memory", "MemorySwap": "swap", "PidsLimit": "pids"}
"""Names of limits in notes of labs of earlier days, which are still to be undone."""


def _limits(machine: Machine, settings: str) -> None:
    limits = {_FORMER.get(name, name): max(int(value), 0) for name, value in json.loads(settings).items()}
    try:
        machine.set_limits(Limits(**limits))
    except LabError as error:
        raise StepsFailed(error.what, cause=error.cause) from error


def _return(machine: Machine) -> None:
    """Let a machine run again and the lab know of its new port; whether one can log in may be another fault's business."""
    machine.resume()
    machine.announce()


def _ended(machine: Machine) -> None:
    """Wait until a machine whose main process was told to end has ended: healed before, it would count as running."""
    deadline = time.monotonic() + SECONDS
    while machine.state == "running":
        if time.monotonic() > deadline:
            raise StepsFailed(f"{machine.name} did not end", cause=f"it still runs after {SECONDS:g} s")
        time.sleep(0.02)


OUTSIDE: dict[str, Callable[..., None]] = {
    "!pause": lambda machine: machine.pause(),
    "!unpause": lambda machine: machine.unpause(),
    "!kill": lambda machine: machine.kill(),
    "!ended": _ended,
    "!return": _return,
    "!limits": _limits,
}


def _outside(machine: Machine, step: Step) -> None:
    try:
        OUTSIDE[step[0]](machine, *step[1:])
    except LabError:
        raise
    except Exception as error:  # the engine's client raises its own kinds, and the local driver OSErrors
        raise StepsFailed(f"{step[0][1:]} of {machine.name} failed", cause=str(error)) from error


# -- inside ------------------------------------------------------------------------------------------------------------


def _inside(machine: Machine, steps: Sequence[Step], *, elevated: bool, undoing: bool) -> None:
    program = ["-I", "-c", bundle(), json.dumps(steps), json.dumps(_facts(machine)), *(["undo"] * undoing)]
    try:
        done = machine.run_python(program, privileged=elevated, timeout=SECONDS)
    except (LabNotReady, LabNotFound):
        raise
    except LabError as error:
        if not elevated:
            raise
        # The next mechanism may need no capabilities.
        raise StepsFailed(error.what, cause=error.cause) from error
    try:
        failed = json.loads(done.stdout.splitlines()[-1])["failed"]
    except (IndexError, ValueError, KeyError, TypeError):
        said = (done.stderr.strip() or done.stdout.strip())[-300:] or f"exit code {done.exit_code}"
        raise LabNotReady(f"{machine.name} does not carry out what it is told", cause=said) from None
    if failed:
        raise StepsFailed(f"{machine.name} could not be brought to it", cause=failed)


def _facts(machine: Machine) -> dict[str, Any]:
    """Return what inside/hand.py has to know of the machine."""
    facts: dict[str, Any] = {"port": machine.own_port}
    if machine.main_pid is not None:
        facts["root"] = machine.main_pid
    if machine.sshd is not None:
        facts |= {"config": machine.sshd.config, "sshd": list(machine.sshd.argv)}
    return facts


def unavailable(kind: str, machine: Machine, reasons: Sequence[str]) -> FaultUnavailable:
    """Return the error that says why no mechanism of *kind* works on *machine*."""
    return FaultUnavailable(
        f"the fault {kind} can't be had on {machine.name}",
        cause="; ".join(reasons),
        remedy="`lab fault catalogue` says what each needs, `lab doctor` what this machine has",
        evidence={"fault": kind, "node": machine.name, "tried": list(reasons)},
    )


def is_node(machine: Machine) -> bool:
    """Say whether *machine* is an SSH node."""
    return isinstance(machine, Node)
