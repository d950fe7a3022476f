"""What a lab has, and how its machines know each other: all that faults, leases and Spark need of it.

`Lab` (lab/lab.py) is an inventory that can change what it has.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from lab import events
from lab.drivers.choice import find_driver
from lab.drivers.contract import Driver
from lab.drivers.machines import Gateway, Machine, Node
from lab.errors import LabError, LabNotFound
from lab.keys import Authority, HostEntry, KeyPair, known_hosts, read_or_generate, ssh_config
from lab.names import DEFAULT_GATEWAY, node_number
from lab.state import StateFolder, locked


class Inventory:
    """One lab's machines and files, by its name."""

    def __init__(self, name: str, driver: Driver, folder: StateFolder) -> None:
        self.name = name
        self.folder = folder
        self._driver = driver
        self._refreshing = threading.Lock()
        driver.changed = self.refresh

    @property
    def driver(self) -> str:
        """`docker` or `local`."""
        return self._driver.kind

    @property
    def is_whole(self) -> bool:
        """Return True if the lab's machines can be all that a topology or a test may ask for."""
        return self._driver.is_whole

    @property
    def nodes(self) -> list[Node]:
        """The nodes, in whichever state: the numbered row first."""
        return self._driver.nodes()

    @property
    def services(self) -> list[Node]:
        """The machines of a Spark master and a ResourceManager, where the lab has them: hosts with an sshd, but no nodes."""
        return self._driver.services()

    @property
    def gateways(self) -> list[Gateway]:
        """The gateways, the default one first."""
        return self._driver.gateways()

    @property
    def machines(self) -> list[Machine]:
        """All of them: gateways, nodes, services."""
        return [*self.gateways, *self.nodes, *self.services]

    @property
    def gateway(self) -> Gateway:
        """The gateway called `gateway`, or the first of a topology that has none of that name; raise LabNotFound."""
        # Drivers list the default one first, and a topology's own before those that `add_gateway` made.
        there = sorted(self.gateways, key=lambda gateway: (gateway.name != DEFAULT_GATEWAY, not gateway.group))
        return there[0] if there else self.find_gateway(DEFAULT_GATEWAY)

    def node(self, name: str) -> Node:
        """Return a node, or the machine of a master, by its short or full name; raise LabNotFound."""
        for node in [*self.nodes, *self.services]:
            if name in {node.name, node.short_name}:
                return node
        there = ", ".join(node.short_name for node in self.nodes) or "none"
        raise LabNotFound(f"the lab {self.name} has no node {name}", cause=f"it has: {there}")

    def find_gateway(self, name: str) -> Gateway:
        """Return a gateway by its name; raise LabNotFound."""
        for gateway in self.gateways:
            if gateway.name == name:
                return gateway
        raise LabNotFound(f"the lab {self.name} has no gateway {name}", remedy=f"`lab up --name {self.name}`")

    def refresh(self) -> None:
        """Write ssh_config and known_hosts anew and hand the gateways theirs; called when a machine came or went."""
        # Other processes change the lab as well: who writes last must be who looked last.
        with self._refreshing, locked(f"refresh-{self.name}", what=f"the lab {self.name}"):
            # Keys are made by `up` alone: an attached lab whose folder is gone must not lock its own nodes out.
            if not self.folder.identity.exists():
                return
            found = [(node, entry) for node in (*self.nodes, *self.services) if (entry := _entry(node)) is not None]
            nodes, entries = [node for node, _ in found], [entry for _, entry in found]
            self.folder.write(self.folder.known_hosts, known_hosts(entries))
            # A stopped node has no port; ssh would refuse the whole file for a port 0.
            reachable = [entry for entry in entries if entry.port]
            config = ssh_config(reachable, identity=self.folder.identity, known_hosts_file=self.folder.known_hosts)
            self.folder.write(self.folder.ssh_config, config)
            trusted = [entry for node, entry in zip(nodes, entries, strict=True) if node.trusted]
            certificate = self._certify(nodes)
            for gateway in self.gateways:
                try:
                    gateway.trust(trusted, self._identity().private, certificate)
                except LabNotFound:
                    continue
                except LabError as error:
                    # One that hangs must not keep the others from knowing; it is told at the next change.
                    events.record(self.name, "gateway.untold", gateway=gateway.name, cause=str(error))

    def _certify(self, nodes: Sequence[Node]) -> str:
        """Write the login key's certificate beside it and return it; nothing where no node asks for one."""
        specs = [node.spec for node in nodes if node.certified]
        if not specs:
            self.folder.certificate.unlink(missing_ok=True)
            return ""
        logins = {node.entry().user for node in nodes if node.certified}
        users = sorted(logins.union(*(spec.users for spec in specs)))
        authority = Authority(self.folder.authority, self.name, make=False)
        certificate = authority.sign_user(self._identity().public, users, min(spec.validity for spec in specs))
        self.folder.write(self.folder.certificate, f"{certificate}\n")
        return certificate

    @property
    def ssh_config(self) -> Path:
        """The file for `ssh -F`; raise LabError if this user doesn't have it (any more), which `up` mends."""
        if not self.folder.ssh_config.exists():
            raise LabError(
                f"the lab {self.name} has no ssh_config here",
                cause=f"{self.folder.path} is gone, or another user made the lab",
                remedy=f"`lab up --name {self.name}`",
            )
        return self.folder.ssh_config

    def _identity(self) -> KeyPair:
        return read_or_generate(self.folder.identity, f"lab-{self.name}")

    def _numbered(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes if node.group or node_number(node.name) is not None)


def look(name: str) -> Inventory:
    """Return what the lab *name* has, and write nothing; raise LabNotFound. Called by the keeper and the watchdog.

    `Lab.attach` also hands the gateways their files, and waits for the process that is doing that now.
    """
    folder = StateFolder(name)
    return Inventory(name, find_driver(name, folder), folder)


def _entry(node: Node) -> HostEntry | None:
    """Return what SSH clients need to know of *node*; None if somebody else removes it just now, who will refresh as well."""
    try:
        return node.entry()
    except LabNotFound:
        return None
