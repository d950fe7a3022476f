"""What is known of each kernel's life in a history: when it surely lived, by what was asked for and what befell its host.

Between are times of which nothing can be said: while it is restarted, say, or once its machine has been switched off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.chaos.history import Event
from tests.chaos.schedule import LETHAL

ALIVE, UNSURE, GONE = "alive", "unsure", "gone"


@dataclass
class Life:
    """One kernel, by its slot."""

    slot: str
    id: str
    states: list[tuple[float, str]] = field(default_factory=list)
    """(since when, what it is), in order of time."""
    hosts: list[tuple[float, str]] = field(default_factory=list)
    """(since when, where it is), as far as the gateway has said."""
    gave_up: bool = False
    """Whether its client went away before it had an answer."""
    is_cut: bool = False
    """Whether a start or restart of it was cut short by the gateway's end, so that no gateway may know what has come of it."""

    def become(self, time: float, state: str) -> None:
        """Note what it is from *time* on."""
        self.states.append((time, state))

    def state(self, time: float) -> str:
        """Return what it is at *time*: `gone` before its start."""
        found = GONE
        for since, state in self.states:
            if since > time:
                break
            found = state
        return found

    @property
    def last(self) -> str:
        """What it is in the end."""
        return self.state(math.inf)

    def host(self, time: float) -> str:
        """Return where it is at *time*, empty where nobody has said."""
        found = ""
        for since, host in self.hosts:
            if since > time:
                break
            found = host
        return found

    def lives(self, first: float, last: float) -> bool:
        """Return True if it surely lived all the time from *first* to *last*."""
        changes = (state for since, state in self.states if first < since <= last)
        return self.state(first) == ALIVE and all(state == ALIVE for state in changes)


def lives(events: Iterable[Event]) -> dict[str, Life]:
    """Return what is known of each kernel that was asked for, by its slot."""
    found: dict[str, Life] = {}
    by_id: dict[str, Life] = {}
    asked: dict[int, float] = {}  # when the requests that are under way were sent
    lethal: list[tuple[float, str]] = []
    for event in events:
        time = event.time
        if event.op in {"start", "restart", "delete"}:
            slot = event["kernel"]
            if event.op == "start" and event.type == "invoke":
                found[slot] = by_id[event["id"]] = Life(slot, event["id"], gave_up="gives_up" in event.facts)
            life = found.get(slot)
            if life is None:
                continue
            if event.type == "invoke":
                asked[event["request"]] = time
                life.become(time, UNSURE)
            elif event.type == "ok" and event.op != "delete":
                if host := event.get("host", ""):
                    life.hosts.append((time, host))
                began, host = asked[event["request"]], life.host(time)
                struck = any(when >= began and (not node or host in {node, ""}) for when, node in lethal)
                # One request can overtake another: a restart that is answered while a delete is under way, say.
                overtaken = any(since > began for since, _ in life.states)
                life.become(time, UNSURE if struck or overtaken else ALIVE)
            elif event.type == "ok" or (event.type == "fail" and event.op == "start"):
                life.become(time, GONE)
            else:
                life.become(time, UNSURE)
                life.is_cut = life.is_cut or (event.type == "info" and event.op != "delete" and not life.gave_up)
        elif event.op == "kill-kernel" and event.type == "invoke":
            found[event["kernel"]].become(time, UNSURE)
        elif event.op == "listed":
            for kernel_id, (_, _, host) in event["kernels"].items():
                life = by_id.get(kernel_id)
                if life is not None and host and life.host(time) != host:
                    life.hosts.append((time, host))
        elif event.op == "fault" and event.type == "invoke" and event["name"] in LETHAL:
            lethal.append((time, event["node"]))
            for life in found.values():
                if life.host(time) in {event["node"], ""} and life.last != GONE:
                    life.become(time, UNSURE)
        elif event.op == "gateway" and event.type == "invoke" and event["how"] == "stop":
            lethal.append((time, ""))
            for life in found.values():
                if life.last != GONE:
                    life.become(time, UNSURE)  # an orderly end takes kernels along, as far as their hosts are in reach
    return found
