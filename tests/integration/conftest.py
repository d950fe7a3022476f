"""What the integration tests share: hooks of pytest, clients that clean up, and machines of a test's own.

Lab, nodes, gateways, and the look at what a test left behind are the lab's pytest plugin's. Tests of the product lease
`NODES` nodes, so that two workers of xdist share one lab; a test that measures times is `alone` there.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import pytest
import pytest_asyncio
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from lab import Gateway, Lab, Node
from tests.integration.client import GatewayClient
from tests.integration.fixtures import OWN_LAB, engine, local, own, suite
from tests.integration.spark_lab import spark_client, spark_gateway, spark_lab

__all__ = ["engine", "local", "own", "spark_client", "spark_gateway", "spark_lab", "suite"]

NODES = 3
"""How many nodes a test of the product leases."""

for _talkative in ("asyncssh", "httpx", "docker", "urllib3"):  # a failed test shall show what the test said
    logging.getLogger(_talkative).setLevel(logging.WARNING)


SPREAD = (
    "test_balancing.py",
    "test_enterprise_gateway_suite.py",
    "test_faults.py",
    "test_gateway_options.py",
    "test_lifecycle.py",
    "test_matrix.py",
    "test_output_kept.py",
    "test_persistence.py",
    "test_ports.py",
    "test_reconnects.py",
    "test_values.py",
)
"""Files whose tests share no machines of their own: xdist gives them to its workers one by one, others as a whole."""


HEAVY = ("test_lab.py", "test_lab_local.py", "test_wheel.py")
"""Files that make labs and environments of their own, and so take the processors that a test which is `alone` wants."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that the fixtures `own` and `local` read."""
    config.addinivalue_line("markers", OWN_LAB)


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
        shares: bool = False,
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
