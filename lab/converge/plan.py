"""What would have to happen so that a lab becomes what it shall be: computed from labels, touching nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from lab.converge.desired import Desired
from lab.drivers.contract import Driver
from lab.drivers.machines import Machine
from lab.names import short_name
from lab.topology.specs import GatewaySpec, NodeSpec

Action = Literal["create", "recreate", "remove", "start", "unpause", "keep"]
MachineRole = Literal["node", "gateway", "service"]

_SIGNS: Final = {"create": "+", "recreate": "±", "remove": "-", "start": ">", "unpause": ">", "keep": "="}


@dataclass(frozen=True)
class Step:
    """What happens to one machine, and why."""

    action: Action
    machine: str
    role: MachineRole
    reasons: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the step for people."""
        why = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{_SIGNS[self.action]} {self.action:<8} {self.role} {short_name(self.machine)}{why}"


@dataclass(frozen=True)
class Plan:
    """All steps, removals first. Empty (and false) when nothing would change."""

    lab: str
    driver: str
    steps: tuple[Step, ...]

    @property
    def changes(self) -> tuple[Step, ...]:
        """The steps that do something."""
        return tuple(step for step in self.steps if step.action != "keep")

    def __bool__(self) -> bool:
        return bool(self.changes)

    def lines(self) -> list[str]:
        """Return one line for each change; none when nothing would change."""
        return [step.line() for step in self.changes]

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for `--json`, with what is kept."""
        steps = [
            {"action": step.action, "machine": step.machine, "role": step.role, "reasons": list(step.reasons)}
            for step in self.steps
        ]
        return {"name": self.lab, "driver": self.driver, "changes": len(self.changes), "steps": steps}


def make(driver: Driver, desired: Desired) -> Plan:
    """Compare *desired* with what *driver* has. Machines outside of groups stay; stopped ones are started again."""
    nodes, gateways, services = driver.nodes(), driver.gateways(), driver.services()
    specs: list[NodeSpec | GatewaySpec] = [*desired.services, *desired.nodes, *desired.gateways]
    wanted = {spec.name for spec in specs}
    steps: list[Step] = []
    steps += _removed("node", [node for node in nodes if node.group], wanted)
    steps += _removed("gateway", [gateway for gateway in gateways if gateway.group], wanted)
    steps += _removed("service", services, wanted)
    there: dict[str, Machine] = {machine.name: machine for machine in (*nodes, *gateways, *services)}
    steps += [_step(driver, spec, there.get(spec.name)) for spec in specs]
    for machine, role in [*((each, "node") for each in nodes), *((each, "gateway") for each in gateways)]:
        if machine.name not in wanted and not machine.group:
            steps.append(Step(_awake(machine), machine.name, "node" if role == "node" else "gateway"))
    return Plan(driver.name, driver.kind, tuple(steps))


def _removed(role: MachineRole, machines: Iterable[Machine], wanted: set[str]) -> list[Step]:
    return [
        Step("remove", machine.name, role, ("it is not asked for",))
        for machine in machines
        if machine.name not in wanted
    ]


def _step(driver: Driver, spec: NodeSpec | GatewaySpec, there: Machine | None) -> Step:
    role: MachineRole = "gateway" if isinstance(spec, GatewaySpec) else "service" if spec.is_service else "node"
    if there is None:
        return Step("create", spec.name, role)
    reasons = driver.reasons(spec)
    if reasons:
        return Step("recreate", spec.name, role, tuple(reasons))
    return Step(_awake(there), spec.name, role)


def _awake(machine: Machine) -> Action:
    states: dict[str, Action] = {"running": "keep", "paused": "unpause"}
    return states.get(machine.state, "start")
