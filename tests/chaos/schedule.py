"""What is done in a round, and when: drawn from a seed alone, so that the seed is the round.

A step names its kernel by a slot (`k1`) and its node by a number, so that a schedule means the same on every lab, and still means
something when steps are taken out of it: what is done to a kernel that was never started is skipped.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lab.faults import catalogue

NODES = 3
LASTS = (40.0, 70.0)
"""Seconds of a round's schedule, between the first step and the last one's beginning."""
KERNELS = 5
"""How many kernels a round may start, the bystander not counted."""
BYSTANDER = "by"
"""The slot of the kernel that runs small cells all the while, on a node that has no fault in its round."""
LONGEST_FAULT = 14.0

SETTINGS: dict[str, dict[str, Any]] = {
    "max-sessions": {"sessions": 0},
    "loss": {"percent": 30.0},
    "delay": {"milliseconds": 300.0, "jitter": 200.0},
    "bandwidth": {"kbit": 200.0},
    "force-command": {"mode": "refuse"},
}
"""Options with which a fault is felt; all others have the catalogue's own."""
LEFT_OUT = {
    "penalties": "needs an OpenSSH that the lab's nodes do not have",
    "clock-jump": "is one of a process that a test starts for it",
    "process-killed": "is a step of its own, for the agent",
    "process-stopped": "is a step of its own, for the agent",
    "kill": "is among LETHAL",
    "reboot": "is among LETHAL",
    "out-of-memory": "is among LETHAL",
}
"""Faults of the catalogue that are not drawn with the others, and why."""
LETHAL = ("kill", "reboot", "out-of-memory")
"""Faults that end a node's processes, or may: its kernels are not expected to live on."""
NO_CUT = ("pause", "out-of-pids", "sessions-killed", *LETHAL)
"""Faults on top of which no session can be killed from inside, or that do the same."""


@dataclass(frozen=True)
class Step:
    """One thing to do *at* so many seconds; *do* is one of `actors.DEEDS`, *options* are its own."""

    at: float
    do: str
    kernel: str = ""
    node: int = 0
    """1 to NODES; 0: none."""
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{self.at:5.1f} {self.do}", self.kernel, f"node{self.node}" if self.node else ""]
        return " ".join((*filter(None, words), *(f"{name}={value}" for name, value in self.options.items())))

    def line(self) -> str:
        """Return it as one line of JSON, without what is empty."""
        facts: dict[str, Any] = {"at": self.at, "do": self.do}
        facts |= {"kernel": self.kernel} if self.kernel else {}
        facts |= {"node": self.node} if self.node else {}
        facts |= self.options
        return json.dumps(facts)

    @classmethod
    def parse(cls, line: str) -> Step:
        """Return the step that `line` wrote; raises ValueError or KeyError for anything else."""
        facts = json.loads(line)
        at, do, kernel, node = facts.pop("at"), facts.pop("do"), facts.pop("kernel", ""), facts.pop("node", 0)
        return cls(float(at), str(do), str(kernel), int(node), facts)


def write(path: Path, steps: Iterable[Step], remark: str = "") -> None:
    """Write a schedule as JSON lines, below a *remark*."""
    above = "".join(f"# {line}\n" for line in remark.splitlines())
    path.write_text(above + "".join(f"{step.line()}\n" for step in steps), "utf-8")


def read(path: Path) -> list[Step]:
    """Return the schedule in a file; lines that begin with # are remarks."""
    lines = path.read_text("utf-8").splitlines()
    return [Step.parse(line) for line in lines if line.strip() and not line.startswith("#")]


@cache
def ordinary_faults() -> tuple[str, ...]:
    """Return the names of the faults that leave a node's processes alive, in order."""
    return tuple(sorted(kind.name for kind in catalogue() if kind.group != "spark" and kind.name not in LEFT_OUT))


def draw(seed: int) -> list[Step]:
    """Return the round of *seed*, in order of time."""
    return sorted(_Drawing(random.Random(seed)).steps(), key=lambda step: step.at)


class _Drawing:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._safe = chance.randint(1, NODES)
        self._others = [number for number in range(1, NODES + 1) if number != self._safe]
        self._end = chance.uniform(*LASTS)
        self._slots = [f"k{number}" for number in range(1, chance.randint(2, KERNELS) + 1)]

    def steps(self) -> list[Step]:
        found = [Step(0.0, "start", BYSTANDER, self._safe), Step(1.0, "bystand", BYSTANDER)]
        for slot in self._slots:
            found += self._life(slot)
        found += self._trouble()
        found += self._gateway()
        return found

    def _at(self, first: float = 0.0) -> float:
        return round(self._chance.uniform(min(first, self._end), self._end), 1)

    def _life(self, slot: str) -> Sequence[Step]:
        """Return what one user does with one kernel."""
        chance = self._chance
        began = round(chance.choice((chance.uniform(0, 5), self._at())), 1)
        if chance.random() < 0.12:
            return [Step(began, "give-up", slot, chance.choice((0, *self._others)), {"after": self._patience()})]
        # A start that chooses its host itself, or one by the user's pin; pins to the troubled nodes, where things happen.
        found = [Step(began, "start", slot, chance.choice((0, *self._others)))]
        deeds = ("print", "cell", "interrupt", "restart", "reconnect", "delete", "kill-kernel")
        for _ in range(chance.randint(2, 6)):
            do = chance.choices(deeds, (18, 6, 4, 2, 2, 1, 1))[0]
            at = self._at(began + 2)
            if do == "print":
                found.append(Step(at, "print", slot, options=self._output()))
            elif do == "interrupt":
                found.append(Step(at, "print", slot, options={"lines": 300, "pause": 0.05}))
                found.append(Step(round(at + chance.uniform(1, 12), 1), "interrupt", slot))
            elif do == "reconnect":
                found.append(Step(at, "reconnect", slot, options={"away": round(chance.uniform(0, 6), 1)}))
            else:
                found.append(Step(at, do, slot))
        return found

    def _patience(self) -> float:
        """Return how long a client waits for a kernel before it goes away: many do just before it is ready."""
        return round(self._chance.choice((self._chance.uniform(0, 1.5), self._chance.uniform(0, 8))), 2)

    def _output(self) -> dict[str, Any]:
        """Return how much a cell prints: slowly, for as long as things go wrong, or at once.

        Never so fast for so long that the kernel's own queue (a thousand messages) is full while nobody listens.
        """
        pause = self._chance.choice((0.02, 0.05, 0.05, 0.1, 0.0))
        if not pause:
            return {"lines": self._chance.choice((1, 50, 200)), "pause": 0.0}
        seconds = self._chance.uniform(2, 15)
        return {"lines": max(1, int(seconds / pause)), "pause": pause}

    def _trouble(self) -> Sequence[Step]:
        """Return what happens to the nodes."""
        chance, found = self._chance, list[Step]()
        for _ in range(chance.randint(3, 9)):
            at, node = self._at(4), chance.choice(self._others)
            lasts = round(chance.uniform(1, LONGEST_FAULT), 1)
            what = chance.choices(("fault", "kill-agent", "stop-agent", "lethal", "sessions"), (20, 4, 3, 1, 2))[0]
            if what == "fault":
                name = chance.choice(ordinary_faults())
                cut = name not in NO_CUT and chance.random() < 0.5
                found.append(
                    Step(at, "fault", "", node, {"name": name, "for": lasts, "cut": cut, **SETTINGS.get(name, {})})
                )
            elif what == "sessions":
                found.append(Step(at, "fault", "", node, {"name": "sessions-killed", "for": 1.0, "cut": False}))
            elif what == "lethal":
                found.append(
                    Step(at, "fault", "", node, {"name": chance.choice(LETHAL), "for": min(lasts, 8.0), "cut": False})
                )
            elif what == "kill-agent":
                found.append(Step(at, "kill-agent", "", node))
            else:
                found.append(Step(at, "stop-agent", "", node, {"for": lasts}))
        return found

    def _gateway(self) -> Sequence[Step]:
        """Return what happens to the gateway: nothing, or one or two ends of it, or that it stands still or loses its network."""
        chance = self._chance
        count = chance.choices((0, 1, 2), (4, 4, 2))[0]
        found = []
        if chance.random() < 0.2:
            what = chance.choice(("freeze", "uplink"))
            found.append(Step(self._at(8), what, options={"for": round(chance.uniform(1, LONGEST_FAULT), 1)}))
        for _ in range(count):
            how = chance.choices(("kill", "upgrade", "stop"), (6, 3, 1))[0]
            found.append(Step(self._at(8), "gateway", options={"how": how, "away": round(chance.uniform(0, 6), 1)}))
        return found
