"""The real gateway and agent in an imagined network: what must hold whatever happens, by seeds."""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.agent.server import Agent
from eg_distributed.agent.server import Gateway as AgentsGateway
from eg_distributed.kernel import RemoteKernel
from eg_distributed.node import News, Node
from eg_distributed.protocol import Ping, Ready
from eg_distributed.wire import Message

from .faults import Trouble
from .site import BACK_WITHIN, SET, SHARED, Site
from .world import Violation, World

pytestmark = pytest.mark.timeout(600)  # each computes for seconds, which a busy machine makes minutes
KERNEL_BYTES = 30_000
"""What a kernel may take at the gateway and the agent together, without a client."""


def trouble(seed: int, folder: Path, steps: int, **settings: Any) -> World:
    """Simulate a small site in which everything goes wrong; return what is left. Raises Violation."""
    world = World(seed, hosts=10, gateways=3, folder=folder, **settings)

    async def story(world: World) -> None:
        hosts = tuple(sorted(world.names))
        begun = [(gateway, f"{gateway.name}-{number}") for number in range(20) for gateway in world.gateways]
        await asyncio.gather(*(gateway.start(kernel, hosts) for gateway, kernel in begun))
        for gateway, kernel in begun[::2]:
            world.listen(gateway, kernel)
        await Trouble(world, hosts).make(steps, pause=1.0)
        await world.settle(600.0)

    world.run(story)
    return world


def test_no_live_kernel_is_lost_whatever_happens(seed: int, tmp_path: Path) -> None:
    """Through cuts, ends of agents, machines and gateways, and people who change their minds, no live kernel counts as dead,
    no line of a channel is lost or doubled, and in the end each kernel runs once, every count is right, and no task is left."""
    trouble(seed, tmp_path, steps=120, orphan_timeout=0.0)


def test_the_same_holds_where_kernels_are_given_up(seed: int, tmp_path: Path) -> None:
    """Where kernels are given up after ten seconds, and agents end what has no gateway, no kernel runs twice in the end."""
    settings = {"host_lost_policy": "restart-elsewhere", "host_lost_after": 10.0, "orphan_timeout": 45.0}
    trouble(seed, tmp_path, steps=60, **settings)


def test_the_same_holds_where_machines_have_two_names(seed: int, tmp_path: Path) -> None:
    """Where three of ten machines are listed by two names each, kernels that start again by the other one run once as well."""
    trouble(seed, tmp_path, steps=60, second_names=3, orphan_timeout=0.0)


def test_a_seed_makes_the_same_history_again(tmp_path: Path) -> None:
    """Two runs of one seed are the same to the last event, so that a failure can be looked at again."""
    first, second = (trouble(5, tmp_path, steps=30, orphan_timeout=0.0) for _ in range(2))
    assert first.notes == second.notes


def test_a_site_fills_and_comes_back(tmp_path: Path) -> None:
    """Two thousand kernels start on fifty hosts; all of these are lost, then some, then a gateway, then all gateways end: each
    time all are back soon, with one login each, and no line of output is lost."""
    world = World(1, hosts=50, gateways=3, folder=tmp_path, orphan_timeout=0.0)
    site = Site(world, kernels=2000, batches=20)
    world.run(lambda _: site.live())
    figures = site.figures
    print(figures.show())
    assert figures.started == 2000
    assert max(figures.spread) <= 2 * SHARED
    assert figures.longest_back <= BACK_WITHIN
    assert figures.logins_twice == 0
    assert figures.lines


def test_five_hundred_hosts_come_back(tmp_path: Path) -> None:
    """After an outage of a gateway's own network its five hundred hosts are back within twenty seconds, none connected twice."""
    world = World(1, hosts=500, gateways=1, folder=tmp_path, orphan_timeout=0.0)
    site = Site(world, kernels=500, batches=1)
    world.run(lambda _: site.live())
    print(site.figures.show())
    assert site.figures.longest_back <= BACK_WITHIN
    assert site.figures.logins_twice == 0


def test_one_gateway_is_exact(tmp_path: Path) -> None:
    """A gateway alone on its hosts keeps them within one kernel of each other, however many kernels start at once."""
    world = World(1, hosts=20, gateways=1, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        (gateway,) = world.gateways
        hosts = tuple(world.machines)
        await gateway.cluster.list_kernels(hosts)
        for balancer in ("round-robin", "least-connection"):
            for batch in range(5):
                names = [f"{balancer}-{batch}-{number}" for number in range(33)]
                await asyncio.gather(*(gateway.start(name, hosts, balancer=balancer) for name in names))
                assert world.spread(hosts) <= 1, (balancer, batch)

    world.run(story)


@pytest.mark.parametrize("balancer", ["round-robin", "least-connection"])
def test_a_machine_by_two_names_takes_one_share(tmp_path: Path, balancer: str) -> None:
    """Machines with two names have as many kernels as those with one, however many start at once, also after an outage."""
    world = World(1, hosts=8, gateways=1, folder=tmp_path, second_names=3, orphan_timeout=0.0)

    async def story(world: World) -> None:
        (gateway,) = world.gateways
        hosts = tuple(world.names)
        await gateway.cluster.list_kernels(hosts)
        for batch in range(5):
            names = [f"{batch}-{number}" for number in range(33)]
            await asyncio.gather(*(gateway.start(name, hosts, balancer=balancer) for name in names))
            assert world.spread(tuple(world.machines)) <= 1, batch
            gateway.cut()
            for path in gateway.paths.values():
                path.reset()
            await asyncio.sleep(1.0)
            gateway.heal()
            await world.settle(30.0)
        assert {kernel.node.name for kernel in gateway.cluster.kernels.values() if kernel.node} == {*world.machines}

    world.run(story)


def test_gateways_one_after_the_other_are_exact_together(tmp_path: Path) -> None:
    """Three gateways that start 300 kernels in turn on the same hosts keep them within one kernel of each other."""
    world = World(1, hosts=20, gateways=3, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        hosts = tuple(world.machines)
        for gateway in world.gateways:
            await gateway.cluster.list_kernels(hosts)
        for number in range(300):
            await world.gateways[number % 3].start(f"k{number}", hosts)
            assert world.spread(hosts) <= 1, number

    world.run(story)


def test_ten_gateways_at_once_are_exact(tmp_path: Path) -> None:
    """Starts by ten gateways in the same moment leave hosts within one kernel of each other."""
    world = World(1, hosts=SET, gateways=10, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        hosts = tuple(world.machines)
        for gateway in world.gateways:
            await gateway.cluster.list_kernels(hosts)
        for batch in range(4):
            begun = [(each, f"{batch}-{number}-{each.name}") for each in world.gateways for number in range(5)]
            await asyncio.gather(*(gateway.start(name, hosts) for gateway, name in begun))
            counts = Counter(len(machine.processes) for machine in world.machines.values())
            print(batch, sorted(counts.items()))
            assert world.spread(hosts) <= 1

    world.run(story)


def test_a_start_that_is_given_up_as_its_kernel_is_ready_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that goes away in the very moment in which its kernel is ready leaves none behind."""
    world = World(1, hosts=1, gateways=1, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        (gateway,) = world.gateways
        hear = gateway.cluster.hear

        def hear_and_give_up(news: News) -> None:
            hear(news)
            if isinstance(news, Ready):
                starting.cancel()

        monkeypatch.setattr(gateway.cluster, "hear", hear_and_give_up)
        starting = asyncio.ensure_future(gateway.start("k1", tuple(world.machines)))
        await asyncio.wait({starting})
        assert starting.cancelled()
        await world.settle(30.0)
        assert not list(world.processes())

    world.run(story)


def test_an_agent_that_is_heard_is_asked_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent is pinged after two seconds of silence; one that tells much unasked only so often that it does not miss us."""
    world = World(1, hosts=1, gateways=2, folder=tmp_path, orphan_timeout=0.0)
    pings: Counter[str] = Counter()
    ping = Agent._ping

    async def count(agent: Agent, gateway: AgentsGateway, asked: Ping) -> Message:
        pings[gateway.owner] += 1
        return await ping(agent, gateway, asked)

    monkeypatch.setattr(Agent, "_ping", count)

    async def story(world: World) -> None:
        first, other = world.gateways
        hosts = tuple(world.machines)
        await first.start("k1", hosts)
        pings.clear()
        await asyncio.sleep(60.0)
        assert 28 <= pings[first.name] <= 31
        pings.clear()
        began = world.loop.time()
        while world.loop.time() - began < 90.0:  # longer than an agent waits for a gateway's word
            await other.start("o", hosts)
            await other.release("o")
            await asyncio.sleep(0.5)
        assert 5 <= pings[first.name] <= 7
        assert first.alive() == first.cluster.host(hosts[0]).node.connections == 1

    world.run(story)


def test_memory_is_bounded_by_what_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A kernel takes some kilobytes at both ends together, and what is deleted takes none."""
    caplog.set_level(logging.WARNING, "eg_distributed")  # pytest keeps what is logged of each kernel
    world = World(1, hosts=10, gateways=1, folder=tmp_path, orphan_timeout=0.0)

    def traced() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async def story(world: World) -> None:
        (gateway,) = world.gateways
        hosts = tuple(world.machines)
        await gateway.cluster.list_kernels(hosts)

        async def fill(run: int) -> tuple[int, int]:
            before = traced()
            names = [f"{run}-{number}" for number in range(100)]
            await asyncio.gather(*(gateway.start(name, hosts) for name in names))
            full = traced()
            await asyncio.gather(*(gateway.release(name) for name in names))
            await asyncio.sleep(5.0)
            return (full - before) // len(names), (traced() - before) // len(names)

        await fill(0)  # what is made once
        taken, left = await fill(1)
        print(f"{taken} bytes a kernel, {left} left of one that was deleted")
        assert taken < KERNEL_BYTES
        assert left < KERNEL_BYTES / 20

    tracemalloc.start()
    try:
        world.run(story)
    finally:
        tracemalloc.stop()


def test_the_simulation_sees_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that takes a lost connection for the end of its kernels is caught, and the seed is told."""
    lost = Node._lost

    def declare_dead(node: Node) -> None:
        lost(node)
        for kernel in list(node.users):
            assert isinstance(kernel, RemoteKernel)
            kernel._die(None, "")

    monkeypatch.setattr(Node, "_lost", declare_dead)
    with pytest.raises(Violation, match=r"seed 1, (.|\n)*lives"):
        trouble(1, tmp_path, steps=30, orphan_timeout=0.0)
