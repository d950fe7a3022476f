"""What chance does to a simulated site: networks that are cut, agents and machines that end, people who change their minds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from .gateways import Gateway
from .machines import Machine
from .network import TO_GATEWAY, TO_HOST, Path
from .world import World


class Trouble:
    """Makes trouble in *world*, as its seed says, and makes all of it good in the end."""

    def __init__(self, world: World, hosts: tuple[str, ...]) -> None:
        self._world = world
        self._hosts = hosts
        self._last_kernel = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cut: set[Path] = set()
        self._choices: list[tuple[int, Callable[[], object]]] = [
            (30, self._start),
            (6, self._start_and_cancel),
            (8, self._delete),
            (6, self._restart),
            (6, self._kill_kernel),
            (5, self._cut_one),
            (3, self._cut_one_way),
            (2, self._cut_uplink),
            (4, self._reset_one),
            (8, self._heal),
            (3, self._end_agent),
            (1, self._reboot),
            (1, self._crash),
            (2, self._refuse),
            (2, self._fill),
        ]

    async def make(self, steps: int, pause: float) -> None:
        """Do *steps* things, up to twice *pause* virtual seconds apart."""
        weights = [weight for weight, _ in self._choices]
        for _ in range(steps):
            await asyncio.sleep(self._world.rng.uniform(0, 2 * pause))
            _, choice = self._world.rng.choices(self._choices, weights)[0]
            self._world.note(choice.__name__)
            choice()
        await self.mend()

    async def mend(self) -> None:
        """Make everything whole, and wait until nothing that people asked for is under way."""
        for gateway in self._world.gateways:
            gateway.heal()
        self._cut.clear()
        for machine in self._world.machines.values():
            machine.refuses = machine.is_full = False
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # -- choosing ------------------------------------------------------------------------------------------------

    def _own(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _gateway(self) -> Gateway:
        return self._world.rng.choice(self._world.gateways)

    def _machine(self) -> Machine:
        return self._world.names[self._world.rng.choice(self._hosts)]

    def _path(self) -> Path:
        return self._gateway().path(self._world.rng.choice(self._hosts))

    def _kernel(self) -> tuple[Gateway, str] | None:
        gateway = self._gateway()
        kernels = sorted(gateway.wanted)
        return (gateway, self._world.rng.choice(kernels)) if kernels else None

    # -- people --------------------------------------------------------------------------------------------------

    def _new(self) -> tuple[Gateway, Coroutine[Any, Any, bool]]:
        self._last_kernel += 1
        gateway = self._gateway()
        balancer = self._world.rng.choice(("least-connection", "round-robin"))
        some = tuple(sorted(self._world.rng.sample(self._hosts, min(8, len(self._hosts)))))
        return gateway, gateway.start(f"t{self._last_kernel}", some, balancer=balancer, launch_timeout=20.0)

    def _start(self) -> None:
        self._own(self._new()[1])

    def _start_and_cancel(self) -> None:
        """Start a kernel for a client that goes away, at any moment of the start."""
        task = self._own(self._new()[1])
        name = f"t{self._last_kernel}"
        gateways = list(self._world.gateways)

        def cancel() -> None:
            task.cancel()

        async def release_what_came() -> None:
            await asyncio.wait({task})
            if not task.cancelled() and task.exception() is None and task.result():
                for gateway in gateways:
                    if name in gateway.wanted:
                        await gateway.release(name)  # it was there before the client had gone

        self._world.loop.call_later(self._world.rng.uniform(0, 1.0), cancel)
        self._own(release_what_came())

    def _delete(self) -> None:
        if found := self._kernel():
            gateway, kernel = found
            self._own(gateway.release(kernel))

    def _restart(self) -> None:
        if found := self._kernel():
            gateway, kernel = found
            if kernel not in gateway.cluster._starts:
                self._own(gateway.start(kernel, self._hosts[:8], launch_timeout=20.0))

    # -- machines ------------------------------------------------------------------------------------------------

    def _kill_kernel(self) -> None:
        processes = list(self._machine().processes.values())
        if processes:
            self._world.rng.choice(processes).end(-11)

    def _end_agent(self) -> None:
        self._machine().end_agent()  # links stay: to an sshd behind which nothing listens

    def _reboot(self) -> None:
        machine = self._machine()
        machine.reboot()
        for gateway in self._world.gateways:
            for name, each in self._world.names.items():
                if each is machine:
                    gateway.path(name).reset()

    def _refuse(self) -> None:
        self._machine().refuses = True

    def _fill(self) -> None:
        self._machine().is_full = True

    # -- networks ------------------------------------------------------------------------------------------------

    def _cut_one(self) -> None:
        self._cut_path(self._path(), (TO_HOST, TO_GATEWAY))

    def _cut_one_way(self) -> None:
        self._cut_path(self._path(), (self._world.rng.choice((TO_HOST, TO_GATEWAY)),))

    def _cut_path(self, path: Path, ways: tuple[int, ...]) -> None:
        path.cut(ways)
        self._cut.add(path)

    def _cut_uplink(self) -> None:
        gateway = self._gateway()
        gateway.cut()
        self._world.loop.call_later(self._world.rng.uniform(1, 60), gateway.heal)

    def _reset_one(self) -> None:
        self._path().reset()

    def _heal(self) -> None:
        """Make one thing whole that is not."""
        rng = self._world.rng
        cut = [path for gateway in self._world.gateways for path in gateway.paths.values() if path.is_cut]
        ill = [machine for machine in self._world.machines.values() if machine.refuses or machine.is_full]
        if cut and (not ill or rng.random() < 0.7):
            rng.choice(cut).heal()
        elif ill:
            machine = rng.choice(ill)
            machine.refuses = machine.is_full = False

    def _crash(self) -> None:
        self._own(self._gateway().crash())
