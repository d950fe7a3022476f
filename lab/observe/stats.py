"""How many kernels are on which node, and whether that is fair: asked of the nodes' process tables and of the gateways."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.lab import Lab
from lab.observe.leaks import View, look


@dataclass(frozen=True)
class Stats:
    """Kernels by node, and how even that is. The nodes tell what runs, the gateways what they believe to run."""

    nodes: Mapping[str, int]
    """Kernels that run on each node, by full name; nodes without any are there too."""
    gateways: Mapping[str, int]
    """Kernels that each gateway lists."""
    placed: Mapping[str, str]
    """Kernel's id to node, for each that runs and says its id."""
    lost: Sequence[str] = ()
    """Ids that a gateway lists and no node runs."""
    orphans: Sequence[str] = ()
    """Ids that a node runs and no gateway lists."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Machines that could not be asked, and why."""

    @property
    def spread(self) -> int:
        """The most minus the fewest kernels of a node; 0 or 1 is as even as it gets."""
        return max(self.nodes.values(), default=0) - min(self.nodes.values(), default=0)

    @property
    def chi_square(self) -> float:
        """The chi-square statistic against the same number on each node; 0 is perfectly even."""
        return chi_square(self.nodes.values())

    @property
    def p_value(self) -> float:
        """How probable it is that random placement is at least as uneven as this; small means: not by chance."""
        return chi_square_tail(self.chi_square, len(self.nodes) - 1)

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab stats --json` prints; a contract that only grows."""
        return {
            "nodes": dict(self.nodes),
            "gateways": dict(self.gateways),
            "total": sum(self.nodes.values()),
            "spread": self.spread,
            "chi_square": round(self.chi_square, 6),
            "p_value": round(self.p_value, 6),
            "kernels": dict(self.placed),
            "lost": list(self.lost),
            "orphans": list(self.orphans),
            "unseen": dict(self.unseen),
        }

    def lines(self) -> list[str]:
        """Return what `lab stats` prints: a bar for each node, then the spread."""
        width = max(map(len, self.nodes), default=0)
        most = max(self.nodes.values(), default=0) or 1
        found = [
            f"{name.ljust(width)}  {count:4d}  {'#' * round(40 * count / most)}".rstrip()
            for name, count in self.nodes.items()
        ]
        found.append(
            f"spread {self.spread} (most minus fewest), chi-square {self.chi_square:.2f}, p {self.p_value:.3f}, "
            f"{sum(self.nodes.values())} kernels"
        )
        found += [f"{name} lists {count}" for name, count in self.gateways.items()]
        found += [f"lost: {key} is listed by a gateway and runs nowhere" for key in self.lost]
        found += [f"orphan: {key} runs on {self.placed[key]} and is listed by no gateway" for key in self.orphans]
        return found + [f"unseen: {name} {why}" for name, why in self.unseen.items()]


def measure(lab: Lab) -> Stats:
    """Ask all nodes and gateways of *lab* at once; called by `lab stats` and by tests that assert fairness."""
    nodes, gateways = lab.nodes, lab.gateways
    return of_view(look(lab, [*nodes, *gateways]), [node.name for node in nodes])


def of_view(view: View, nodes: Sequence[str]) -> Stats:
    """Return the statistics of what was seen."""
    placed: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in nodes:
        found = view.machines.get(name)
        if found is None:
            continue
        # Several processes may carry one kernel's id: a launcher, and what a cell started.
        ids = {process.kernel for process in found.processes if process.kernel}
        counts[name] = len(ids)
        placed |= dict.fromkeys(ids, name)
    listed = {key for kernels in view.kernels.values() for key in kernels}
    return Stats(
        {name: counts[name] for name in nodes if name in view.machines},
        {name: len(kernels) for name, kernels in view.kernels.items()},
        placed,
        sorted(listed - placed.keys()),
        sorted(placed.keys() - listed),
        dict(view.states),
    )


def chi_square(counts: Iterable[int]) -> float:
    """Return Pearson's statistic of *counts* against their mean; 0 where there is nothing."""
    found = list(counts)
    mean = sum(found) / len(found) if found else 0
    return sum((count - mean) ** 2 for count in found) / mean if mean else 0.0


def chi_square_tail(statistic: float, freedom: int) -> float:
    """Return the probability of at least *statistic* with *freedom* degrees of freedom; 1 where there is no freedom.

    The closed forms for whole degrees of freedom: no dependency for one number.
    """
    if freedom < 1 or statistic <= 0:
        return 1.0
    half = statistic / 2
    if freedom % 2 == 0:
        term, total = 1.0, 1.0
        steps = range(1, freedom // 2)
        for step in steps:
            term *= half / step
            total += term
        return min(1.0, math.exp(-half) * total)
    term, total = math.sqrt(half) / math.gamma(1.5), 0.0
    for step in range((freedom - 1) // 2):
        total += term
        term *= half / (step + 1.5)
    return min(1.0, math.erfc(math.sqrt(half)) + math.exp(-half) * total)
