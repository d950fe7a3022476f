"""Machines that are not there, for faults that never reach them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from lab import Lab
from lab.drivers.docker.capabilities import CAPABILITIES
from lab.drivers.machines import Machine
from lab.faults import inject, reach
from lab.faults.model import Context
from lab.state import StateFolder
from lab.topology.specs import GatewaySpec, NodeSpec
from tests.unit.lab.memory import MemoryGateway, MemoryNode


class Reached:
    """What machines were told, in order; *failing* holds first words of steps that fail."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, tuple[tuple[str, ...], ...]]] = []
        self.failing: set[str] = set()

    def carry_out(
        self, machine: Machine, steps: Sequence[tuple[str, ...]], *, elevated: bool = False, undoing: bool = False
    ) -> None:
        """Stand in for reach.carry_out."""
        self.told.append((machine.name, "undo" if undoing else "apply", tuple(steps)))
        if not undoing and any(step[0] in self.failing for step in steps):
            raise reach.StepsFailed("it could not be done", cause=f"no {', '.join(sorted(self.failing))}")

    def said(self, machine: str, what: str) -> list[tuple[str, ...]]:
        """Return the steps that a machine was told to apply or to undo."""
        return [step for name, how, steps in self.told if (name, how) == (machine, what) for step in steps]


def machine(name: str, address: str) -> Machine:
    """A node that runs, and can have all that a container can."""
    found = MemoryNode(NodeSpec(name), address)
    found.capabilities = CAPABILITIES
    return found


def lab(name: str = "unit", nodes: int = 2) -> Lab:
    """A lab with a folder and nodes of the docker driver."""
    folder = StateFolder(name)
    folder.path.mkdir(parents=True)
    made = [machine(f"node{number}.lab.test", f"10.0.0.{10 + number}") for number in range(1, nodes + 1)]
    gateway = MemoryGateway(GatewaySpec("gateway", ()), "10.0.0.2")
    gateway.capabilities = CAPABILITIES
    found = SimpleNamespace(
        name=name,
        folder=folder,
        driver="docker",
        nodes=made,
        gateways=[gateway],
        services=[],
        machines=[gateway, *made],
    )
    return cast("Lab", found)


def context(**options: Any) -> Context:
    """One fault on node1 of three machines."""
    node = machine("node1.lab.test", "10.0.0.11")
    machines = {"gateway": "10.0.0.2", "node1": "10.0.0.11", "node2": "10.0.0.12"}
    return Context("abcd1234", "unit", node, options, 0, (node,), machines)


__all__ = ["Reached", "context", "inject", "lab", "machine"]
