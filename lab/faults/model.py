"""What a fault is made of: its options, its mechanisms in the order they are tried, and what each does to a node.

Everything that a mechanism does is data: lists of argv. So what has to be undone can be written down before anything is
done, and whoever finds the note later (another process, the watchdog) can heal without knowing the kind. Three sorts:

    iptables -I INPUT …     a command, run on the node as root
    @block PATH MARK TEXT   a verb of inside/hand.py, run on the node as root
    !pause                  a method of the machine, called on this side (reach.py)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lab import units
from lab.drivers.capabilities import Capability
from lab.drivers.choice import kinds
from lab.drivers.machines import Machine, Sshd
from lab.errors import LabError, LabUsageError
from lab.names import short_name

Step = tuple[str, ...]
Group = Literal["network", "host", "ssh", "login", "spark"]


def seconds(value: Any, what: str) -> float:
    """Return the duration *value* (a number of seconds, or `200ms`, `7d`) in seconds; raise LabUsageError naming *what*."""
    try:
        return units.seconds(value)
    except ValueError:
        raise LabUsageError(
            f"{what} can't be {units.shown(value)}", cause="it is not a duration", remedy=f"write {units.DURATIONS}"
        ) from None


@dataclass(frozen=True)
class Option:
    """One option of a fault. *low* and *high* bound numbers and seconds; *choices* bound texts."""

    name: str
    type: Literal["seconds", "number", "integer", "text", "names"]
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def parse(self, value: Any, fault: str) -> Any:
        """Return *value* (typed, or as the command line gives it) as this option's type; raise LabUsageError."""
        what = f"{fault}: the option {self.name}"
        if self.type == "names":
            items = value.split(",") if isinstance(value, str) else list(value)
            return tuple(item.strip() for item in items if item.strip())
        if self.type == "text":
            if self.choices and value not in self.choices:
                raise LabUsageError(f"{what} can't be {value!r}", remedy=f"choose one of {', '.join(self.choices)}")
            if not isinstance(value, str) or not all(c.isprintable() for c in value):
                raise LabUsageError(f"{what} can't be {value!r}", cause="it is not one line of text")
            return value
        try:
            number = seconds(value, what) if self.type == "seconds" else units.as_float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise LabUsageError(f"{what} can't be {units.shown(value)}", remedy=f"give a number{self._range()}")
        if self.type == "integer" and number != int(number):
            raise LabUsageError(f"{what} can't be {value!r}", remedy=f"give a whole number{self._range()}")
        if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
            raise LabUsageError(f"{what} can't be {value!r}", remedy=f"give a number{self._range()}")
        return int(number) if self.type == "integer" else number

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f" of at least {self.low:g}"
        return ""


@dataclass(frozen=True)
class Context:
    """One fault on one node, as its mechanisms see it. *machines* are the addresses of all machines by short name."""

    fault: str
    lab: str
    node: Machine
    options: Mapping[str, Any]
    seed: int
    side: tuple[Machine, ...] = ()
    machines: Mapping[str, str] = field(default_factory=dict)
    lasts: float | None = None

    @property
    def chain(self) -> str:
        """The fault's own chain; at most 28 characters, which iptables allows."""
        return f"LAB-{self.lab[:14]}-{self.fault}"

    @property
    def mark(self) -> str:
        """What the fault's lines and files in shared places are known by."""
        return f"lab-fault-{self.fault}"

    @property
    def folder(self) -> str:
        """The fault's own folder on the node."""
        return f"{self.node.faults_folder}/{self.fault}"

    @property
    def sshd(self) -> Sshd:
        """The node's SSH server; raise LabError for a machine that has none, which `refuse` has to see first."""
        if self.node.sshd is None:
            raise LabError(f"{self.node.name} has no SSH server")
        return self.node.sshd

    @property
    def home(self) -> str:
        """The home of who logs in, or of the gateway's user."""
        return self.node.home

    @property
    def user(self) -> str:
        """Who logs in, or who a gateway runs as. Other login users of a topology are met by no fault of logins."""
        return self.node.user

    def addresses(self, option: str = "peers") -> list[str]:
        """Return the addresses that an option of names means; raise LabUsageError for a name that no machine has."""
        found = []
        for name in self.options.get(option, ()):
            address = self.machines.get(short_name(name), "")
            if not address and re.fullmatch(r"\d+(\.\d+){3}(/\d+)?", name):
                address = name
            if not address:
                there = ", ".join(self.machines)
                cause = f"there are: {there}"
                raise LabUsageError(f"{option} can't be {name!r}", cause=cause, remedy="name machines or addresses")
            found.append(address)
        return found


@dataclass(frozen=True)
class Moves:
    """What inflicts the fault on one node, and what heals it whatever part of that was done."""

    apply: tuple[Step, ...]
    undo: tuple[Step, ...]

    def __add__(self, other: Moves) -> Moves:
        """Inflict both; heal the later one first."""
        return Moves((*self.apply, *other.apply), (*other.undo, *self.undo))


@dataclass(frozen=True)
class Mechanism:
    """One way of doing it. Tried by doing: what fails is undone, and the next one's turn.

    *elevated*: needs capabilities that nodes don't have (mounts). *claims*: what only one fault at a time can hold on a
    node; `refuse` returns a reason why this way is closed here, if that is known before it is tried. *needs*: the capabilities
    that a machine must have for it (lab/drivers/capabilities.py). *logins*: it acts on who logs in, so a gateway can't have it.
    """

    name: str
    moves: Callable[[Context], Moves]
    elevated: bool = False
    claims: tuple[str, ...] = ()
    needs: frozenset[Capability] = frozenset()
    refuse: Callable[[Context], str] = lambda _: ""
    logins: bool = False


@dataclass(frozen=True)
class FaultKind:
    """One entry of the catalogue. *shows*: its effect, seen from outside. *momentary*: done at once, nothing to heal.

    *daemon*: what it is for where no machine is named, the one that runs this.
    """

    name: str
    group: Group
    summary: str
    shows: str
    mechanisms: tuple[Mechanism, ...]
    options: tuple[Option, ...] = ()
    momentary: bool = False
    daemon: str = ""

    @property
    def drivers(self) -> tuple[str, ...]:
        """The drivers whose machines can have it at all."""
        return tuple(
            driver.name for driver in kinds() if any(way.needs <= driver.capabilities for way in self.mechanisms)
        )

    def parse(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options with their values; raise LabUsageError for one that there isn't or that can't be."""
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                there = ", ".join(known) or "none"
                raise LabUsageError(f"{self.name} has no option {name!r}", remedy=f"its options: {there}")
        return {
            name: option.parse(given[name], self.name) if name in given else option.default
            for name, option in known.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab fault catalogue --json` prints: a contract that only grows."""
        options = [
            {
                "name": o.name,
                "type": o.type,
                "default": list(o.default) if isinstance(o.default, tuple) else o.default,
                "low": o.low,
                "high": o.high,
                "choices": list(o.choices),
                "help": o.help,
            }
            for o in self.options
        ]
        return {
            "name": self.name,
            "group": self.group,
            "summary": self.summary,
            "shows": self.shows,
            "momentary": self.momentary,
            "drivers": list(self.drivers),
            "mechanisms": [mechanism.name for mechanism in self.mechanisms],
            "options": options,
        }
