"""Fault plans: a timeline of faults, in a topology file or a Python list, the same again for the same seed.

    [{"at": 2, "fault": "refuse", "nodes": ["node1"], "for": 5, "options": {"port": 22}},
     {"at": "10s", "fault": ["pause", "drop-new"], "nodes": {"random": 2}, "for": "3s"}]

`nodes` are names, patterns (`"big*"`, `"*.lab.test"`) and roles (`"@spark"`), "all", "random" (one of them) or {"random": N};
`fault` is a name, or a list to choose from; a `for` of None is until the latest end that the other entries name.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.drivers.machines import Node
from lab.errors import LabError, LabNotReady, LabUsageError
from lab.faults.catalogue.index import kind
from lab.faults.healing import Fault
from lab.faults.inject import add
from lab.faults.model import seconds
from lab.inventory import Inventory
from lab.names import is_meant, short_name

KEYS = ("at", "fault", "nodes", "for", "options")
GRACE = 60.0
"""Seconds behind the plan's end until which everything has to be healed, unless the caller says otherwise."""


@dataclass(frozen=True)
class Step:
    """One fault of a plan, nothing random left: *at* and *lasts* are seconds, *seed* is for what is random in the fault."""

    at: float
    fault: str
    nodes: tuple[str, ...]
    lasts: float
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as an entry of a plan."""
        return {
            "at": self.at,
            "fault": self.fault,
            "nodes": list(self.nodes),
            "for": self.lasts,
            "options": dict(self.options),
        }


def resolve(
    plan: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    seed: int = 0,
    *,
    roles: Mapping[str, Collection[str]] | None = None,
    others: Sequence[str] = (),
) -> list[Step]:
    """Return *plan* in the order of its times, with what is random chosen by *seed* among the nodes *names* (full ones).

    *roles* are those of each name, for `@role`; *others* are machines that only their names mean. Called by `run_plan`, and
    by whoever wants to show or check a plan. Raises LabUsageError that names the entry.
    """
    dice = random.Random(seed)
    known = {short_name(name): _Known(name, frozenset((roles or {}).get(name, ()))) for name in names}
    known |= {short_name(name): _Known(name, frozenset(), by_name=True) for name in others}
    end, steps = _end(plan), []
    for number, entry in enumerate(plan, 1):
        try:
            steps.append(_step(entry, known, end, dice))
        except LabUsageError as error:
            raise LabUsageError(
                f"entry {number} of the fault plan: {error.what}", cause=error.cause, remedy=error.remedy
            ) from None
    # Chosen in the order of the list, then sorted: moving an entry's time doesn't change what others choose.
    return sorted(steps, key=lambda step: step.at)


@dataclass(frozen=True)
class _Known:
    """A node that a plan can mean."""

    name: str
    roles: frozenset[str]
    by_name: bool = False
    """By nothing but its name: neither `all` nor chance, no pattern and no role means it."""

    def is_meant(self, word: str) -> bool:
        """Say whether *word*, a name, a pattern or a role, means it."""
        if self.by_name:
            return short_name(word) == short_name(self.name)
        return is_meant(word, self.name, self.roles)


def _end(plan: Sequence[Mapping[str, Any]]) -> float:
    """Return the latest end that an entry names, in seconds; what is wrong with an entry is `_step`'s to say."""
    ends = [0.0]
    for entry in plan:
        if entry.get("for") is not None:
            with contextlib.suppress(LabUsageError):
                ends.append(seconds(entry.get("at", 0), "at") + seconds(entry["for"], "for"))
    return max(ends)


def _step(entry: Mapping[str, Any], known: Mapping[str, _Known], end: float, dice: random.Random) -> Step:
    unknown = sorted(set(entry) - set(KEYS))
    if unknown:
        raise LabUsageError(f"there is no key {unknown[0]!r}", remedy=f"the keys are {', '.join(KEYS)}")
    for key in ("fault", "nodes", "for"):
        if key not in entry:
            raise LabUsageError(f"it lacks {key!r}")
    at = seconds(entry.get("at", 0), "at")
    lasts = seconds(entry["for"], "for") if entry["for"] is not None else end - at
    if entry["for"] is None and lasts <= 0:
        raise LabUsageError("it has no end", remedy="write how long: for = '15s'")
    if at < 0 or lasts <= 0:
        raise LabUsageError("its time can't be", remedy="give `at` of at least 0 and `for` above 0")
    choice = entry["fault"]
    chosen = kind(dice.choice(list(choice)) if isinstance(choice, (list, tuple)) and choice else str(choice))
    options = dict(entry.get("options", {}))
    chosen.parse(options)
    return Step(at, chosen.name, _nodes(entry["nodes"], known, dice), lasts, dice.randrange(1 << 32), options)


def _nodes(wanted: Any, known: Mapping[str, _Known], dice: random.Random) -> tuple[str, ...]:
    """Return the short names of the nodes that an entry means, in the lab's order; sorted where chance chose them."""
    everywhere = [short for short, node in known.items() if not node.by_name]
    if wanted == "all":
        return tuple(everywhere)
    count = 1 if wanted == "random" else wanted.get("random") if isinstance(wanted, Mapping) else None
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(everywhere):
            raise LabUsageError(f"nodes can't be {wanted!r}", remedy=f"choose 1 to {len(everywhere)} at random")
        return tuple(sorted(dice.sample(everywhere, count)))
    words = [wanted] if isinstance(wanted, str) else list(wanted) if isinstance(wanted, (list, tuple)) else []
    strange = [word for word in words if not any(node.is_meant(str(word)) for node in known.values())]
    if strange or not words:
        what = strange[0] if strange else wanted
        raise LabUsageError(f"nodes can't be {what!r}", remedy=f"there are: {', '.join(known)}")
    return tuple(short for short, node in known.items() if any(node.is_meant(str(word)) for word in words))


def run_plan(
    lab: Inventory,
    plan: Sequence[Mapping[str, Any]],
    seed: int = 0,
    *,
    deadline: float | None = None,
    machines: Sequence[Node] | None = None,
    stop: threading.Event | None = None,
    inflicted: Callable[[Fault], None] = lambda _: None,
) -> list[Fault]:
    """Inflict *plan* on *lab* along its timeline, and return its faults once all have healed.

    *deadline*: seconds for all of it; default, a minute behind the plan's own end. *machines*: all that the plan can mean, in
    place of the whole lab's. *stop*, once set, ends it early; *inflicted* hears of each fault. Whatever ends this early (an
    error, the deadline, ^C) heals what the plan has inflicted. Called by `lab fault run`, and by the pytest fixture `fault`.
    Raises LabUsageError before anything is done, LabNotReady at the deadline or when it is stopped.
    """
    nodes = {node.short_name: node for node in (lab.nodes if machines is None else machines)}
    services = {service.short_name: service for service in (lab.services if machines is None else ())}
    roles = {node.name: node.roles for node in nodes.values()}
    steps = resolve(plan, list(roles), seed, roles=roles, others=list(services))
    nodes |= services
    whole = max((step.at + step.lasts for step in steps), default=0.0)
    ends = time.monotonic() + (whole + GRACE if deadline is None else deadline)
    began = time.monotonic()
    faults: list[Fault] = []
    pause = stop or threading.Event()
    try:
        for step in steps:
            pause.wait(max(0.0, min(began + step.at, ends) - time.monotonic()))
            _in_time(ends, pause, f"{step.fault} was not inflicted yet")
            chosen = [nodes[name] for name in step.nodes]
            faults.append(add(lab, step.fault, chosen, duration=step.lasts, seed=step.seed, **step.options))
            inflicted(faults[-1])
        while left := [fault for fault in faults if fault.active]:
            _in_time(ends, pause, f"not healed yet: {', '.join(fault.name for fault in left)}")
            pause.wait(0.05)
    except BaseException:  # ^C included: a plan that ends early leaves no fault
        _heal(faults)
        raise
    return faults


def _in_time(ends: float, stop: threading.Event, cause: str) -> None:
    if stop.is_set():
        raise LabNotReady("the fault plan was stopped", cause=cause)
    if time.monotonic() >= ends:
        raise LabNotReady("the fault plan did not end in time", cause=cause)


def _heal(faults: Sequence[Fault]) -> None:
    for fault in reversed(faults):
        try:
            fault.heal()
        except LabError:
            continue  # the watchdog goes on; what ended the plan is the error to report
