"""A whole site in one story: everybody starts at once, all networks go down, some delete what they have; with figures."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from dataclasses import dataclass, field

from .world import World

SET = 50
"""Hosts of one host set."""
BACK_WITHIN = 20.0
"""Virtual seconds after which all hosts of a gateway are back, once its network is."""
SHARED = 3
"""Gateways that share a host set."""


@dataclass
class Figures:
    """What a story has measured; durations are virtual seconds but for *cpu*."""

    started: int = 0
    starting: float = 0.0
    spread_while_starting: int = 0
    spread: list[int] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    settled: float = 0.0
    logins_twice: int = 0
    logins_in_vain: int = 0
    cpu: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0

    def show(self) -> str:
        """Return a line for each figure."""
        return "\n".join(f"  {name}: {value}" for name, value in vars(self).items())


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
        for step in (self._start_all, self._lose_all, self._delete_some):
            began = time.process_time()
            await step()
            figures.cpu[step.__name__.strip("_")] = round(time.process_time() - began, 1)
        figures.settled = await self.world.settle(60.0)
        figures.memory = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

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

    async def _start(self, number: int) -> bool:
        hosts = number % len(self.sets)
        gateway = self.world.gateways[(hosts + number // len(self.sets) % SHARED) % len(self.world.gateways)]
        return await gateway.start(f"k{number}", self.sets[hosts], launch_timeout=120.0)

    async def _lose_all(self) -> None:
        """All gateways lose all hosts, for longer than their keep-alives wait; then the network is back."""
        world, figures = self.world, self.figures
        before = [Counter(gateway.logins) for gateway in world.gateways]
        vain = sum(gateway.in_vain for gateway in world.gateways)
        for gateway in world.gateways:
            gateway.cut()
            for path in gateway.paths.values():
                path.reset()
        await asyncio.sleep(12.0)
        for gateway in world.gateways:
            gateway.heal()
        healed = world.loop.time()
        wanted = [len({host for host, _ in gateway.wanted.values()}) for gateway in world.gateways]
        back: dict[str, float] = {}
        while len(back) < len(world.gateways) and world.loop.time() - healed < 60.0:
            await asyncio.sleep(0.25)
            for gateway, count in zip(world.gateways, wanted, strict=True):
                if gateway.name not in back and gateway.connected() >= count:
                    back[gateway.name] = round(world.loop.time() - healed, 2)
        figures.back = [back.get(gateway.name, 99.0) for gateway in world.gateways]
        again = [Counter(gateway.logins) - was for gateway, was in zip(world.gateways, before, strict=True)]
        figures.logins_twice = sum(count > 1 for logins in again for count in logins.values())
        figures.logins_in_vain = sum(gateway.in_vain for gateway in world.gateways) - vain

    async def _delete_some(self) -> None:
        """One kernel in ten is deleted, all in the same second."""
        await asyncio.gather(
            *(gateway.release(kernel) for gateway in self.world.gateways for kernel in sorted(gateway.wanted)[::10])
        )
