"""What happened in a round, in the order in which it was seen: as Jepsen's histories, one event a line.

An operation begins with an event of type `invoke` and ends with `ok` (it was done), `fail` (it was refused, with a reason) or
`info` (nobody knows: the gateway ended meanwhile, say). What nobody asked for, such as a line of output, is `seen`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Type = Literal["invoke", "ok", "fail", "info", "seen"]


@dataclass(frozen=True)
class Event:
    """One event: *time* in seconds since the round began, *op* is the operation or what was seen, *facts* are JSON."""

    time: float
    type: Type
    op: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.facts[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a fact, or *default* without it."""
        return self.facts.get(name, default)

    def __str__(self) -> str:
        facts = " ".join(f"{name}={value}" for name, value in self.facts.items())
        return f"{self.time:8.3f} {self.type:6} {self.op:10} {facts}"

    def line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps([round(self.time, 4), self.type, self.op, self.facts])


class History:
    """Events in order of time; several actors add to it on one event loop."""

    def __init__(self, events: Iterable[Event] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.events = list(events)
        self._clock = clock
        self._began = clock()

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def now(self) -> float:
        """Return the seconds since the round began."""
        return self._clock() - self._began

    def add(self, kind: Type, op: str, /, **facts: Any) -> Event:
        """Add an event that happens now."""
        event = Event(self.now(), kind, op, facts)
        self.events.append(event)
        return event

    def write(self, path: Path) -> None:
        """Write it as JSON lines."""
        path.write_text("".join(f"{event.line()}\n" for event in self.events), "utf-8")

    @classmethod
    def read(cls, path: Path) -> History:
        """Return the history that `write` wrote."""
        return cls(Event(*json.loads(line)) for line in path.read_text("utf-8").splitlines())
