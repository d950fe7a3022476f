"""A whole site in one story: everybody starts at once, networks go down, gateways start again, people delete; with figures."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from dataclasses import dataclass, field

from .gateways import Gateway
from .world import World

SET = 50
"""Hosts of one host set."""
BACK_WITHIN = 20.0
"""Virtual seconds after which all hosts and kernels of a gateway are back, once its network, or its process, is."""
LISTENERS = 2
"""Clients of each gateway who listen to a kernel from then on."""
SHARED = 3
"""Gateways that share a host set."""


@dataclass
class Figures:
    """What a story has measured; durations are virtual seconds but for *cpu*."""

    started: int = 0
    starting: float = 0.0
    spread_while_starting: int = 0
    spread: list[int] = field(default_factory=list)
    """For each host set, by how many kernels its fullest and its emptiest host differ; in all, with all gateways' kernels."""
    back: dict[str, list[float]] = field(default_factory=dict)
    """By what was lost: after how many seconds each gateway had all hosts again, and knew its kernels to be alive."""
    settled: float = 0.0
    logins_twice: int = 0
    logins_in_vain: int = 0
    cpu: dict[str, float] = field(default_factory=dict)
    lines: int = 0
    """Lines of output that clients were sent meanwhile; one that is lost or doubled is a violation."""
    memory: dict[str, int] = field(default_factory=dict)
    """By how many megabytes this process, which is all gateways and all agents, has grown at most by the end of each step."""

    def show(self) -> str:
        """Return a line for each figure."""
        return "\n".join(f"  {name}: {value}" for name, value in vars(self).items())

    @property
    def longest_back(self) -> float:
        """The longest that any gateway took to be whole again, after whatever was lost."""
        return max(max(seconds) for seconds in self.back.values())


class Site:
    """Host sets of SET hosts, each shared by SHARED gateways, in *world*."""

    def __init__(self, world: World, kernels: int, batches: int) -> None:
        self.world = world
        self.figures = Figures()
        self._kernels = kernels
        self._batches = batches
        hosts = tuple(world.machines)
        self.sets = [hosts[at : at + SET] for at in range(0, len(hosts), SET)]

    async def live(self) -> None:
        """Do all of it."""
        figures = self.figures
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps = (
            self._start_all,
            self._lose_all,
            self._lose_some,
            self._lose_one_gateway,
            self._restart_gateways,
            self._delete_some,
        )
        for step in steps:
            began = time.process_time()
            await step()
            figures.cpu[step.__name__.strip("_")] = round(time.process_time() - began, 1)
            figures.memory[step.__name__.strip("_")] = round(
                (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            )
        figures.settled = await self.world.settle(60.0)
        figures.lines = sum(listener.lines for listener in self.world.listeners)

    async def _start_all(self) -> None:
        """Everybody starts at once: batch by batch, without a pause."""
        world, figures = self.world, self.figures
        began = world.loop.time()
        size = self._kernels // self._batches
        for batch in range(self._batches):
            done = await asyncio.gather(*(self._start(batch * size + number) for number in range(size)))
            figures.started += sum(done)
            figures.spread_while_starting = max(
                figures.spread_while_starting, *(world.spread(hosts) for hosts in self.sets)
            )
        figures.starting = round(world.loop.time() - began, 1)
        figures.spread = [world.spread(hosts) for hosts in self.sets]
        for gateway in world.gateways:
            for kernel in sorted(gateway.wanted)[:LISTENERS]:
                world.listen(gateway, kernel)

    async def _start(self, number: int) -> bool:
        hosts = number % len(self.sets)
        gateway = self.world.gateways[(hosts + number // len(self.sets) % SHARED) % len(self.world.gateways)]
        return await gateway.start(f"k{number}", self.sets[hosts], launch_timeout=120.0)

    async def _lose_all(self) -> None:
        """All gateways lose all hosts at once, and the network is back when every one of them has seen it."""
        await self._lose("all hosts", self.world.gateways, 12.0, is_seen_at_once=True)

    async def _lose_some(self) -> None:
        """One host in five is cut off from all gateways, without a word, for longer than their keep-alives wait."""
        for gateway in self.world.gateways:
            for host in [*self.world.machines][::5]:
                gateway.path(host).cut()
        await self._lose("a fifth of the hosts", [], 18.0)

    async def _lose_one_gateway(self) -> None:
        """The network of one gateway is gone without a word, for longer than its keep-alives wait."""
        await self._lose("one gateway's network", self.world.gateways[:1], 18.0)

    async def _lose(self, what: str, cut_off: list[Gateway], seconds: float, *, is_seen_at_once: bool = False) -> None:
        """Have gateways *cut_off* from all hosts for *seconds*; note how long it takes after that until all is well."""
        gateways = self.world.gateways
        before = [Counter(gateway.logins) for gateway in gateways]
        vain = sum(gateway.in_vain for gateway in gateways)
        for gateway in cut_off:
            gateway.cut()
            if is_seen_at_once:
                for path in gateway.paths.values():
                    path.reset()
        await asyncio.sleep(seconds)
        for gateway in gateways:
            gateway.heal()
        await self._wait_until_back(what)
        again = [Counter(gateway.logins) - was for gateway, was in zip(gateways, before, strict=True)]
        self.figures.logins_twice += sum(count > 1 for logins in again for count in logins.values())
        self.figures.logins_in_vain += sum(gateway.in_vain for gateway in gateways) - vain

    async def _restart_gateways(self) -> None:
        """All gateways end at once, and the next process of each finds its kernels again."""
        await asyncio.gather(*(gateway.crash() for gateway in self.world.gateways))
        await self._wait_until_back("all gateways' processes")

    async def _wait_until_back(self, what: str) -> None:
        """Note for each gateway when it has all of its hosts, and knows all of its kernels to be alive."""
        world, began = self.world, self.world.loop.time()
        back: dict[str, float] = {}
        while len(back) < len(world.gateways) and world.loop.time() - began < 60.0:
            await asyncio.sleep(0.25)
            for gateway in world.gateways:
                if gateway.name not in back and gateway.is_whole():
                    back[gateway.name] = round(world.loop.time() - began, 2)
        self.figures.back[what] = [back.get(gateway.name, 99.0) for gateway in world.gateways]

    async def _delete_some(self) -> None:
        """One kernel in ten is deleted, all in the same second."""
        await asyncio.gather(
            *(gateway.release(kernel) for gateway in self.world.gateways for kernel in sorted(gateway.wanted)[::10])
        )
