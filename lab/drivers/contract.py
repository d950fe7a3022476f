"""The seam between the lab and what it is made of: a driver makes machines, the lab decides which."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from lab.drivers.machines import Gateway, Node
from lab.progress import Progress
from lab.topology.specs import GatewaySpec, NodeSpec


class Driver(Protocol):
    """One lab's machines. Every method may be called again at any time and converges to what it says."""

    kind: str
    name: str
    """The lab's name."""
    changed: Callable[[], None]
    """Called by machines when an address, a port or their being there has changed."""

    def exists(self) -> bool:
        """Say whether anything of this lab is there, half-made or whole."""

    def stranger(self) -> str:
        """Return whose the lab is (`user@host`) if another user of a shared engine made it; nothing if it is ours or isn't."""

    def prepare(self, progress: Progress, nodes: Iterable[NodeSpec] = ()) -> None:
        """Make what machines stand on: images or environments (those that *nodes* need), and the network."""

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
