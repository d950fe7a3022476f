"""A simulation: machines, gateways and a clock; what must always be true, and what must be true in the end."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path as File
from typing import Any

from eg_distributed.agent.server import Gateway as AgentsGateway
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.settings import Distributed
from eg_distributed.streams import Relay

from .gateways import Gateway, Listener
from .loop import VirtualLoop, nothing_real, same_in_every_run
from .machines import Machine, Process
from .network import SimLink

_BEHIND = 4  # lines that may be under way


class Violation(AssertionError):
    """An invariant does not hold."""


class World:
    """*hosts* machines and *gateways* gateways, all at one loop. *seed* decides everything that chance decides."""

    def __init__(
        self, seed: int, hosts: int, gateways: int, folder: File, second_names: int = 0, **settings: Any
    ) -> None:
        self.seed = seed
        self.loop = VirtualLoop()
        self.rng = random.Random(seed)
        self.machines: dict[str, Machine] = {}
        self.gateways: list[Gateway] = []
        self.violations: list[str] = []
        self.listeners: list[Listener] = []
        self.notes: list[str] = []
        self.check_seconds = 1.0
        self._settings = settings
        self._folder = folder
        self._gateways = gateways
        for number in range(hosts):
            name = f"host{number:04}"
            self.machines[name] = Machine(name, self.loop, self.rng)
        self.names = dict(self.machines)
        """Each machine by all of its names; the first *second_names* have two."""
        for number, machine in enumerate([*self.machines.values()][:second_names]):
            self.names[f"alias{number:04}"] = machine

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        """Run *story* from the first to the last virtual second; raises Violation, which names the seed."""
        random.seed(self.seed)  # the code's own jitter
        Machine.known = self.names
        self.loop.set_exception_handler(lambda _, context: self.violate(f"unhandled: {context}"))
        with nothing_real(), same_in_every_run(AgentsGateway, Relay, SimLink):
            try:
                self.loop.run_until_complete(self._live(story))
            finally:
                left = asyncio.all_tasks(self.loop)
                self.loop.close()
        if left:
            self.violations.append(f"{len(left)} tasks are left: {[*left][:3]}")
        self.raise_for_violations()

    async def _live(self, story: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        for number in range(self._gateways):
            settings = Distributed(
                kept_output_limit=0,  # kernels here speak no ZMTP
                runtime_dir=str(self._folder),
                gateway_id=f"gateway{number}",
                ssh_config="",
                **self._settings,
            )
            self.gateways.append(Gateway(self, f"gateway{number}", settings))
        watching = asyncio.ensure_future(self._watch())
        try:
            await story(self)
        finally:
            watching.cancel()
            await asyncio.wait({watching})
            for listener in self.listeners:
                await listener.close()
            for gateway in self.gateways:
                await gateway.cluster.leave()
            for machine in self.machines.values():
                await machine.close()
            await asyncio.sleep(1.0)  # what was cancelled ends

    def violate(self, what: str) -> None:
        """Note that something is not as it must be."""
        self.violations.append(f"at {self.loop.time():.3f}: {what}")

    def raise_for_violations(self) -> None:
        """Raise Violation if anything was noted."""
        if self.violations:
            shown = "\n  ".join(self.violations[:10])
            raise Violation(f"seed {self.seed}, {len(self.violations)} violations:\n  {shown}")

    def note(self, *what: object) -> None:
        """Add to the history, which the same seed makes again."""
        self.notes.append(f"{self.loop.time():.6f} {what}")

    @property
    def history(self) -> str:
        """Return what tells this run's history from others."""
        return hashlib.sha256("\n".join(self.notes).encode()).hexdigest()[:16]

    # -- what must always be true --------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.check_seconds)
            self.check_always()

    def check_always(self) -> None:
        """Check what must be true at any time; done every `check_seconds`."""
        living: set[tuple[str, str]] | None = None
        for gateway in self.gateways:
            for kernel in gateway.cluster.kernels.values():
                if kernel._exited and not kernel.lost and kernel.id not in gateway.cluster._starts:
                    if living is None:
                        living = {(each.kernel, each.attempt) for each in self.processes()}
                    if (kernel.id, kernel.attempt) in living:
                        self.violate(f"{gateway.name}: kernel {kernel.id} is declared dead, and lives")
        for listener in self.listeners:
            if listener.errors:
                self.violations.extend(listener.errors)
                listener.errors.clear()
        self.note([(gateway.connected(), len(gateway.cluster.kernels)) for gateway in self.gateways])

    def check_death(self, gateway: Gateway, kernel: RemoteKernel) -> None:
        """Check what an adapter is told."""
        self.note("death", gateway.name, kernel.id)
        if kernel.lost or kernel.node is None:
            return
        for process in Machine.known[kernel.node.name].processes.values():
            if (process.kernel, process.attempt) == (kernel.id, kernel.attempt):
                self.violate(f"{gateway.name} is told that kernel {kernel.id} is dead, and it lives")

    def processes(self) -> Iterator[Process]:
        """Yield all processes of all machines."""
        for machine in self.machines.values():
            yield from machine.processes.values()

    # -- what must be true in the end ----------------------------------------------------------------------------

    def unsettled(self) -> list[str]:
        """Return what is not yet as it must be once everything is whole and quiet; at most a few of each kind."""
        found: list[str] = []
        by_kernel: dict[str, list[Process]] = defaultdict(list)
        for process in self.processes():
            by_kernel[process.kernel].append(process)
        doubled = [kernel for kernel, processes in by_kernel.items() if len(processes) > 1]
        if doubled:
            found.append(f"{len(doubled)} kernels have two processes: {doubled[:3]}")
        held: dict[str, RemoteKernel] = {}
        for gateway in self.gateways:
            held |= gateway.cluster.kernels
            waiting = [each.id for each in gateway.cluster.kernels.values() if each.state is State.UNKNOWN]
            if waiting:
                found.append(f"{gateway.name}: {len(waiting)} kernels are unknown: {waiting[:3]}")
            if gateway.cluster._starts:
                found.append(f"{gateway.name}: {len(gateway.cluster._starts)} starts are under way")
        for kernel_id, processes in by_kernel.items():
            kernel = held.get(kernel_id)
            if kernel is None:
                found.append(f"nobody has kernel {kernel_id}, which runs on {processes[0].machine.name}")
            elif kernel.attempt not in {process.attempt for process in processes}:
                found.append(f"kernel {kernel_id} runs, but as another attempt than its gateway knows")
        found.extend(
            f"kernel {kernel.id} counts as alive, and is not"
            for kernel in held.values()
            if kernel.state is State.ALIVE and kernel.id not in by_kernel
        )
        for gateway in self.gateways:
            for host in gateway.cluster.hosts.values():
                truth = {each.kernel for each in self.names[host.name].processes.values()}
                if host.node.connected.is_set() and host.node.running != truth:
                    said = len(host.node.running)
                    found.append(f"{gateway.name} counts {said} kernels on {host.name}, which has {len(truth)}")
        found.extend(
            f"kernel {listener.kernel_id} printed {process.lines} lines, {listener.last} came"
            for listener in self.listeners
            for process in by_kernel.get(listener.kernel_id, [])
            if process.lines - listener.last > _BEHIND
        )
        return found[:20]

    async def settle(self, within: float) -> float:
        """Wait until everything is as it must be in the end; return the seconds, or note a violation."""
        began = self.loop.time()
        while unsettled := self.unsettled():
            if self.loop.time() - began > within:
                self.violate(f"not settled within {within:g} s: {'; '.join(unsettled)}")
                break
            await asyncio.sleep(0.5)
        return self.loop.time() - began

    def spread(self, hosts: Iterator[str] | tuple[str, ...]) -> int:
        """Return the difference between the fullest and the emptiest of *hosts*."""
        counts = Counter({host: len(self.machines[host].processes) for host in hosts})
        return max(counts.values()) - min(counts.values())

    def listen(self, gateway: Gateway, kernel_id: str) -> Listener:
        """Have a client listen to a kernel until the end."""
        self.listeners.append(Listener(gateway, kernel_id))
        return self.listeners[-1]
