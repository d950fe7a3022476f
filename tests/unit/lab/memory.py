"""A third driver, made of nothing but objects: what the contract asks for, and no engine and no process behind it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.drivers.capabilities import Capability
from lab.drivers.contract import Driver, DriverKind
from lab.drivers.findings import Finding
from lab.drivers.found import FoundLab
from lab.drivers.machines import ExecResult, Gateway, Limits, Machine, Node, Sshd, State, Usage
from lab.errors import LabError, LabNotFound
from lab.keys import HostEntry, read_or_generate
from lab.names import sort_key
from lab.progress import Progress
from lab.state import StateFolder
from lab.topology.specs import GatewaySpec, NodeSpec, differences

CAPABILITIES: frozenset[Capability] = frozenset({"limits", "freezer"})
REASON = "a machine in memory has no network and no system"


def _nothing() -> None:
    pass


class MemoryMachine(Machine):
    """A state, an address, and what it was told."""

    capabilities: frozenset[Capability] = CAPABILITIES

    def __init__(self, name: str, address: str, changed: Callable[[], None] = _nothing) -> None:
        super().__init__(changed)
        self.name = name
        self.told: list[tuple[str, ...]] = []
        self._address = address
        self._state: State = "running"
        self._limits = Limits(0, 0, 0)

    @property
    def address(self) -> str:
        return self._address

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    def refusal(self, needs: Collection[Capability]) -> str:
        return "" if set(needs) <= self.capabilities else REASON

    @property
    def home(self) -> str:
        return f"/home/{self.user}"

    def exec(self, argv: Sequence[str], user: str | None = None, timeout: float = 30) -> ExecResult:
        """Say that all steps of a fault went well, which is all that is ever asked here."""
        self.told.append(tuple(argv))
        return ExecResult(tuple(argv), 0, json.dumps({"failed": ""}), "")

    def privileged_exec(self, argv: Sequence[str], timeout: float = 30) -> ExecResult:
        raise LabError(f"{self.name} can't be given the capability", cause=REASON)

    def limits(self) -> Limits:
        return self._limits

    def set_limits(self, limits: Limits) -> None:
        self._limits = limits

    def read_logs(self, tail: int | None = None, *, since: float | None = None, timestamps: bool = False) -> str:
        return ""

    def follow_logs(self, *, since: float | None = None, timestamps: bool = False) -> Iterator[str]:
        return iter(())

    def inspect(self) -> dict[str, Any]:
        return {}

    def usage(self) -> Usage:
        return Usage(0, 0, 0)

    def copy_in(self, source: Path, target: str) -> None:
        raise LabNotFound(f"{self.name} has no files")

    def copy_out(self, source: str, target: Path) -> None:
        raise LabNotFound(f"{self.name} has no files")

    def extend_lease(self, until: float) -> None:
        pass

    def resume(self) -> None:
        self._state = "running"

    def stop(self) -> None:
        self._state = "stopped"

    def pause(self) -> None:
        self._state = "paused"

    def unpause(self) -> None:
        self._state = "running"

    def kill(self) -> None:
        self._state = "stopped"

    def remove(self) -> None:
        self.kill()
        self.announce()

    def end_cause(self) -> str:
        return "it was stopped"


class MemoryNode(MemoryMachine, Node):
    """A node; its SSH server is a description."""

    user = "lab"
    trusted = True
    port = 2222

    def __init__(
        self, spec: NodeSpec, address: str, host_key: str = "", changed: Callable[[], None] = _nothing
    ) -> None:
        super().__init__(spec.name, address, changed)
        self.host_key = host_key
        self.made_as = spec
        self.authorized = ""

    @property
    def spec(self) -> NodeSpec:
        return self.made_as

    @property
    def sshd(self) -> Sshd:
        return Sshd("openssh", 22, f"{self.home}/.ssh/authorized_keys", "/etc/ssh/key", "/etc/ssh/sshd_config")

    def daemon_command(self, verb: str, daemon: str, *words: str) -> tuple[str, ...]:
        return (verb, daemon, *words)

    def wait_ready(self) -> None:
        self._wait(f"an SSH login on {self.name}", _nothing)

    def reset(self) -> None:
        self.start()


class MemoryGateway(MemoryMachine, Gateway):
    """A gateway that serves nothing."""

    user = "gateway"
    own_port = 8888
    url = "http://127.0.0.1:1"

    def __init__(self, spec: GatewaySpec, address: str, changed: Callable[[], None] = _nothing) -> None:
        super().__init__(spec.name, address, changed)
        self.hosts = spec.hosts
        self.made_as = spec
        self.known: list[HostEntry] = []

    @property
    def spec(self) -> GatewaySpec:
        return self.made_as

    def write_files(self, files: Mapping[str, str]) -> None:
        pass

    def trust(self, nodes: Iterable[HostEntry], identity: str, certificate: str = "") -> None:
        self.known = list(nodes)


class MemoryGone(Exception):
    """What this driver raises when its engine goes away; no OSError and no LabError."""


@dataclass
class Memory:
    """What an engine is to other drivers: it has the machines of all labs. `kind` is the driver for `choice.register`."""

    labs: dict[str, dict[str, MemoryNode | MemoryGateway]] = field(default_factory=dict)
    is_full: bool = False
    addresses: Iterator[int] = field(default_factory=lambda: itertools.count(10))

    @property
    def kind(self) -> DriverKind:
        return DriverKind(
            "memory",
            CAPABILITIES,
            self._make,
            self._find,
            is_private=True,
            checks={"memory": self._checks},
            errors=lambda: (MemoryGone,),
            versions=lambda: {"memory": "1"},
        )

    def _make(self, name: str, folder: StateFolder, _: str) -> Driver:
        return MemoryDriver(name, folder, self)

    def _checks(self) -> Iterator[Finding]:
        if self.is_full:
            yield Finding("cells", "missing", "all is taken", "forget something")
        else:
            yield Finding("cells", "ok", "there is some")

    def _find(self) -> Iterator[FoundLab]:
        for name, machines in self.labs.items():
            nodes = sum(isinstance(machine, MemoryNode) for machine in machines.values())
            yield FoundLab(name, "memory", nodes, len(machines) - nodes, folder=StateFolder(name).path)


class MemoryDriver:
    """One lab's machines in a `Memory`."""

    kind = "memory"
    is_whole = False

    def __init__(self, name: str, folder: StateFolder, memory: Memory) -> None:
        self.name = name
        self.folder = folder
        self.changed: Callable[[], None] = _nothing
        self._memory = memory

    @property
    def _machines(self) -> dict[str, MemoryNode | MemoryGateway]:
        return self._memory.labs.get(self.name, {})

    def exists(self) -> bool:
        return self.name in self._memory.labs

    def stranger(self) -> str:
        return ""

    def prepare(self, progress: Progress, machines: Iterable[NodeSpec | GatewaySpec] = ()) -> None:
        self._memory.labs.setdefault(self.name, {})

    def nodes(self) -> list[Node]:
        found = [each for each in self._machines.values() if isinstance(each, MemoryNode) and not each.spec.is_service]
        return sorted(found, key=lambda node: sort_key(node.name))

    def services(self) -> list[Node]:
        return [each for each in self._machines.values() if isinstance(each, MemoryNode) and each.spec.is_service]

    def gateways(self) -> list[Gateway]:
        return [each for each in self._machines.values() if isinstance(each, MemoryGateway)]

    def reasons(self, spec: NodeSpec | GatewaySpec) -> list[str]:
        if spec.name not in self._machines:
            raise LabNotFound(f"the lab {self.name} has no machine {spec.name}")
        return differences(self._machines[spec.name].spec.definition(), spec.definition())

    def put_node(self, spec: NodeSpec, identity: str) -> Node:
        key = read_or_generate(self.folder.host_keys / spec.name, spec.name)
        found = self._machines.get(spec.name)
        if not isinstance(found, MemoryNode) or found.spec != spec:
            found = MemoryNode(spec, f"10.0.0.{next(self._memory.addresses)}", key.public, self.changed)
            self._machines[spec.name] = found
        self.authorize(found, identity)
        found.resume()
        return found

    def authorize(self, node: Node, identity: str) -> None:
        assert isinstance(node, MemoryNode)
        node.authorized = identity

    def put_gateway(self, spec: GatewaySpec) -> Gateway:
        found = MemoryGateway(spec, "10.0.0.2", self.changed)
        self._machines[spec.name] = found
        return found

    def destroy(self) -> list[str]:
        return [f"machine {name}" for name in self._memory.labs.pop(self.name, {})]
