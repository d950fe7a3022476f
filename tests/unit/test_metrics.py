"""A cluster's numbers, as Prometheus reads them."""

from __future__ import annotations

import asyncio
import os

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from eg_distributed import counters, node
from eg_distributed.cluster import Cluster
from eg_distributed.errors import KernelStartFailed, KernelStartTimeout, NoHostAvailable
from eg_distributed.metrics import PREFIX, Collector
from tests.until import until

from .clusters import answers, client, start
from .conftest import Hosts


@pytest.fixture
def registry(cluster: Cluster) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Collector(lambda: cluster))
    return registry


class Scrape:
    """What one scrape says."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.families = list(text_string_to_metric_families(generate_latest(registry).decode()))
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return the value of a sample; None where there is none."""
        return self._values.get((PREFIX + name, frozenset(labels.items())))


def test_before_the_first_kernel_there_is_nothing() -> None:
    """A server's metrics can be read before it has a cluster."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(Collector(lambda: None))
    assert all(not family.samples for family in Scrape(registry).families)


async def test_names_and_helps_are_as_prometheus_has_them(
    cluster: Cluster, hosts: Hosts, registry: CollectorRegistry
) -> None:
    """Each metric has our prefix and a help; counters end in _total, and times and sizes in their base unit."""
    await hosts("node1")
    await start(cluster, "k1", "node1")
    families = Scrape(registry).families
    assert len(families) >= 11
    for family in families:
        assert family.name.startswith(PREFIX)
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "histogram")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        assert {label for sample in family.samples for label in sample.labels} <= {
            "host", "state", "outcome", "direction", "le",
        }  # fmt: skip


async def test_starts_and_what_comes_of_them(cluster: Cluster, hosts: Hosts, registry: CollectorRegistry) -> None:
    """By host and outcome; those that are ready with their seconds. A start that moves on counts for both hosts."""
    bad, _ = await hosts("node1", "node2")
    bad.command = "exit 127"
    await start(cluster, "k1", "node1 node2")
    with pytest.raises(KernelStartFailed):
        await start(cluster, "k2", "node2", "leave:3")
    with pytest.raises(KernelStartTimeout):
        await start(cluster, "k3", "node2", "deaf", launch_timeout=0.5)
    with pytest.raises(NoHostAvailable):
        await start(cluster, "k4", "node1")
    scrape = Scrape(registry)
    outcomes = {
        host: {name: scrape("starts_total", host=host, outcome=name) for name in counters.OUTCOMES}
        for host in ("node1", "node2")
    }
    none = dict.fromkeys(counters.OUTCOMES, 0)
    assert outcomes["node1"] == {**none, "host_failed": 2}
    assert outcomes["node2"] == {**none, "ready": 1, "kernel_failed": 1, "timeout": 1}
    assert scrape("start_seconds_count", host="node2") == 1
    assert scrape("start_seconds_bucket", host="node2", le="120.0") == 1
    assert scrape("start_seconds_count", host="node1") is None
    assert scrape("connect_failures_total", host="node1") == 2
    assert scrape("host_unreachable", host="node1") == 1
    assert scrape("host_unreachable", host="node2") == 0
    assert scrape("kernels", host="node2", state="alive") == 1
    assert scrape("host_kernels", host="node2") == 1


def test_starts_that_may_be_warm(cluster: Cluster, registry: CollectorRegistry) -> None:
    """By host, how they were done; without any there is no sample."""
    host = cluster.counters.of_host("node1")
    assert Scrape(registry)("warm_starts_total", host="node1", how="forked") is None
    for how in ("cold", "forked", "forked", "", "of a later release"):
        host.note_warm(how)
    assert [Scrape(registry)("warm_starts_total", host="node1", how=how) for how in ("forked", "cold")] == [2, 1]


async def test_a_start_whose_client_goes_away(cluster: Cluster, hosts: Hosts, registry: CollectorRegistry) -> None:
    """It is a start of its own outcome, and while it goes on its kernel is one that starts."""
    await hosts("node1")
    starting = asyncio.ensure_future(start(cluster, "k1", "node1", "deaf"))
    await until("it starts", lambda: Scrape(registry)("kernels", host="node1", state="starting"))
    starting.cancel()
    await until("it is cancelled", lambda: Scrape(registry)("starts_total", host="node1", outcome="cancelled"))
    await until("it is gone", lambda: Scrape(registry)("kernels", host="node1", state="starting") is None)


async def test_starts_that_wait_for_their_turn(cluster: Cluster, hosts: Hosts, registry: CollectorRegistry) -> None:
    """More starts than the host has processors: some are queued, until those before them are ready, or use no processor."""
    await hosts("node1")
    count = (os.cpu_count() or 1) + 2
    starting = [asyncio.ensure_future(start(cluster, f"k{number}", "node1", "deaf")) for number in range(count)]

    def counted(state: str) -> float | None:
        return Scrape(registry)("kernels", host="node1", state=state)

    await until("some wait", lambda: counted("queued"))
    await until("all start", lambda: counted("starting") == count and counted("queued") is None)
    for task in starting:
        task.cancel()
    await until("they are gone", lambda: counted("starting") is None)


async def test_what_is_relayed(cluster: Cluster, hosts: Hosts, registry: CollectorRegistry) -> None:
    """Bytes of clients and of kernels are counted for the host, each byte once."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    assert await answers(kernel, b"x" * 100_000)

    def relayed(direction: str) -> float:
        return Scrape(registry)("relayed_bytes_total", host="node1", direction=direction) or 0

    await until("both ways", lambda: min(relayed("to_kernel"), relayed("from_kernel")) >= 100_000)
    assert relayed("to_kernel") == relayed("from_kernel") == 100_000


async def test_a_cut_and_a_death(cluster: Cluster, hosts: Hosts, registry: CollectorRegistry) -> None:
    """A connection that is made again is a reconnect, the first one is none; a kernel that ends unasked is a death."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    _, writer = await client(kernel)
    assert Scrape(registry)("reconnects_total", host="node1") == 0
    sshd.wire.refuse()
    sshd.wire.cut()
    await until("it is unreachable", lambda: Scrape(registry)("host_unreachable", host="node1") == 1)
    assert Scrape(registry)("kernels", host="node1", state="unknown") == 1
    assert Scrape(registry)("host_kernels", host="node1") is None
    await sshd.wire.open()
    await until("it is back", lambda: Scrape(registry)("reconnects_total", host="node1") == 1)
    assert Scrape(registry)("host_unreachable", host="node1") == 0
    assert Scrape(registry)("kernel_deaths_total", host="node1") == 0
    writer.write(b"bye")
    await until("it is dead", lambda: Scrape(registry)("kernels", host="node1", state="dead"))
    writer.close()
    assert Scrape(registry)("kernel_deaths_total", host="node1") == 1


async def test_a_host_that_has_nothing_to_say_is_reachable(
    cluster: Cluster, hosts: Hosts, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent without kernels is seldom asked, and says nothing by itself."""
    for name, seconds in (("_PING", 0.1), ("_QUIET", 0.2), ("_IDLE_PING", 0.6)):
        monkeypatch.setattr(node, name, seconds)
    await hosts("node1")
    await start(cluster, "k1", "node1")
    await cluster.run(cluster.release("k1"))
    found = cluster.host("node1").node
    heard, said = set[float](), set[float | None]()

    def is_heard_again() -> bool:
        heard.add(found._heard_at)
        said.add(Scrape(registry)("host_unreachable", host="node1"))
        return len(heard) > 3 and not found.running

    await until("it is heard again", is_heard_again)
    assert said == {0}


async def test_a_failure_says_something_for_a_while(
    cluster: Cluster, hosts: Hosts, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody comes back to a host that nothing needs, so whether it is mended is not known; of one with kernels it is."""
    bad, _ = await hosts("node1", "node2")
    bad.command = "exit 127"
    await start(cluster, "k1", "node1 node2")
    assert Scrape(registry)("host_unreachable", host="node1") == 1
    monkeypatch.setattr(node, "_FAILURE_COUNTS", 0.0)
    cluster.settings.retry_after = 0
    assert Scrape(registry)("host_unreachable", host="node1") is None
    assert Scrape(registry)("connect_failures_total", host="node1") == 1


async def test_hosts_beyond_the_bound_are_one(
    cluster: Cluster, hosts: Hosts, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many hosts clients name, there are no two samples of one name."""
    monkeypatch.setattr(counters, "MOST_HOSTS", 1)
    await hosts("node1", "node2", "node3")
    for number in (1, 2, 3):
        await start(cluster, f"k{number}", f"node{number}")
    scrape = Scrape(registry)
    assert scrape("host_kernels", host="other") == 2
    assert scrape("starts_total", host="other", outcome="ready") == 2
    assert scrape("host_kernels", host="node2") is None


async def test_a_fault_of_ours_costs_the_scrape_nothing_else(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The others' metrics are there, and the log has what is wrong."""

    def fail() -> Cluster:
        return 7  # type: ignore[return-value] # a defect

    registry = CollectorRegistry(auto_describe=True)
    registry.register(Collector(fail))
    for _ in range(3):
        assert generate_latest(registry) == b""
    assert caplog.text.count("could not be read") == 1
