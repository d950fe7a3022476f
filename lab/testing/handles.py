"""What a test's fixtures `nodes` and `fault` are: its stay in the lab, as far as the test is to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from lab.drivers.machines import Machine, Node
from lab.faults import Fault
from lab.testing.visit import Visit


class LeasedNodes(Sequence[Node]):
    """The fixture `nodes`: the test's nodes as a sequence; called with a number, it leases that many more and returns them."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def __call__(self, count: int) -> list[Node]:
        """Lease *count* nodes for the rest of the test."""
        return self._visit.more(count)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> list[Node]: ...
    def __getitem__(self, index: int | slice) -> Node | list[Node]:
        return self._visit.nodes[index]

    def __len__(self) -> int:
        return len(self._visit.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._visit.nodes))

    def __repr__(self) -> str:
        return f"<nodes {', '.join(node.name for node in self._visit.nodes)}>"


class Faults:
    """The fixture `fault`: called with a fault's name it adds that; `plan` runs a timeline of faults."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit

    def __call__(
        self,
        name: str,
        *nodes: Machine | str,
        duration: float | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Fault:
        """As `Visit.fault`."""
        return self._visit.fault(name, *nodes, duration=duration, seed=seed, **options)

    def plan(self, plan: Sequence[Mapping[str, Any]], seed: int = 0, *, deadline: float | None = None) -> list[Fault]:
        """As `Visit.plan`."""
        return self._visit.plan(plan, seed, deadline=deadline)
