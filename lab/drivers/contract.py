"""The seam between the lab and what it is made of: a driver makes machines, the lab decides which.

A driver is one folder beside `docker/` and `local/`, and an entry in the table of choice.py (or a call of its `register`).
Nothing else of the lab names a driver or its classes, but for `lab images`, which is about docker's images alone: lab.toml, the
command line, pytest's `--lab-driver` and `lab doctor` ask the table. The folder has:

    a `DriverKind`   what is known of the driver before a lab is looked at; loads nothing of an engine's client by itself
    a `Driver`       one lab's machines, made and found (below)
    a `Node`         one SSH host of the lab, with the description of its SSH server (`Sshd`); machines.py
    a `Gateway`      one Enterprise Gateway or JupyterLab of the lab; machines.py

Node and Gateway are abstract classes: what Python says is lacking has to be written, and the rest has a default that suits a
machine with a kernel's namespaces of its own. What not every machine can have done to it has a name, a capability
(capabilities.py). A fault's mechanism names those that it needs. A driver declares the capabilities of its machines in its
DriverKind, for the catalogue of faults, and each machine has them as `Machine.capabilities`: declare one only if every machine
of the driver keeps what capabilities.py says of it. For one that it lacks, `Machine.refusal` has the reason that users read. A
mechanism without needs works everywhere: by `run_python`, by signals and by the files that `Sshd` names.

Machines differ in three more ways that callers ask for by name: `Machine.keeps_notes`, `changes_while_down`, and `share`, which
says what of this computer is the machine's where it has no process table of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lab.drivers.capabilities import Capability
from lab.drivers.findings import Finding
from lab.drivers.found import FoundLab, Stray
from lab.drivers.machines import Gateway, Node
from lab.progress import Progress
from lab.state import StateFolder
from lab.topology.specs import GatewaySpec, NodeSpec


class Driver(Protocol):
    """One lab's machines. Every method may be called again at any time and converges to what it says."""

    kind: str
    name: str
    """The lab's name."""
    is_whole: bool
    """Whether its machines can be all that a topology asks for. Where they can't, a test that asks for more is skipped."""
    changed: Callable[[], None]
    """Called by machines when an address, a port or their being there has changed."""

    def exists(self) -> bool:
        """Say whether anything of this lab is there, half-made or whole."""

    def stranger(self) -> str:
        """Return whose the lab is (`user@host`) if another user of a shared engine made it; nothing if it is ours or isn't."""

    def prepare(self, progress: Progress, machines: Iterable[NodeSpec | GatewaySpec] = ()) -> None:
        """Make what machines stand on: images or environments (those that *machines* need), and the network."""

    def nodes(self) -> list[Node]:
        """Return the lab's nodes, in whichever state, in the order of their numbers."""

    def services(self) -> list[Node]:
        """Return the machines of masters (lab/spark), which have an sshd but no kernels; by name."""

    def gateways(self) -> list[Gateway]:
        """Return the lab's gateways, the default one first."""

    def reasons(self, spec: NodeSpec | GatewaySpec) -> list[str]:
        """Return why the machine of that name would be made anew to be *spec*, in words; none if it is right.

        Touches nothing. Raises LabNotFound if there is no such machine.
        """

    def put_node(self, spec: NodeSpec, identity: str) -> Node:
        """Make *spec* so and running; *identity* is the public key that may log in. Doesn't wait for its sshd."""

    def put_gateway(self, spec: GatewaySpec) -> Gateway:
        """Make *spec* so and running, with its keys and kernelspecs. Doesn't wait for its HTTP."""

    def authorize(self, node: Node, identity: str) -> None:
        """Let the public key *identity*, and no other, log in to *node*."""

    def destroy(self) -> list[str]:
        """Remove everything of this lab, and nothing else; return what was removed, in words."""


def _sees_all(_: StateFolder) -> bool:
    return True


@dataclass(frozen=True)
class DriverKind:
    """A driver before it has a lab; an entry in the table of choice.py.

    *make* returns the `Driver` of the lab *name* with its folder (and the SSH server that local nodes are to have), or raises
    EnvironmentUnfit where this computer can't run it. *find* yields every lab that the driver has here, none where it can't run.
    *capabilities* are those of each of its machines.
    """

    name: str
    capabilities: frozenset[Capability]
    make: Callable[[str, StateFolder, str], Driver]
    find: Callable[[], Iterable[FoundLab]]
    is_private: bool = False
    """Whether its labs are this user's alone, so that no other user can have one of the same name."""
    strays: Callable[[], Iterable[Stray]] = tuple
    """Yields what is left of labs whose folder is gone; called by `lab gc`."""
    unseen: Callable[[], str] = str
    """Returns why labs may be there that *find* can't see now; empty if it sees all."""
    sees: Callable[[StateFolder], bool] = _sees_all
    """Returns whether *find* would see the lab of this folder; False if that is on another engine, say."""
    absence: str = ""
    """What is told of a driver whose labs are there, but can't be seen, while it can't be made; empty where that can't be."""
    fallback: str = ""
    """What `up` tells when it takes this driver because none of those before it in the table can run."""
    checks: Mapping[str, Callable[[], Iterable[Finding]]] = field(default_factory=dict)
    """What `lab doctor` looks at, beside what any lab needs: by the name of each part, which yields what it finds and changes
    nothing. Parts run at the same time; one that raises is a finding itself."""
    errors: Callable[[], tuple[type[Exception], ...]] = tuple
    """Returns what its calls raise, besides LabError and OSError, when what it stands on refuses or goes away. That may pass."""
    versions: Callable[[], Mapping[str, str | None]] = dict
    """Returns what `lab version` tells of what it stands on; None for what can't be asked. The names are the same always."""
