"""Several gateways on one host set, in virtual time: starts at once leave hosts even, and each kernel has one owner at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from eg_distributed.agent.server import Agent
from eg_distributed.agent.server import Gateway as AgentsGateway
from eg_distributed.errors import DistributedError
from eg_distributed.kernel import RemoteKernel
from eg_distributed.protocol import Signal

from .gateways import Gateway
from .machines import SimAgent
from .world import World

pytestmark = pytest.mark.timeout(600)
STARTS = 300
SIGCONT = 18


def on_their_way(world: World) -> tuple[Counter[str], Counter[str]]:
    """Return how many kernels each host has let in, and how many more starts are on their way to it."""
    let_in: Counter[str] = Counter()
    coming: Counter[str] = Counter()
    for name, machine in world.machines.items():
        inside = set(machine.agent._running()) if machine.agent is not None else set()
        let_in[name] = len(inside)
        for gateway in world.gateways:
            host = gateway.cluster.host(name)
            there = {*gateway.cluster._tried.get(host.machine, ()), *gateway.cluster._tried.get(host.known_as, ())}
            coming[name] += len(there - inside)
    return let_in, coming


async def watch_evenness(world: World) -> None:
    """Check, every two virtual milliseconds, that no host has two kernels more than another one has, or is about to have."""
    while True:
        let_in, coming = on_their_way(world)
        fullest = max(let_in[name] for name in world.machines)
        emptiest = min(let_in[name] + coming[name] for name in world.machines)
        if fullest - emptiest > 1:
            world.violate(f"one host has {fullest} kernels, and one will have {emptiest}")
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_three_gateways_are_exact_together(seed: int, pause: float, tmp_path: Path) -> None:
    """300 starts by three gateways, all at once or at any distance, never leave two hosts more than one kernel apart."""
    world = World(seed, hosts=20, gateways=3, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        hosts = tuple(world.machines)
        await asyncio.gather(*(gateway.cluster.list_kernels(hosts) for gateway in world.gateways))
        watching = asyncio.ensure_future(watch_evenness(world))

        async def start(number: int) -> bool:
            await asyncio.sleep(world.rng.uniform(0, pause * STARTS / 3))
            return await world.gateways[number % 3].start(f"k{number}", hosts, launch_timeout=120.0)

        assert all(await asyncio.gather(*(start(number) for number in range(STARTS))))
        watching.cancel()
        await asyncio.wait({watching})
        assert world.spread(hosts) <= 1
        assert sum(len(machine.processes) for machine in world.machines.values()) == STARTS
        await world.settle(30.0)

    world.run(story)


def test_batches_of_three_gateways_are_exact_after_each(seed: int, tmp_path: Path) -> None:
    """However many start in the same moment, on a number of hosts that they do not go into."""
    world = World(seed, hosts=7, gateways=3, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        hosts = tuple(world.machines)
        await asyncio.gather(*(gateway.cluster.list_kernels(hosts) for gateway in world.gateways))
        for batch in range(8):
            many = world.rng.randrange(1, 30)
            names = [f"{batch}-{number}" for number in range(many)]
            await asyncio.gather(*(world.rng.choice(world.gateways).start(name, hosts) for name in names))
            assert world.spread(hosts) <= 1, batch

    world.run(story)


class Hands:
    """Who has which kernel, as the people in front of the gateways see it: they ask any gateway for any kernel."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.where: dict[str, str] = {}
        self.taken: list[tuple[str, str, str]] = []

    def take(self, gateway: Gateway, kernel: RemoteKernel) -> None:
        """Have *gateway*, which has adopted or started *kernel*, tell when it has lost it."""

        def on_taken(kernel: RemoteKernel) -> None:
            self.world.note("taken", gateway.name, kernel.id, kernel.taken_by)
            self.taken.append((gateway.name, kernel.id, kernel.taken_by))
            gateway.wanted.pop(kernel.id, None)
            gateway.kept.pop(kernel.id, None)

        kernel.on_taken = on_taken
        kernel.on_exit = gateway._hear_of_death

    def adopt(self, gateway: Gateway, kernel_id: str) -> None:
        """A client asks *gateway* for a kernel, which it finds again by the session that all share, unless it has it."""
        if kernel_id in gateway.cluster.kernels:
            return
        for other in self.world.gateways:
            if kernel_id in other.wanted:
                host, attempt = other.wanted[kernel_id]
                kept = other.kept[kernel_id]
                break
        else:
            return
        found = gateway.cluster.adopt(kernel_id, host, attempt, {"key": "k"}, kept, gateway._hear_of_death)
        self.take(gateway, found)
        gateway.wanted[kernel_id], gateway.kept[kernel_id] = (host, attempt), kept
        gateway.cluster.serve_adopted()


class Signals:
    """What signals arrived at kernels, in the order in which they did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived: dict[str, list[tuple[int, str]]] = defaultdict(list)
        original = Agent._signal

        async def signal(agent: Agent, gateway: AgentsGateway, asked: Signal) -> bool:
            done = await original(agent, gateway, asked)
            # Not the number that was said: who has adopted a kernel may signal it before it has heard of one.
            self.arrived[asked.kernel].append((agent.kernels[asked.kernel].lease, gateway.owner))
            return done

        monkeypatch.setattr(SimAgent, "_signal", signal)

    def check(self) -> None:
        """Each kernel obeyed one owner at a time: numbers only grow, and each was one gateway's."""
        for kernel, arrived in self.arrived.items():
            leases = [lease for lease, _ in arrived]
            assert leases == sorted(leases), kernel
            owners: dict[int, set[str]] = defaultdict(set)
            for lease, owner in arrived:
                owners[lease].add(owner)
            assert all(len(each) == 1 for each in owners.values()), (kernel, owners)


async def keep_signalling(gateway: Gateway) -> None:
    """Signal all kernels that *gateway* believes to have, again and again."""
    while True:
        for kernel in list(gateway.cluster.kernels.values()):
            with contextlib.suppress(DistributedError, asyncio.TimeoutError):
                await asyncio.wait_for(kernel.signal(SIGCONT), 2.0)
        await asyncio.sleep(0.2)


def test_a_kernel_obeys_one_gateway_at_a_time(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways take kernels from each other over cuts, resets and ends of agents: each obeys its last owner alone, no line is
    lost, none ends, and each gateway that has lost one is told so in the end."""
    signals = Signals(monkeypatch)
    world = World(seed, hosts=5, gateways=3, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        hosts, rng, hands = tuple(world.machines), world.rng, Hands(world)
        kernels = [f"k{number}" for number in range(15)]
        for number, kernel_id in enumerate(kernels):
            gateway = world.gateways[number % 3]
            assert await gateway.start(kernel_id, hosts)
            hands.take(gateway, gateway.cluster.kernels[kernel_id])
        signalling = [asyncio.ensure_future(keep_signalling(gateway)) for gateway in world.gateways]
        for _ in range(60):
            await asyncio.sleep(rng.uniform(0, 1.0))
            gateway = rng.choice(world.gateways)
            path = gateway.path(rng.choice(hosts))
            kind = rng.choices(("adopt", "cut", "heal", "reset", "agent"), (10, 3, 3, 2, 1))[0]
            world.note(kind, gateway.name)
            if kind == "adopt":
                hands.adopt(gateway, rng.choice(kernels))
            elif kind == "cut":
                path.cut()
            elif kind == "heal":
                path.heal()
            elif kind == "reset":
                path.reset()
            else:
                world.machines[rng.choice(hosts)].end_agent()
        for gateway in world.gateways:
            gateway.heal()
        await asyncio.sleep(60.0)
        for each in signalling:
            each.cancel()
        await asyncio.wait(signalling)
        await world.settle(60.0)
        for kernel_id in kernels:
            having = [gateway.name for gateway in world.gateways if kernel_id in gateway.cluster.kernels]
            assert len(having) == 1, (kernel_id, having)
        assert len(list(world.processes())) == len(kernels)
        assert hands.taken
        assert not [gateway.deaths for gateway in world.gateways if gateway.deaths]

    world.run(story)
    signals.check()


def test_a_gateway_that_was_cut_off_learns_who_has_its_kernels(tmp_path: Path) -> None:
    """All at once, as it is back, and of each by whom; what it does to them before that does not arrive."""
    world = World(1, hosts=3, gateways=2, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        hosts, hands = tuple(world.machines), Hands(world)
        one, two = world.gateways
        kernels = [f"k{number}" for number in range(12)]
        for kernel_id in kernels:
            assert await one.start(kernel_id, hosts)
            hands.take(one, one.cluster.kernels[kernel_id])
        one.cut()
        for kernel_id in kernels:
            hands.adopt(two, kernel_id)
        await asyncio.sleep(30.0)
        assert two.alive() == len(kernels)
        deleted = [asyncio.ensure_future(one.cluster.release(kernel_id)) for kernel_id in kernels[:3]]
        one.heal()
        await asyncio.wait(deleted)
        await asyncio.sleep(20.0)
        assert sorted(hands.taken) == sorted(("gateway0", kernel_id, "gateway1") for kernel_id in kernels[3:])
        assert not one.cluster.kernels
        assert len(list(world.processes())) == len(kernels)

    world.run(story)
