"""A lab's Spark master and ResourceManager, asked by their REST: who is in, what runs, are they ready."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import httpx

from lab.drivers.machines import Node
from lab.errors import LabError, LabNotFound
from lab.names import short_name
from lab.probes import PROBE_SECONDS, ProbeFailed, wait_until
from lab.spark import logs
from lab.topology import daemons as kinds

if TYPE_CHECKING:
    from lab.inventory import Inventory

READY_SECONDS: Final = 90.0
"""Master and workers are there after 3 s, YARN after 10 s, on an idle machine of two cores; a worker that saw no master tries
again after up to 15 s."""


@dataclass(frozen=True)
class Member:
    """A worker or a NodeManager: its *node*'s full name, and its *state* in the master's own words."""

    node: str
    state: str


@dataclass(frozen=True)
class Application:
    """An application as the master knows it: *name* is what the driver calls it, *state* the master's word for it."""

    id: str
    name: str
    state: str
    user: str
    nodes: tuple[str, ...] = ()
    """Full names of the nodes with its executors; on YARN also that of its application master, which no executor need be on."""
    containers: int = 0
    """How many containers YARN has given it, the application master's among them; 0 on a standalone master."""


class Cluster(ABC):
    """One cluster of a lab; asks its master anew at each call, over the loopback port that the engine gave it."""

    kind: ClassVar[kinds.Kind]
    name: ClassVar[str]
    whole: ClassVar[str]
    alive: ClassVar[str]
    """The state of a member that can be given work."""

    def __init__(self, machine: Node, nodes: Sequence[Node]) -> None:
        self.machine = machine
        self.nodes = tuple(node for node in nodes if kinds.WORKERS[self.kind] in node.spec.daemons)

    @property
    def url(self) -> str:
        """The master's base URL from this machine; the port may be another after a restart."""
        return self.machine.published(kinds.PORTS[self.kind])

    def _name(self, host: str) -> str:
        """Return the full name of the node that the master calls *host*; *host* where it is none of the lab's."""
        return next((node.name for node in self.nodes if node.host == host), host)

    @property
    @abstractmethod
    def address(self) -> str:
        """What drivers on the nodes call it."""

    @abstractmethod
    def members(self) -> list[Member]:
        """Return who is in, or was; raise LabError when the master doesn't answer."""

    @abstractmethod
    def applications(self) -> list[Application]:
        """Return the applications that run, wait, or have run; as `members`."""

    def ask(self, path: str) -> Any:
        """GET *path* and return the JSON in the answer; raise LabError with the master's last lines."""
        try:
            return self._get(path)
        except ProbeFailed as error:
            raise LabError(
                f"{self.name} on {self.machine.name} does not answer",
                cause=str(error),
                remedy="`lab status` says what runs, `lab fault heal` heals what was done to it",
            ) from error

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until each node's worker is in; raise LabNotReady naming those that are not, with their last lines."""
        wanted = {node.name for node in self.nodes}
        missing = set(wanted)

        def probe() -> None:
            missing.clear()
            missing.update(wanted)
            url = self.url
            if not url:
                raise ProbeFailed(f"{self.machine.name} is down")
            there = {member.node for member in self._members(self._get) if member.state == self.alive}
            missing.difference_update(there)
            if missing:
                raise ProbeFailed(f"GET {url}{self._members_path}: not {self.alive}: {', '.join(sorted(missing))}")

        def last_lines() -> str:
            machines = [self.machine, *(node for node in self.nodes if node.name in missing)]
            return "\n".join(logs.last_lines(machine) for machine in machines)

        wait_until(f"{self.whole} of {self.name}", probe, seconds=seconds, logs=last_lines)

    _members_path: ClassVar[str]

    @abstractmethod
    def _members(self, get: Any) -> list[Member]:
        """Return the members by *get*, which takes a path."""

    def _get(self, path: str) -> Any:
        try:
            # Proxies of the environment are for the internet.
            answer = httpx.get(f"{self.url}{path}", timeout=PROBE_SECONDS, trust_env=False)
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ProbeFailed(f"GET {self.url}{path}: {str(error) or type(error).__name__}") from error


class SparkMaster(Cluster):
    """A standalone master and its workers."""

    kind = "spark"
    name = "the Spark master"
    whole = "the workers"
    alive = "ALIVE"
    _members_path = "/json/"

    @property
    def address(self) -> str:
        """The master's URL."""
        return f"spark://{self.machine.endpoint(7077)}"

    def members(self) -> list[Member]:
        """Workers; one that has come back is listed once, as it is now."""
        return self._members(self.ask)

    def _members(self, get: Any) -> list[Member]:
        found: dict[str, str] = {}
        for worker in get(self._members_path)["workers"]:
            # A dead worker stays in the list for a while, beside the same node's living one.
            name = self._name(worker["host"])
            if found.get(name) != self.alive:
                found[name] = worker["state"]
        return [Member(host, state) for host, state in sorted(found.items())]

    def applications(self) -> list[Application]:
        """Active ones, then completed ones."""
        told = self.ask("/json/")
        # Where executors are is on the application's page alone, as HTML: so the nodes are asked.
        executors = {node.name: logs.executors(node) for node in self.nodes} if told["activeapps"] else {}
        return [
            Application(
                app["id"],
                app["name"],
                app["state"],
                app["user"],
                tuple(name for name, there in executors.items() if app["id"] in there),
            )
            for app in (*told["activeapps"], *told["completedapps"])
        ]


class ResourceManager(Cluster):
    """A YARN cluster."""

    kind = "yarn"
    name = "the ResourceManager"
    whole = "the NodeManagers"
    alive = "RUNNING"
    _members_path = "/ws/v1/cluster/nodes"

    @property
    def address(self) -> str:
        """Host and port for clients."""
        return self.machine.endpoint(8032)

    def members(self) -> list[Member]:
        """NodeManagers."""
        return self._members(self.ask)

    def _members(self, get: Any) -> list[Member]:
        told = get(self._members_path)["nodes"] or {}
        found: dict[str, str] = {}
        for node in told.get("node", []):
            name = self._name(node["nodeHostName"])
            if found.get(name) != self.alive:
                found[name] = node["state"]
        return [Member(host, state) for host, state in sorted(found.items())]

    def applications(self) -> list[Application]:
        """All that the ResourceManager remembers."""
        told = self.ask("/ws/v1/cluster/apps")["apps"] or {}
        return [
            Application(app["id"], app["name"], app["state"], app["user"], *self._containers(app))
            for app in told.get("app", [])
        ]

    def _containers(self, app: Any) -> tuple[tuple[str, ...], int]:
        """Return the nodes with containers of an application, and how many those are; none unless it runs."""
        if app["state"] != "RUNNING":
            return (), 0
        attempts = self.ask(f"/ws/v1/cluster/apps/{app['id']}/appattempts")["appAttempts"]["appAttempt"]
        latest = attempts[-1]
        path = f"/ws/v1/cluster/apps/{app['id']}/appattempts/{latest['appAttemptId']}/containers"
        told = self.ask(path) or {}
        hosts = [self._name(str(each["assignedNodeId"]).partition(":")[0]) for each in told.get("container", [])]
        return tuple(sorted(set(hosts))), len(hosts)


CLASSES: Final[dict[str, type[Cluster]]] = {each.kind: each for each in (SparkMaster, ResourceManager)}


def clusters(lab: Inventory) -> list[Cluster]:
    """Return the clusters of *lab*; none where it has no services."""
    services = lab.services
    nodes = lab.nodes if services else []
    return [CLASSES[kind](machine, nodes) for machine in services for kind in kinds.of(machine.spec.daemons)]


def cluster(lab: Inventory, kind: str) -> Cluster:
    """Return one cluster by its kind; raise LabNotFound."""
    for found in clusters(lab):
        if found.kind == kind:
            return found
    raise LabNotFound(f"the lab {lab.name} has no {kind}", remedy=f"`lab up --name {lab.name} --with {kind}`")


def environment(services: Iterable[Node]) -> dict[str, str]:
    """Return what `lab env --json` says of the clusters: empty strings where there is none."""
    found = {"spark_master": "", "spark_ui": "", "yarn_rm": "", "yarn_ui": ""}
    for machine in services:
        for kind in kinds.of(machine.spec.daemons):
            known = CLASSES[kind](machine, ())
            found |= (
                {"spark_master": known.address, "spark_ui": known.url}
                if kind == "spark"
                else {"yarn_rm": known.address, "yarn_ui": known.url}
            )
    return found


def report(lab: Inventory) -> list[dict[str, Any]]:
    """Return what `lab status --json` says of the clusters; one that doesn't answer says why."""
    found = []
    for each in clusters(lab):
        told: dict[str, Any] = {"kind": each.kind, "machine": short_name(each.machine.name), "url": each.url}
        try:
            told["members"] = [asdict(member) for member in each.members()]
            told["applications"] = [asdict(application) for application in each.applications()]
        except LabError as error:
            told |= {"members": [], "applications": [], "error": error.cause or str(error)}
        there = {member["node"] for member in told["members"] if member["state"] == each.alive}
        told["missing"] = [node.name for node in each.nodes if node.name not in there]
        found.append(told)
    return found
