"""A lab: what `lab up` makes and tests attach to. Decides which machines there are; a driver makes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lab import events
from lab.converge import run
from lab.converge.desired import Desired, numbered
from lab.converge.kernel_probe import Landing
from lab.converge.plan import Plan, make
from lab.converge.run import Convergence, desire
from lab.drivers.choice import choose_driver, find_driver
from lab.drivers.machines import Gateway, Node
from lab.inventory import Inventory
from lab.lifetime.removal import destroy
from lab.names import check_name, short_name
from lab.progress import Progress, Silent
from lab.state import StateFolder, locked
from lab.topology.checks import MAX_NODES
from lab.topology.daemons import JUPYTERLAB, of
from lab.topology.limits import Limits, User
from lab.topology.model import Topology
from lab.topology.specs import GatewaySpec, NodeSpec, machine_name

__all__ = ["MAX_NODES", "Lab", "destroy"]


class Lab(Inventory):
    """One lab by its name. Get one by `Lab.attach` or `Lab.up`."""

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
        *,
        topology: Topology | None = None,
        sshd: str | None = None,
        lease: float | None = None,
        clusters: Iterable[str] | None = None,
    ) -> Lab:
        """Make the lab *name* whole and return it once a kernel has run on each of its nodes.

        May be called on a lab in any state: what is right stays, what is missing, stopped, paused or outdated is made
        so, what *topology* doesn't ask for (any more) is removed. Without *topology* the lab stays what it is, with *nodes*
        in the row node1, node2 … if that is given; a new one has three. Machines of `add_node` and `add_gateway` stay.

        *clusters* (`spark`, `yarn`, `jupyterlab`) are the words of `--with`, in place of those that it has, or
        *topology* asks for.
        *sshd* is the SSH server of local nodes; *lease* ends the lab by itself after so many seconds. The landings of the
        probe are kept in `landings`. Raises LabNotReady with the failed probe and that machine's last lines.
        """
        progress = progress or Silent()
        folder = _folder(name, nodes, topology)
        given = topology or Topology()
        with locked(f"lab-{name}", what=f"the lab {name}"):
            lab = cls(name, choose_driver(name, folder, driver or given.driver, progress, sshd or given.sshd), folder)
            desired = desire(lab._driver, folder, nodes, topology, clusters)
            # First of all: whoever finds half a lab must know whom to ask for the other half.
            folder.write(folder.driver, lab.driver)
            if topology is not None:
                folder.write(folder.pool, topology.pool or "")
            run.lease(lab, lease if lease is not None else given.lease)
            lab._converge(desired, progress)
        return lab

    @classmethod
    def plan(
        cls,
        name: str = "lab",
        nodes: int | None = None,
        driver: str | None = None,
        *,
        topology: Topology | None = None,
        sshd: str | None = None,
        clusters: Iterable[str] | None = None,
    ) -> Plan:
        """Return what `up` with the same arguments would do, and touch nothing. Raises LabUsageError and LabConflict, as `up`."""
        folder = _folder(name, nodes, topology)
        given = topology or Topology()
        found = choose_driver(name, folder, driver or given.driver, Silent(), sshd or given.sshd)
        return make(found, desire(found, folder, nodes, topology, clusters))

    def scale(self, counts: Mapping[str, int], progress: Progress | None = None) -> Lab:
        """Give node groups (`{"node": 5}`) another number of nodes; gateways that serve them are made anew, as `up` does.

        Return this lab. Raises LabUsageError for a group that isn't there.
        """
        with locked(f"lab-{self.name}", what=f"the lab {self.name}"):
            self._converge(self._scaled(counts), progress or Silent())
        return self

    def plan_scale(self, counts: Mapping[str, int]) -> Plan:
        """Return what `scale` with the same *counts* would do, and touch nothing."""
        return make(self._driver, self._scaled(counts))

    def _scaled(self, counts: Mapping[str, int]) -> Desired:
        return desire(self._driver, self.folder, None, None).scaled(counts)

    def reset(self, *names: str) -> None:
        """Bring nodes (all, if none is named) back to golden: their faults are healed, then each is reset.

        Raises LabNotFound for a name that isn't there, LabNotReady for a node that doesn't come back.
        """
        nodes = [self.node(name) for name in names] if names else [*self.services, *self.nodes]
        woken = [node for node in nodes if node.state != "running"]
        for node in woken:
            node.resume()  # by whichever means it hangs or is off: a fault can only be undone on a node that runs
        self._heal({node.name for node in nodes})
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda node: node.reset(), nodes))
        if woken:
            self.refresh()  # a container that was off has another port now
        events.record(self.name, "node.reset", nodes=[node.name for node in nodes])

    def _heal(self, names: set[str]) -> None:
        # Here and not above: the catalogue of faults costs every other command its import.
        from lab import faults

        # The latest first: under a pause nothing else can be undone.
        for fault in reversed(faults.active(self)):
            if {short_name(node) for node in fault.nodes} & {short_name(name) for name in names}:
                fault.heal()

    landings: Sequence[Landing] = ()
    """Where the probe's kernels ran; filled by `up`."""
    probed_kernelspec = ""
    """What `up` started there."""

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
        roles: Sequence[str] = (),
        users: Mapping[str, User] | None = None,
        packages: Sequence[str] = (),
        limits: Limits | None = None,
        auth: str | None = None,
        validity: float | None = None,
    ) -> Node:
        """Add a node that answers to SSH when this returns; the same call again changes nothing.

        With *trusted* False its host key stays out of the gateways' known_hosts. *login_env* is what pam_env gives to
        every login. No gateway lists it in EG_REMOTE_HOSTS: name it in a kernelspec's or a gateway's hosts. *roles*,
        *users*, *packages* and *limits* are as in a topology; *auth* (`keys`, `certificates`) is as the other nodes have
        it, if it isn't said, and *validity* (seconds) is how long certificates are good for.
        """
        others = [node.spec for node in self.nodes]
        like = others[0] if others else NodeSpec(machine_name(name))
        spec = NodeSpec(
            machine_name(name),
            tuple(sshd_options),
            shell,
            noisy,
            python,
            trusted,
            dict(login_env or {}),
            roles=tuple(roles),
            users=dict(users or {}),
            packages=tuple(sorted(set(packages))),
            limits=limits or Limits(),
            auth=auth or like.auth,
            validity=like.validity if validity is None else validity,
        )
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
        shares: bool = False,
        program: str = "enterprise-gateway",
    ) -> Gateway:
        """Add an Enterprise Gateway that answers to HTTP when this returns; the same call again changes nothing.

        With *program* `jupyterlab` it is a JupyterLab. *env* and *options* are its environment and what goes behind its command
        line; *hosts* (full names) default to the numbered nodes; *kernelspecs* are kernel.json contents beside those that all
        gateways of its program have. Those that share (*shares*; containers alone) have a folder in common, at /shared, which is
        root's at first.
        """
        targets = tuple(hosts) if hosts is not None else self._numbered()
        clusters = of(daemon for service in self.services for daemon in service.spec.daemons)
        extra = dict(kernelspecs or {})
        spec = GatewaySpec(
            name, targets, dict(env or {}), tuple(options), extra, clusters=clusters, shares=shares, program=program
        )
        with locked(f"lab-{self.name}", what=f"the lab {self.name}"):
            gateway = self._driver.put_gateway(spec)
            self.refresh()
        gateway.start()
        return gateway

    def down(self) -> list[str]:
        """Remove everything of this lab and nothing else; return what was removed, in words."""
        return destroy([self._driver], self.folder)

    def environment(self) -> dict[str, Any]:
        """Return what `lab env --json` prints: a contract that only grows."""
        gateways = self.gateways
        from lab.spark.clusters import environment

        return {
            "name": self.name,
            "driver": self.driver,
            "gateway_url": self.gateway.url if gateways else "",
            "nodes": [{"name": n.name, "address": n.address, "port": n.port, "state": n.state} for n in self.nodes],
            "gateways": [
                {"name": g.name, "url": g.url, "address": g.address, "program": g.spec.program} for g in gateways
            ],
            "jupyterlab_url": next((g.page for g in gateways if g.spec.program == JUPYTERLAB), ""),
            "ssh_config": str(self.ssh_config),
            "known_hosts": str(self.folder.known_hosts),
            "identity": str(self.folder.identity),
            **environment(self.services),
        }

    def _converge(self, desired: Desired, progress: Progress) -> None:
        convergence = Convergence(self, self._driver, self._identity().public, progress)
        convergence.run(desired)
        self.landings, self.probed_kernelspec = convergence.landings, convergence.kernelspec


def _folder(name: str, nodes: int | None, topology: Topology | None) -> StateFolder:
    """Return the folder of the lab *name*; raise LabUsageError for a name or a number of nodes that is invalid."""
    folder = StateFolder(check_name(name))
    if topology is None and nodes is not None:
        numbered(nodes)
    return folder
