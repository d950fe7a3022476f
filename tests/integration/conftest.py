"""What the integration tests share: one lab, its gateway, clients that clean up, and a look at what was left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias

import httpx
import pytest
import pytest_asyncio

from lab import Gateway, Lab, LabError, Node
from lab.containers.engine import connect
from lab.errors import EnvironmentUnfit
from lab.machines import Machine
from lab.names import DEFAULT_GATEWAY, USER, node_number
from tests.integration.client import GatewayClient

LAB_NAME = os.environ.get("LAB_NAME", "it")
"""Set it to run beside somebody else's tests on one machine."""
NODES = ("node1.lab.test", "node2.lab.test", "node3.lab.test")
CLEAN_SECONDS = 10.0
"""How long a deleted kernel may take to be gone from its node: longer than the cluster's own grace of 5 s."""


for _talkative in ("asyncssh", "httpx", "docker", "urllib3"):  # a failed test shall show what the test said
    logging.getLogger(_talkative).setLevel(logging.WARNING)


# -- the lab ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A lab of three nodes; kept for the next run if LAB_KEEP is set. No engine: skipped, unless LAB_REQUIRE_DOCKER is set."""
    try:
        connect()
    except EnvironmentUnfit as error:
        if os.environ.get("LAB_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    found = Lab.up(LAB_NAME, nodes=len(NODES), driver="docker")
    # A run that was killed left these.
    for machine in (*found.gateways, *found.nodes):
        if machine.name != DEFAULT_GATEWAY and node_number(machine.name) is None:
            machine.remove()
    yield found
    if not os.environ.get("LAB_KEEP"):
        found.down()


@pytest.fixture(scope="session")
def gateway(lab: Lab) -> Gateway:
    """The gateway that every lab has: three nodes, round-robin."""
    return lab.gateway


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
        """As `Lab.add_gateway`."""


@pytest.fixture
def extra_gateway(lab: Lab) -> Iterator[MakeGateway]:
    """Makes gateways with other options; they are gone after the test."""
    made: list[Gateway] = []

    def make(name: str, **options: Any) -> Gateway:
        made.append(lab.add_gateway(name, **options))
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
        made.append(lab.add_node(name, **options))
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


async def until(
    what: str, probe: Callable[[], Any] | Callable[[], Awaitable[Any]], timeout: float = 15, pause: float = 0.1
) -> Any:
    """Call *probe* (a function, run in a thread, or a coroutine function) until it returns something true; return that.

    Raises AssertionError with *what* and the last answer after *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        if asyncio.iscoroutinefunction(probe):
            found = await probe()
        else:
            found = await asyncio.to_thread(probe)
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s, last seen {found!r}"
        await asyncio.sleep(pause)


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
    lines = node.exec(["ps", "-u", USER, "-o", "pid=,stat=,args="]).stdout.splitlines()
    found = {}
    for line in lines:
        pid, stat, args = line.split(None, 2)
        if not (args.startswith(("sshd:", "ps -u", "timeout --foreground")) or _is_ours(args) or stat.startswith("Z")):
            found[int(pid)] = args
    return found


def zombies(node: Machine) -> int:
    """Return how many ended processes nobody has waited for on *node*."""
    return sum(line.strip().startswith("Z") for line in node.exec(["ps", "-eo", "stat="]).stdout.splitlines())


def _is_ours(args: str) -> bool:
    """Whether it is an agent, or a bridge, which lives as long as its gateway's SSH connection."""
    return any("/eg-distributed/" in word and word.endswith(".zip") for word in args.split())


def _is_agent(args: str) -> bool:
    return _is_ours(args) and "agent" in args.split()


def agents(node: Machine) -> list[int]:
    """Return the pids of our agents on *node*."""
    lines = node.exec(["ps", "-u", USER, "-o", "pid=,args="]).stdout.splitlines()
    return [int(line.split(None, 1)[0]) for line in lines if _is_agent(line)]


def kernel_files(node: Machine) -> list[str]:
    """Return the folders of kernels that *node*'s agents keep."""
    script = 'ls -d "$HOME"/.cache/eg-distributed/*/k/* "${XDG_RUNTIME_DIR:-/nowhere}"/eg-distributed/*/k/* 2>/dev/null'
    return node.exec(["sh", "-c", script]).stdout.split()


def kernel_sockets(gateway: Machine) -> list[str]:
    """Return the folders of kernels' sockets at *gateway*."""
    return gateway.exec(["sh", "-c", "ls -d /tmp/eg-distributed-*/*/ 2>/dev/null"]).stdout.split()


def count_kernels(lab: Lab) -> Counter[str]:
    """Return how many kernels run on each node of *lab*, by the nodes' own process tables."""
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(processes, lab.nodes))
    return Counter(
        {
            node.name: sum("ipykernel" in args and "/opt/kernel" in args for args in table.values())
            for node, table in zip(lab.nodes, tables, strict=True)
        }
    )


# -- nothing is left behind ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that used the lab: no kernel at any gateway, no process and no file of one on any node."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab: Lab = request.getfixturevalue("lab")
    yield
    deadline = time.monotonic() + CLEAN_SECONDS
    while (left := _left_behind(lab)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        _clean(lab)
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)


def _left_behind(lab: Lab) -> list[str]:
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(_left_on_node, lab.nodes), *pool.map(_left_on_gateway, lab.gateways)]
    return [line for lines in found for line in lines]


def _left_on_node(node: Node) -> list[str]:
    if node.state != "running":
        return [f"{node.name} is {node.state}"]
    try:
        found = [f"{node.name}: process {pid} {args[:120]}" for pid, args in processes(node).items()]
        return found + [f"{node.name}: {folder}" for folder in kernel_files(node)]
    except LabError as error:
        return [str(error)]


def _left_on_gateway(gateway: Gateway) -> list[str]:
    if gateway.state != "running":
        return [f"{gateway.name} is {gateway.state}"]
    try:
        kernels = httpx.get(f"{gateway.url}/api/kernels", timeout=10, trust_env=False).json()
    except httpx.HTTPError as error:
        return [f"{gateway.name} does not answer: {error!r}"]
    found = [f"{gateway.name}: kernel {kernel['id']} ({kernel['name']})" for kernel in kernels]
    return found + [f"{gateway.name}: {folder}" for folder in kernel_sockets(gateway)]


def _clean(lab: Lab) -> None:
    """Take away what a failed test left, so that the next one starts clean; what can't be cleaned shows there again."""
    for machine in (*lab.nodes, *lab.gateways):
        machine.start()
    for gateway in lab.gateways:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            for kernel in httpx.get(f"{gateway.url}/api/kernels", timeout=10, trust_env=False).json():
                httpx.delete(f"{gateway.url}/api/kernels/{kernel['id']}", timeout=30, trust_env=False)
    for node in lab.nodes:
        node.exec(["kill", "-9", *map(str, processes(node))])
        if folders := kernel_files(node):
            # A record that nobody asks for: the agent would keep it for an hour, and the next one reads it from there.
            node.exec(["kill", "-9", *map(str, agents(node))])
            node.exec(["rm", "-rf", *folders])
