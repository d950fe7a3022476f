"""SSH hosts for suites that use testcontainers, in its words: `with_…`, `start`, `get_exposed_port`, `get_logs`, `waiting_for`.

    with SSHCluster(nodes=3) as cluster:
        host, port = cluster.get_container_host_ip(), cluster.get_exposed_port(22, node="node1")
        assert cluster.exec("node2", ["hostname"]).stdout == "node2.lab.test\\n"

A cluster is ready when `start` returns: an SSH login and a command on every node, an HTTP answer of the gateway, a kernel on each
node. It is removed by `stop` (one that is shared by its name: by the last that stops), by the end of the `with`, and when the
process that it belongs to ends in any other way. testcontainers' own reaper (Ryuk) has no part in that: it removes what carries
its process's session label, and our machines carry none, so that a lab which several processes share isn't taken from the
others when one of them ends.

Nothing of testcontainers is imported. Its wait strategies work on a cluster's nodes (`cluster.waiting_for(strategy)`), since
these have the methods that strategies call; `pip install eg_distributed_lab[testcontainers]` brings both.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from lab import lease
from lab.drivers import choice
from lab.drivers.machines import ExecResult, Gateway, Machine, Node
from lab.errors import LabError, LabNotFound, LabNotReady, LabUsageError
from lab.lab import Lab
from lab.names import check_name
from lab.probes import ProbeFailed, wait_until
from lab.testing.sharing import Users

if TYPE_CHECKING:
    from typing_extensions import Self

HOST = "127.0.0.1"
SSH_PORT, GATEWAY_PORT = 22, 8888
WAIT_SECONDS = 60.0
LOG_LINES = 20


class WaitStrategy(Protocol):
    """What testcontainers' wait strategies are, as far as they are used here."""

    def wait_until_ready(self, container: Any) -> None:
        """Return when *container* is ready, raise TimeoutError when it isn't in time."""


class SSHCluster:
    """N SSH hosts and a Jupyter Enterprise Gateway. The `with_` methods return the cluster and are for before `start`."""

    def __init__(self, nodes: int = 3, *, name: str | None = None, driver: str | None = None) -> None:
        self._count: int | None = nodes
        self._name = check_name(name) if name is not None else f"tc-{secrets.token_hex(3)}"
        self._driver = driver
        self._file: Path | None = None
        self._strategies: list[WaitStrategy] = []
        self._probes: list[tuple[Callable[[SSHCluster], Any], float]] = []
        self._lab: Lab | None = None
        self._token = secrets.token_hex(3)

    # -- before the start ----------------------------------------------------------------------------------------------

    def with_nodes(self, count: int) -> Self:
        """Have *count* nodes."""
        self._count = count
        return self

    def with_name(self, name: str) -> Self:
        """Share the lab *name*: used if it is there, made otherwise; a lab that was there before all clusters stays.

        The last of those that share it removes it. When the process that it belongs to is killed it goes at once.
        """
        self._name = check_name(name)
        return self

    def with_driver(self, driver: str) -> Self:
        """Be `docker` or `local`, whatever this machine has."""
        self._driver = driver
        return self

    def with_topology(self, file: str | Path) -> Self:
        """Be what a lab.toml says."""
        self._file = Path(file)
        return self

    def waiting_for(self, strategy: WaitStrategy | Callable[[SSHCluster], Any], seconds: float = WAIT_SECONDS) -> Self:
        """Wait for more than SSH and HTTP: a wait strategy of testcontainers, asked of every node; or a function of the cluster.

        The function is called until it returns something true, for *seconds*.
        """
        if hasattr(strategy, "wait_until_ready"):
            self._strategies.append(strategy)
        else:
            self._probes.append((strategy, seconds))
        return self

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Make the cluster and wait until it is ready; raise LabNotReady with the last lines of what isn't."""
        users = Users(self._name)
        try:
            with users.held():
                self._lab = users.attach_or_make(self._token, self._make, seconds=lease.TERM_SECONDS)
            self._wait(self._lab)
        except BaseException:  # ^C included: nobody else would take the half-made cluster down
            self.stop()
            raise
        return self

    def _make(self) -> Lab:
        if self._file is None:
            return Lab.up(self._name, self._count, driver=self._driver)
        from lab.topology import load

        return Lab.up(self._name, driver=self._driver, topology=load(self._file, drivers=choice.names()))

    def _wait(self, lab: Lab) -> None:
        for node in lab.nodes:
            for strategy in self._strategies:
                try:
                    strategy.wait_until_ready(NodeContainer(node))
                except TimeoutError as error:
                    what = f"{node.name} of the cluster {self._name} is not what {type(strategy).__name__} waits for"
                    raise LabNotReady(what, cause=str(error), logs=node.read_logs(LOG_LINES)) from error
        for probe, seconds in self._probes:

            def attempt(probe: Callable[[SSHCluster], Any] = probe) -> None:
                if not probe(self):
                    raise ProbeFailed("it returned nothing true")

            what = f"{getattr(probe, '__name__', 'a probe')} of the cluster {self._name}"
            wait_until(what, attempt, seconds=seconds, logs=lambda: self._last_lines(lab))

    @staticmethod
    def _last_lines(lab: Lab) -> str:
        return "\n".join(f"{each.name}: {each.read_logs(5)}" for each in lab.machines)

    def stop(self) -> None:
        """Remove the cluster unless others use it, or it was there before all clusters. Fine if it is gone already."""
        self._lab = None
        users = Users(self._name)
        if users.is_one(self._token):
            with users.held():
                users.leave(self._token)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what is there -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The lab's name, for `lab status --name` while a test waits."""
        return self._name

    @property
    def lab(self) -> Lab:
        """Everything else that a lab can do."""
        if self._lab is None:
            raise LabUsageError(
                f"the cluster {self._name} is not started", remedy="`with SSHCluster() as cluster:`, or `start()`"
            )
        return self._lab

    @property
    def nodes(self) -> list[Node]:
        """The nodes."""
        return self.lab.nodes

    @property
    def gateway(self) -> Gateway:
        """The gateway."""
        return self.lab.gateway

    def get_container_host_ip(self) -> str:
        """Return where the exposed ports are: this machine's loopback."""
        return HOST

    def get_exposed_port(self, port: int, node: str = "node1") -> int:
        """Return the port on this machine that leads to sshd (22) of *node*, or to the gateway (8888)."""
        if port == GATEWAY_PORT:
            return int(self.gateway.url.rpartition(":")[2])
        if port == SSH_PORT:
            return self.lab.node(node).port
        raise LabUsageError(
            f"a cluster does not expose port {port}",
            cause=f"it exposes {SSH_PORT} of each node and {GATEWAY_PORT} of the gateway",
        )

    def get_connection_url(self, node: str = "node1") -> str:
        """Return `ssh://lab@127.0.0.1:32768`."""
        entry = self.lab.node(node).entry()
        return f"ssh://{entry.user}@{HOST}:{entry.port}"

    def get_ssh_config(self) -> Path:
        """Return a file for `ssh -F`: all nodes by their names, the key, strict host keys."""
        return self.lab.ssh_config

    def get_logs(self, machine: str | None = None) -> tuple[bytes, bytes]:
        """Return (stdout, stderr), as testcontainers does, of a node, of the gateway, or of all; a lab has them in one stream."""
        machines: list[Machine] = [*self.lab.nodes, *self.lab.gateways]
        chosen = [each for each in machines if machine in {None, each.name, each.name.partition(".")[0]}]
        if not chosen:
            raise LabNotFound(f"the cluster {self._name} has no machine {machine}")
        return "".join(each.read_logs() for each in chosen).encode(), b""

    def exec(self, node: str, command: Sequence[str]) -> ExecResult:
        """Run *command* on *node*, as its login user and not through SSH."""
        return self.lab.node(node).exec(command)

    def get_node(self, name: str) -> NodeContainer:
        """Return a node with the methods that testcontainers' own helpers expect of a container."""
        return NodeContainer(self.lab.node(name))


class NodeContainer:
    """One node as testcontainers' wait strategies see a container."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def status(self) -> str:
        """`running`, `paused`, or `exited`."""
        return {"stopped": "exited"}.get(self.node.state, self.node.state)

    def reload(self) -> None:
        """Do nothing: a node is asked anew each time."""

    def get_container_host_ip(self) -> str:
        """Return where its exposed port is."""
        return HOST

    def get_exposed_port(self, port: int) -> int:
        """Return the port on this machine that leads to sshd."""
        if port != SSH_PORT:
            raise LabUsageError(f"{self.node.name} does not expose port {port}", cause=f"it exposes {SSH_PORT}")
        return self.node.port

    def get_logs(self) -> tuple[bytes, bytes]:
        """Return sshd's log as (stdout, stderr)."""
        return self.node.read_logs().encode(), b""

    def get_wrapped_container(self) -> Any:
        """Return docker's own container; raise LabError on a driver that has none."""
        found = self.node.native
        if found is None:
            raise LabError(f"{self.node.name} is no container", remedy="SSHCluster(driver='docker')")
        return found

    def exec(self, command: str | Sequence[str]) -> tuple[int, bytes]:
        """Run *command* (a text runs in a shell) and return (exit code, output)."""
        done = self.node.exec(["sh", "-c", command] if isinstance(command, str) else command)
        return done.exit_code, (done.stdout + done.stderr).encode()
