"""How `up` and `scale` make a lab what it shall be: remove, make, wait, and see a kernel run on every node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lab import events
from lab import lease as leases
from lab.converge.desired import Desired, from_running, from_text, from_topology, is_added, numbered
from lab.converge.kernel_probe import Landing, start_kernel_on
from lab.drivers.contract import Driver
from lab.drivers.machines import Gateway, Node
from lab.errors import LabError, LabNotReady
from lab.kernelspecs import on_node
from lab.lifetime import holding
from lab.probes import side_by_side
from lab.progress import Progress
from lab.state import StateFolder
from lab.topology.daemons import JUPYTERLAB
from lab.topology.model import Topology
from lab.topology.specs import PROGRAMS, GatewaySpec, NodeSpec

if TYPE_CHECKING:
    from lab.inventory import Inventory

DEFAULT_NODES = 3
IMPORT_PROBE = "import eg_distributed; eg_distributed.DistributedProcessProxy"


def desire(
    driver: Driver,
    folder: StateFolder,
    nodes: int | None,
    topology: Topology | None,
    clusters: Iterable[str] | None = None,
) -> Desired:
    """Return what `up` shall make: what *topology* says, else what the lab was made to be, with *nodes* in its row.

    What the lab was made to be is what its machines say, or an `up` that was interrupted before they were all there.
    *clusters* (the words of `with`) replace those that it had.
    """
    if topology is not None:
        found = from_topology(topology)
        return found if clusters is None else found.running(clusters)
    running = _interrupted(folder) or from_running(
        [node.spec for node in driver.nodes()],
        [gateway.spec for gateway in driver.gateways()],
        gateway=not folder.no_gateway.exists(),
        services=[service.spec for service in driver.services()],
    )
    return _with_nodes(running, nodes) if clusters is None else _with_nodes(running, nodes).running(clusters)


def _interrupted(folder: StateFolder) -> Desired | None:
    try:
        return from_text(folder.wanted.read_text())
    except OSError:
        return None


def _with_nodes(running: Desired, nodes: int | None) -> Desired:
    if not running.nodes:
        fresh = from_topology(numbered(nodes or DEFAULT_NODES))
        gateways = tuple(gateway.serving(fresh.nodes) for gateway in running.gateways)
        return Desired(fresh.nodes, gateways).running(running.words)
    return running if nodes is None else running.scaled({"node": nodes})


def lease(lab: Inventory, seconds: float | None) -> None:
    """Grant a lease of *seconds*, if it is given, and tell the machines that are there, so that a new one can wake them."""
    held = leases.read(lab.name)
    if seconds is not None:
        holding.grant(lab.name, seconds)
    elif held is not None and held.is_over():
        # Whoever asks for a lab whose time is over wants it back, and not for another second.
        holding.release(lab.name)
    elif held is None:
        return
    holding.extend(lab, leases.expiry(lab.name) or leases.NEVER)


class Convergence:
    """One run of `up` or `scale` on *lab*; called with the lab's lock held."""

    def __init__(self, lab: Inventory, driver: Driver, identity: str, progress: Progress) -> None:
        self._lab = lab
        self._driver = driver
        self._identity = identity
        self._progress = progress
        self.landings: tuple[Landing, ...] = ()
        self.kernelspec = ""

    def run(self, desired: Desired) -> None:
        """Make the lab *desired*; raise LabNotReady with the probe that failed."""
        lab = self._lab
        # Machines come one by one: whoever goes on from here must know of those that are still lacking.
        lab.folder.write(lab.folder.wanted, desired.text())
        try:
            self._driver.prepare(self._progress, [*desired.nodes, *desired.services, *desired.gateways])
        except LabError:
            # What can't be made here is not to be tried again by an `up` that asks for nothing.
            lab.folder.wanted.unlink(missing_ok=True)
            raise
        if not all(map(is_added, desired.gateways)):
            lab.folder.no_gateway.unlink(missing_ok=True)
        else:
            lab.folder.write(lab.folder.no_gateway, "")
        self._remove_others(desired)
        services = [self._driver.put_node(spec, self._identity) for spec in desired.services]
        nodes = self._put_nodes(desired)
        gateways = self._put_gateways(desired)
        # From here on the machines say themselves what the lab is.
        lab.folder.wanted.unlink(missing_ok=True)
        lab.refresh()
        self._progress.step("an SSH login on every node")
        self._await([*services, *nodes], lambda node: node.wait_ready())
        if gateways:
            what = "an HTTP answer of the gateway" if len(gateways) == 1 else "an HTTP answer of every gateway"
            self._progress.step(what)
            self._await(gateways, lambda gateway: gateway.wait_ready())
        if services:
            from lab.spark.clusters import clusters  # slow to import, as HTTP clients are

            for cluster in clusters(lab):
                self._progress.step(f"{cluster.whole} of {cluster.name}")
                self._await([cluster], lambda found: found.wait_ready())
        self._probe(desired, gateways)
        events.record(lab.name, "up", driver=lab.driver, nodes=[node.name for node in nodes])

    def _remove_others(self, desired: Desired) -> None:
        """Remove the machines of groups that are not asked for (any more)."""
        specs: list[NodeSpec | GatewaySpec] = [*desired.nodes, *desired.gateways, *desired.services]
        wanted = {spec.name for spec in specs}
        for machine in self._lab.machines:
            if machine.group and machine.name not in wanted:
                self._progress.note(f"removing {machine.name}: it is not asked for")
                machine.remove()
                events.record(self._lab.name, "node.removed", node=machine.name)

    def _put_nodes(self, desired: Desired) -> list[Node]:
        """Make the nodes, wake those that are nobody's group's, and return them all."""
        count = len(desired.nodes)
        self._progress.step(f"{count} node{'s' if count > 1 else ''}")
        before = {node.name for node in self._lab.nodes}
        with ThreadPoolExecutor(4) as pool:
            nodes = list(pool.map(lambda spec: self._driver.put_node(spec, self._identity), desired.nodes))
        extra = [node for node in self._lab.nodes if not node.group]
        for node in extra:
            self._driver.authorize(node, self._identity)
            node.resume()
        for node in nodes:
            if node.name not in before:
                events.record(self._lab.name, "node.added", node=node.name)
        return [*nodes, *extra]

    def _put_gateways(self, desired: Desired) -> list[Gateway]:
        if desired.gateways:
            count = len(desired.gateways)
            self._progress.step(f"{count} gateways" if count > 1 else "gateway")
        gateways = [self._driver.put_gateway(spec) for spec in desired.gateways]
        for other in self._lab.gateways:
            other.resume()
        return gateways

    def _await(self, machines: Sequence[Any], ready: Callable[[Any], None]) -> None:
        try:
            side_by_side(ready, machines)
        except LabNotReady as error:
            events.record(self._lab.name, "probe.failed", what=error.what, cause=error.cause)
            raise

    def _probe(self, desired: Desired, gateways: Sequence[Gateway]) -> None:
        """Start a kernel on every node once by each program, by the first of its gateways that serves the node.

        Not on nodes that were asked to be impossible: without a python3, or with a host key that gateways must refuse.
        """
        able = {spec.name for spec in desired.nodes if spec.trusted and spec.python != "none"}
        for program in PROGRAMS:
            left = set(able)
            for gateway in (each for each in gateways if each.spec.program == program):
                names = [name for name in gateway.hosts if name in left]
                left -= set(names)
                if names:
                    self._probe_kernels(gateway, names)

    def _probe_kernels(self, gateway: Gateway, names: Sequence[str]) -> None:
        if gateway.spec.program == JUPYTERLAB:
            self._progress.step("a kernel on every node by JupyterLab's server")
            # Which has no way to say where: a kernelspec for each node does.
            side_by_side(lambda name: start_kernel_on(gateway, name, on_node(name)), names)
            return
        ours = gateway.exec([gateway.python, "-c", IMPORT_PROBE]).exit_code == 0
        self.kernelspec = "python_distributed" if ours else "python_distributed_stock"
        if not ours:
            self._progress.note(
                "this checkout's wheel has no DistributedProcessProxy: probing with Enterprise Gateway's own"
            )
        self._progress.step("a kernel on every node")
        # Enterprise Gateway's own proxy starts kernels one at a time anyway, and its start-up is what we wait for.
        at_once = 4 if ours else 1
        landings = side_by_side(lambda name: start_kernel_on(gateway, name, self.kernelspec), names, at_once=at_once)
        self.landings = (*self.landings, *landings)
