"""What was measured, and what it comes to: medians, their spread over repeats, ratios to a local kernel, and the guard."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LOCAL = "local"
GUARDED = ("start", "cell", "interrupt", "restart", "shutdown", "storm_8_start", "storm_32_start", "hosts_per_kernel")
"""Figures whose ratio to a local kernel must not grow."""
BESIDE = {"cell": "cell_beside"}
"""Figures that are held against those of a local kernel of the same server: what that does to messages is not the contender's."""
TOLERANCE = 0.05
"""A ratio may be worse by this part of the kept one in any case: runs that agree by chance have no spread."""


@dataclass(frozen=True)
class Summary:
    """The median of the repeats' medians, with the lowest and the highest of these."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """From the lowest to the highest."""
        return self.high - self.low


@dataclass
class Cut:
    """What came of a cell that prints lines while the network is away for a while."""

    lines: int
    """How many the cell prints."""
    lost: int | None = None
    """How many of them the client never saw."""
    reply: bool = False
    """Whether the cell's end was told."""
    resumed: float | None = None
    """Seconds from the network's return to the next line."""
    answered: float | None = None
    """Seconds from the network's return until the kernel had run a new cell; None if it did not in the time that it had."""
    kept_state: bool = False
    """Whether a variable of before was still there then."""
    said: str = ""
    """What the client was told meanwhile: `restarting`, `dead`, a closed websocket, an error."""


@dataclass
class Found:
    """All that was measured of one contender. Samples are lists, one for each repeat, of what was seen in it."""

    label: str
    left_out: str = ""
    """Why it was not measured at all; empty if it was."""
    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    cuts: dict[str, list[Cut]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, key: str, values: Iterable[float]) -> None:
        """Note what one repeat has shown of *key*; nothing if it has shown nothing."""
        if seen := list(values):
            self.samples.setdefault(key, []).append(seen)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Found:
        """Return what `to_json` has made."""
        cuts = {name: [Cut(**each) for each in of_one] for name, of_one in content["cuts"].items()}
        return cls(**{**content, "cuts": cuts})


def summary(repeats: Sequence[Sequence[float]] | None) -> Summary | None:
    """Return what *repeats* come to; None where nothing was measured."""
    medians = [statistics.median(each) for each in repeats or () if each]
    return Summary(statistics.median(medians), min(medians), max(medians)) if medians else None


def ratio(of: Sequence[Sequence[float]] | None, to: Sequence[Sequence[float]] | None) -> Summary | None:
    """Return how many times *to* are *of*, repeat by repeat, since what else the machine did fell on both of one repeat."""
    pairs = zip(of or (), to or (), strict=False)
    each = [statistics.median(a) / statistics.median(b) for a, b in pairs if a and b and statistics.median(b) > 0]
    return summary([[value] for value in each])


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value that *part* (0 to 1) of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def round_trips(near: Summary | None, far: Summary | None, seconds: float) -> float | None:
    """Return how many round trips a thing takes, of its milliseconds at two distances that differ by *seconds*."""
    return None if near is None or far is None else (far.median - near.median) / (1e3 * seconds)


def ratios(found: Mapping[str, Found]) -> dict[str, dict[str, Summary]]:
    """Return for each contender the ratio of each guarded figure to a local kernel's."""
    local = found.get(LOCAL)
    if local is None:
        return {}
    result: dict[str, dict[str, Summary]] = {}
    for key, each in found.items():
        if key == LOCAL or each.left_out:
            continue
        of_one = {}
        for name in GUARDED:
            floor = each.samples.get(BESIDE[name]) if name in BESIDE else local.samples.get(name)
            of_one[name] = ratio(each.samples.get(name), floor)
        result[key] = {name: value for name, value in of_one.items() if value is not None}
    return result


@dataclass(frozen=True)
class Complaint:
    """A ratio that got worse by more than the spread, or that is no longer there."""

    contender: str
    figure: str
    kept: Summary
    now: Summary | None

    def __str__(self) -> str:
        kept = f"{self.kept.median:.2f} ({self.kept.low:.2f} to {self.kept.high:.2f})"
        if self.now is None:
            return f"{self.contender}, {self.figure}: no longer measured; it was {kept} times a local kernel's"
        now = f"{self.now.median:.2f} ({self.now.low:.2f} to {self.now.high:.2f})"
        return f"{self.contender}, {self.figure}: {now} times a local kernel's; it was {kept}"


def guard(kept: Mapping[str, Mapping[str, Summary]], now: Mapping[str, Mapping[str, Summary]]) -> list[Complaint]:
    """Return which of the *kept* ratios are worse *now*, by more than either run's spread and more than the tolerance."""
    complaints = []
    for contender, figures in kept.items():
        for name, before in figures.items():
            after = now.get(contender, {}).get(name)
            if after is None or after.median > before.median + max(
                before.spread, after.spread, TOLERANCE * before.median
            ):
                complaints.append(Complaint(contender, name, before, after))
    return complaints
