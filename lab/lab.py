"""A lab: what `lab up` makes and tests attach to. Decides which machines there are; a driver makes them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab.driver import Driver
from lab.drivers import choose_driver, find_driver
from lab.errors import LabError, LabNotFound, LabUsageError
from lab.kernel_probe import Landing, start_kernel_on
from lab.keys import KeyPair, known_hosts, read_or_generate, ssh_config
from lab.machines import Gateway, GatewaySpec, Node, NodeSpec, machine_name
from lab.names import DEFAULT_GATEWAY, check_name, fqdn, node_number, short_name
from lab.progress import Progress, Silent
from lab.state import StateFolder, locked

MAX_NODES = 100
DEFAULT_NODES = 3
IMPORT_PROBE = "import eg_distributed; eg_distributed.DistributedProcessProxy"


class Lab:
    """One lab by its name. Get one by `Lab.attach` or `Lab.up`."""

    def __init__(self, name: str, driver: Driver, folder: StateFolder) -> None:
        self.name = name
        self.folder = folder
        self._driver = driver
        self._refreshing = threading.Lock()
        driver.changed = self.refresh

    @classmethod
    def attach(cls, name: str = "lab") -> Lab:
        """Return the lab *name* as it is; raise LabNotFound if nothing of it is there."""
        folder = StateFolder(check_name(name))
        lab = cls(name, find_driver(name, folder), folder)
        lab.refresh()
        return lab

    @classmethod
    def up(
        cls,
        name: str = "lab",
        nodes: int | None = None,
        progress: Progress | None = None,
        driver: str | None = None,
    ) -> Lab:
        """Make the lab *name* whole and return it once a kernel has run on each of its *nodes*.

        May be called on a lab in any state: what is right stays, what is missing, stopped, paused or outdated is made
        so. *nodes* None means: as many as it has, else three. More nodes than asked for are removed. The landings of
        the probe are kept in `landings`. Raises LabNotReady with the failed probe and that machine's last lines.
        """
        if nodes is not None and not 1 <= nodes <= MAX_NODES:
            raise LabUsageError(f"a lab can't have {nodes} nodes", remedy=f"choose 1 to {MAX_NODES}")
        progress = progress or Silent()
        folder = StateFolder(check_name(name))
        with locked(f"lab-{name}", what=f"the lab {name}"):
            lab = cls(name, choose_driver(name, folder, driver, progress), folder)
            lab._converge(nodes, progress)
        return lab

    landings: Sequence[Landing] = ()
    """Where the probe's kernels ran; filled by `up`."""
    probed_kernelspec = ""
    """What `up` started there."""

    @property
    def driver(self) -> str:
        """`docker` or `local`."""
        return self._driver.kind

    @property
    def nodes(self) -> list[Node]:
        """The nodes, in whichever state: the numbered row first."""
        return self._driver.nodes()

    @property
    def gateways(self) -> list[Gateway]:
        """The gateways, the default one first."""
        return self._driver.gateways()

    @property
    def gateway(self) -> Gateway:
        """The gateway that every lab has."""
        return self.find_gateway(DEFAULT_GATEWAY)

    def node(self, name: str) -> Node:
        """Return a node by its short or full name; raise LabNotFound."""
        for node in self.nodes:
            if node.name == fqdn(name):
                return node
        there = ", ".join(node.short_name for node in self.nodes) or "none"
        raise LabNotFound(f"the lab {self.name} has no node {name}", cause=f"it has: {there}")

    def find_gateway(self, name: str) -> Gateway:
        """Return a gateway by its name; raise LabNotFound."""
        for gateway in self.gateways:
            if gateway.name == name:
                return gateway
        raise LabNotFound(f"the lab {self.name} has no gateway {name}", remedy=f"`lab up --name {self.name}`")

    def add_node(
        self,
        name: str,
        *,
        sshd_options: Sequence[str] = (),
        shell: str = "bash",
        noisy: bool = False,
        python: str = "3.11",
        trusted: bool = True,
        login_env: Mapping[str, str] | None = None,
    ) -> Node:
        """Add a node that answers to SSH when this returns; the same call again changes nothing.

        With *trusted* False its host key stays out of the gateways' known_hosts. *login_env* is what pam_env gives to
        every login. No gateway lists it in EG_REMOTE_HOSTS: name it in a kernelspec's or a gateway's hosts.
        """
        spec = NodeSpec(machine_name(name), tuple(sshd_options), shell, noisy, python, trusted, dict(login_env or {}))
        with locked(f"lab-{self.name}", what=f"the lab {self.name}"):
            node = self._driver.put_node(spec, self._identity().public)
            self.refresh()
        node.start()
        return node

    def add_gateway(
        self,
        name: str,
        *,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        hosts: Sequence[str] | None = None,
        kernelspecs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Gateway:
        """Add an Enterprise Gateway that answers to HTTP when this returns; the same call again changes nothing.

        *env* and *options* are its environment and what goes behind its command line; *hosts* (full names) default to
        the numbered nodes; *kernelspecs* are kernel.json contents beside the three that all gateways have.
        """
        targets = tuple(hosts) if hosts is not None else self._numbered()
        spec = GatewaySpec(name, targets, dict(env or {}), tuple(options), dict(kernelspecs or {}))
        with locked(f"lab-{self.name}", what=f"the lab {self.name}"):
            gateway = self._driver.put_gateway(spec)
            self.refresh()
        gateway.start()
        return gateway

    def down(self) -> list[str]:
        """Remove everything of this lab and nothing else; return what was removed, in words."""
        return destroy([self._driver], self.folder)

    def refresh(self) -> None:
        """Write ssh_config and known_hosts anew and hand the gateways theirs; called when a machine came or went."""
        with self._refreshing:
            # Keys are made by `up` alone: an attached lab whose folder is gone must not lock its own nodes out.
            if not self.folder.identity.exists():
                return
            nodes = self.nodes
            entries = [node.entry() for node in nodes]
            self.folder.write(self.folder.known_hosts, known_hosts(entries))
            # A stopped node has no port; ssh would refuse the whole file for a port 0.
            reachable = [entry for entry in entries if entry.port]
            config = ssh_config(reachable, identity=self.folder.identity, known_hosts_file=self.folder.known_hosts)
            self.folder.write(self.folder.ssh_config, config)
            trusted = [entry for node, entry in zip(nodes, entries, strict=True) if node.trusted]
            for gateway in self.gateways:
                gateway.trust(trusted, self._identity().private)

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

    def environment(self) -> dict[str, Any]:
        """Return what `lab env --json` prints: a contract that only grows."""
        gateway = self.gateway
        return {
            "name": self.name,
            "driver": self.driver,
            "gateway_url": gateway.url,
            "nodes": [{"name": n.name, "address": n.address, "port": n.port, "state": n.state} for n in self.nodes],
            "gateways": [{"name": g.name, "url": g.url, "address": g.address} for g in self.gateways],
            "ssh_config": str(self.ssh_config),
            "known_hosts": str(self.folder.known_hosts),
            "identity": str(self.folder.identity),
        }

    def _identity(self) -> KeyPair:
        return read_or_generate(self.folder.identity, f"lab-{self.name}")

    def _numbered(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes if node_number(node.name) is not None)

    def _known_count(self) -> int:
        """Return how many nodes this lab was made with, even if some of them (or its gateway) are gone."""
        made_for = [len(gateway.hosts) for gateway in self.gateways if gateway.name == DEFAULT_GATEWAY]
        return max([*made_for, *(node_number(node.name) or 0 for node in self.nodes)], default=0)

    def _converge(self, count: int | None, progress: Progress) -> None:
        self._driver.prepare(progress)
        count = count or self._known_count() or DEFAULT_NODES
        wanted = [fqdn(f"node{number}") for number in range(1, count + 1)]
        progress.step(f"{count} node{'s' if count > 1 else ''}")
        identity = self._identity().public
        extra = []
        for node in self.nodes:
            if node_number(node.name) is None:
                extra.append(node)
            elif node.name not in wanted:
                progress.note(f"removing {node.name}: {count} nodes are asked for")
                node.remove()
        with ThreadPoolExecutor(4) as pool:
            nodes = list(pool.map(lambda name: self._driver.put_node(NodeSpec(name), identity), wanted))
        for node in extra:
            self._driver.authorize(node, identity)
            node.resume()
        progress.step("gateway")
        gateway = self._driver.put_gateway(GatewaySpec(DEFAULT_GATEWAY, tuple(wanted)))
        for other in self.gateways:
            other.resume()
        self.refresh()
        progress.step("an SSH login on every node")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda node: node.wait_ready(), [*nodes, *extra]))
        progress.step("an HTTP answer of the gateway")
        gateway.wait_ready()
        self._probe_kernels(gateway, wanted, progress)

    def _probe_kernels(self, gateway: Gateway, names: Sequence[str], progress: Progress) -> None:
        ours = gateway.exec([gateway.python, "-c", IMPORT_PROBE]).exit_code == 0
        self.probed_kernelspec = "python_distributed" if ours else "python_distributed_stock"
        if not ours:
            progress.note("this checkout's wheel has no DistributedProcessProxy: probing with Enterprise Gateway's own")
        progress.step("a kernel on every node")
        # Enterprise Gateway's own proxy starts kernels one at a time anyway, and its start-up is what we wait for.
        with ThreadPoolExecutor(4 if ours else 1) as pool:
            landings = pool.map(lambda name: start_kernel_on(gateway, name, self.probed_kernelspec), names)
            self.landings = tuple(landings)


def destroy(drivers: Sequence[Driver], folder: StateFolder) -> list[str]:
    """Remove all that *drivers* have of a lab, and its *folder*; called by `Lab.down`, and by `lab down` on what is half-made."""
    name = short_name(folder.path.name)
    with locked(f"lab-{name}", what=f"the lab {name}"):
        removed = [what for driver in drivers for what in driver.destroy()]
        if folder.remove():
            removed.append(f"folder {folder.path}")
    return removed
