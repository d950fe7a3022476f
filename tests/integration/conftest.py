"""What the integration tests share: clients that clean up, machines of a test's own, and looks at what is there.

Lab, nodes, gateways, and the look at what a test left behind are the lab's pytest plugin's. Tests of the product lease
`NODES` nodes, so that two workers of xdist share one lab; a test that measures times is `alone` there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias

import pytest
import pytest_asyncio
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from lab import Gateway, Lab, Node
from lab.machines import Machine
from tests.integration.client import GatewayClient

NODES = 3
"""How many nodes a test of the product leases."""

for _talkative in ("asyncssh", "httpx", "docker", "urllib3"):  # a failed test shall show what the test said
    logging.getLogger(_talkative).setLevel(logging.WARNING)


SPREAD = (
    "test_balancing.py",
    "test_enterprise_gateway_suite.py",
    "test_faults.py",
    "test_lifecycle.py",
    "test_persistence.py",
    "test_ports.py",
)
"""Files whose tests share no machines of their own: xdist gives them to its workers one by one, others as a whole."""


HEAVY = ("test_lab.py", "test_lab_local.py", "test_wheel.py")
"""Files that make labs and environments of their own, and so take the processors that a test which is `alone` wants."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have each test of `HEAVY` hold a node of the shared lab, so that none runs beside a test that is `alone`."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        for item in items:
            if item.path.name in HEAVY and item.get_closest_marker("lab") is None:
                item.add_marker(pytest.mark.lab(nodes=1))


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Which tests of one session share a worker: those of a file, unless it is one of `SPREAD`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return nodeid if file.endswith(SPREAD) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """Deal out by `Scheduling` under plain `-n`; `--dist` chooses something else."""
    return Scheduling(config, log) if config.getoption("dist") == "load" else None


# -- machines and clients ----------------------------------------------------------------------------------------------


def own_name(name: str) -> str:
    """Return a name for a machine that this process adds to the lab; another worker of xdist may add one like it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return f"{name}-{worker}" if worker else name


@pytest.fixture
def names(nodes: Sequence[Node]) -> tuple[str, ...]:
    """The full names of the test's nodes."""
    return tuple(node.name for node in nodes)


@pytest.fixture
def own_network(lab: Lab) -> None:
    """For tests that look at ports, packets or addresses."""
    if lab.driver == "local":
        pytest.skip(
            "the nodes of a local lab share this machine's network: their ports and packets can't be told apart"
        )


@pytest_asyncio.fixture
async def client(gateway: Gateway) -> AsyncIterator[GatewayClient]:
    """A client of `gateway`, which deletes what it started."""
    async with GatewayClient(gateway.url) as found:
        yield found


class MakeGateway(Protocol):
    """`extra_gateway(name, env=…, options=…)`."""

    def __call__(
        self,
        name: str,
        *,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        hosts: Sequence[str] | None = None,
        kernelspecs: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Gateway:
        """As `Lab.add_gateway`, whose hosts are the test's nodes if none are named."""


@pytest.fixture
def extra_gateway(lab: Lab, names: tuple[str, ...]) -> Iterator[MakeGateway]:
    """Makes gateways that a test kills, or that nobody else can use; they are gone after the test."""
    made: list[Gateway] = []

    def make(name: str, *, hosts: Sequence[str] | None = None, **options: Any) -> Gateway:
        made.append(lab.add_gateway(own_name(name), hosts=hosts or names, **options))
        return made[-1]

    yield make
    for gateway in made:
        end_gateway(gateway)


def end_gateway(gateway: Gateway) -> None:
    """Remove *gateway*, orderly, so that it ends first what it was about to: killed, it leaves that to its kernels' nodes."""
    gateway.stop()
    gateway.remove()


class MakeNode(Protocol):
    """`extra_node(name, shell=…)`."""

    def __call__(self, name: str, **options: Any) -> Node:
        """As `Lab.add_node`."""


@pytest.fixture
def extra_node(lab: Lab) -> Iterator[MakeNode]:
    """Makes nodes of other kinds; they are gone after the test."""
    made: list[Node] = []

    def make(name: str, **options: Any) -> Node:
        made.append(lab.add_node(own_name(name), **options))
        return made[-1]

    yield make
    for node in made:
        node.remove()


ClientOf: TypeAlias = Callable[[Gateway], GatewayClient]


@pytest_asyncio.fixture
async def client_of(extra_gateway: MakeGateway, extra_node: MakeNode) -> AsyncIterator[ClientOf]:
    """Makes clients of other gateways, which delete what they started before their gateways and nodes go."""
    async with contextlib.AsyncExitStack() as stack:
        made: list[GatewayClient] = []

        def make(gateway: Gateway) -> GatewayClient:
            made.append(GatewayClient(gateway.url))
            stack.push_async_callback(made[-1].close)
            return made[-1]

        yield make


# -- what is there ---------------------------------------------------------------------------------------------------


def listening(machine: Machine, *, loopback: bool = False) -> set[int]:
    """Return the TCP ports that *machine* listens on towards the network, or, with *loopback*, on its loopback alone.

    Every ipykernel has one on loopback whatever its transport: the pipe on which its cells' subprocesses print.
    """
    lines = machine.exec(["ss", "-ltnH"]).check().stdout.splitlines()
    ports = set()
    for line in lines:
        address, _, port = line.split()[3].rpartition(":")  # State Recv-Q Send-Q Local-Address:Port Peer-Address:Port
        # 127.0.0.11 is the engine's own resolver.
        if address != "127.0.0.11" and (address.startswith("127.") or address == "[::1]") is loopback:
            ports.add(int(port))
    return ports


def processes(node: Machine) -> dict[int, str]:
    """Return what runs for the login user on *node*, by pid: kernels and what they left; without sshd and our own."""
    return {pid: args for pid, (_, args) in _table(node).items()}


def _table(node: Machine) -> dict[int, tuple[int, str]]:
    """As `processes`, each with its parent's pid before its command line."""
    lines = node.exec(["ps", "-u", user_of(node), "-o", "pid=,ppid=,stat=,args="]).stdout.splitlines()
    found = {}
    for line in lines:
        pid, parent, stat, args = line.split(None, 3)
        if not (args.startswith(_NO_KERNELS) or _LAB.search(args) or _is_ours(args) or stat.startswith("Z")):
            found[int(pid)] = (int(parent), args)
    return found


_NO_KERNELS = ("sshd", "/usr/sbin/sshd", "ps -u", "timeout --foreground")
_LAB = re.compile(r"\blab[./]local[./]")
"""What a local node's main process and its SSH server have in their command lines."""


_OURS = re.compile(r"/eg-distributed(-\d+-[^/]+)?/.*\.zip$")
"""The agent's source: in the user's own folders, or, where a path would be too long for a socket, in one below /tmp."""


def user_of(node: Machine) -> str:
    """Return the login user of *node*."""
    assert isinstance(node, Node)
    return node.entry().user


def home_of(node: Machine) -> str:
    """Return the login user's home on *node*."""
    return node.exec(["sh", "-c", 'echo "$HOME"']).check().stdout.strip()


def zombies(node: Machine) -> int:
    """Return how many ended processes nobody has waited for on *node*."""
    return sum(line.strip().startswith("Z") for line in node.exec(["ps", "-eo", "stat="]).stdout.splitlines())


def _is_ours(args: str) -> bool:
    """Whether it is an agent, or a bridge, which lives as long as its gateway's SSH connection."""
    return any(_OURS.search(word) for word in args.split())


def _is_agent(args: str) -> bool:
    return _is_ours(args) and "agent" in args.split()


def agents(node: Machine) -> list[int]:
    """Return the pids of our agents on *node*."""
    lines = node.exec(["ps", "-u", user_of(node), "-o", "pid=,args="]).stdout.splitlines()
    return [int(line.split(None, 1)[0]) for line in lines if _is_agent(line)]


def kernel_files(node: Machine) -> list[str]:
    """Return the folders of kernels that *node*'s agents keep."""
    script = """cache="${XDG_CACHE_HOME:-$HOME/.cache}"
        short=$(printf %s "$cache" | sha256sum | cut -c1-8)  # where a path would be too long for a socket
        ls -d "$cache"/eg-distributed/*/k/* /tmp/eg-distributed-$(id -u)-$short/k/* 2>/dev/null"""
    return node.exec(["sh", "-c", script]).stdout.split()


def kernel_sockets(gateway: Machine) -> list[str]:
    """Return the folders of kernels' sockets at *gateway*."""
    script = "ls -d ${EG_DISTRIBUTED_RUNTIME_DIR:-/tmp/eg-distributed-*}/*/ 2>/dev/null"
    found = gateway.exec(["sh", "-c", script]).stdout.split()
    # Where the gateway is a process, the folder of an agent of its own is there as well.
    return [folder for folder in found if not folder.endswith("/eg-distributed/")]


def count_kernels(nodes: Iterable[Node]) -> Counter[str]:
    """Return how many kernels run on each of *nodes*, by the nodes' own process tables."""
    looked_at = list(nodes)
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(_table, looked_at))
    return Counter({node.name: _kernels(table) for node, table in zip(looked_at, tables, strict=True)})


def _kernels(table: Mapping[int, tuple[int, str]]) -> int:
    """Count the kernels in a process table; one that forks to run a command is two alike for a moment, parent and child."""
    kernels = {
        pid: parent for pid, (parent, args) in table.items() if "ipykernel" in args and "python" in args.split()[0]
    }
    return sum(parent not in kernels for parent in kernels.values())
