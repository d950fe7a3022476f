"""Imagined machines: a table of processes, a disk of records, and the real agent, whose kernels are entries in both."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, ClassVar, cast

from eg_distributed.agent.disk import Disk
from eg_distributed.agent.kernels import EXITED, RUNNING, STARTING, Kernel, Notify
from eg_distributed.agent.nursery import Spawner
from eg_distributed.agent.processors import Processors, Use
from eg_distributed.agent.server import Agent
from eg_distributed.agent.spawning import StartError, spawn_aside
from eg_distributed.clock import monotonic
from eg_distributed.protocol import AgentIdentity, Exited, Ready, Start

from .network import End, connection

ROOT = Path("/simulated")
_LOCAL = 0.00005  # seconds from one process of a machine to another


class Process:
    """A kernel's process: it prints numbered lines to all who listen to its output, and echoes what its shell is sent."""

    __slots__ = (
        "_listeners",
        "_printing",
        "attempt",
        "born",
        "kernel",
        "lines",
        "machine",
        "pid",
        "stubborn",
        "watchers",
    )

    def __init__(self, machine: Machine, pid: int, kernel: str, attempt: str) -> None:
        self.machine = machine
        self.pid = pid
        self.kernel = kernel
        self.attempt = attempt
        self.born = monotonic()
        self.watchers: list[Callable[[int], None]] = []
        self.lines = 0  # printed so far
        self.stubborn = False  # ends by SIGKILL alone
        self._listeners: list[End] = []
        self._printing: asyncio.TimerHandle | None = None

    @property
    def is_alive(self) -> bool:
        return self.machine.processes.get(self.pid) is self

    def signal(self, signum: int) -> None:
        """Take a signal, and end in a moment if it is a deadly one."""
        if signum == signal.SIGKILL or (signum == signal.SIGTERM and not self.stubborn):
            self.machine.loop.call_later(0.01, self.end, -signum)

    def end(self, code: int) -> None:
        """End, and have those who watch hear of it."""
        if self.is_alive:
            del self.machine.processes[self.pid]
            for listener in self._listeners:
                listener.close()
            if self._printing is not None:
                self._printing.cancel()
            for watcher in self.watchers:
                watcher(code)

    def connect(self, channel: str) -> tuple[asyncio.StreamReader, End]:
        """Return the visitor's end of a connection to a channel."""
        loop = self.machine.loop
        visitor, (reader, writer) = connection(loop, _LOCAL)
        if channel == "iopub":
            self._listeners.append(writer)
            if self._printing is None:
                self._print()
        else:
            self.machine.own(_echo(reader, writer))
        return visitor

    def _print(self) -> None:
        """Print the next line to all who listen, as a PUB socket does: to nobody, if nobody does."""
        self.lines += 1
        self._listeners = [listener for listener in self._listeners if not listener.is_closing()]
        for listener in self._listeners:
            listener.write(b"%d\n" % self.lines)
        self._printing = self.machine.loop.call_later(self.machine.line_seconds, self._print)


async def _echo(reader: asyncio.StreamReader, writer: End) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


class Machine:
    """One host: what is true of it, whatever anybody believes."""

    known: ClassVar[dict[str, Machine]] = {}
    """All machines of the simulation that runs, by name: what the agent's code names by a path is found here."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
        self.name = name
        self.loop = loop
        self.processes: dict[int, Process] = {}
        self.disk: dict[Path, dict[str, Any]] = {}
        self.agent: SimAgent | None = None
        self.boot = 1
        self.refuses = False  # logins
        self.is_full = False  # starts are refused, and it is the host's fault
        self.spawn_seconds = rng.uniform(0.002, 0.01)
        self.ready_seconds = rng.uniform(0.2, 0.6)
        self.line_seconds = 0.25
        self.processors = 4
        self._last_pid = 100
        self._serving: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def own(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run *coroutine* for as long as the machine, or its agent, does."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def spawn(self, kernel: str, attempt: str) -> Process:
        self._last_pid += 1
        process = self.processes[self._last_pid] = Process(self, self._last_pid, kernel, attempt)
        return process

    # -- the agent -----------------------------------------------------------------------------------------------

    def bring_up(self) -> None:
        """Have an agent, as a login does."""
        if self.agent is None:
            self.agent = SimAgent(self)
            self.agent.restore()
            self._serving = self.own(self._serve(self.agent))

    async def _serve(self, agent: SimAgent) -> None:
        await agent.serve()
        if self.agent is agent:
            self.end_agent()

    def accept(self, reader: asyncio.StreamReader, writer: End) -> None:
        """Take a connection to the agent's socket; raises ConnectionError where none listens."""
        if self.agent is None:
            raise ConnectionRefusedError(f"{self.name}: no agent listens")
        self.agent.connections.append(writer)
        self.own(self.agent.accept(reader, cast("asyncio.StreamWriter", writer)))

    def end_agent(self) -> None:
        """End the agent at once, as SIGKILL does; its kernels run on."""
        agent, self.agent = self.agent, None
        if agent is None:
            return
        agent.is_dead = True
        for process in self.processes.values():
            process.watchers.clear()
        for writer in agent.connections:
            writer.close()
        for task in [*self._tasks, *agent.tasks()]:
            task.cancel()

    def reboot(self) -> None:
        """End everything on the machine, and be there again with what is on its disk."""
        self.end_agent()
        for process in list(self.processes.values()):
            process.end(-9)
        self.boot += 1

    async def close(self) -> None:
        """End everything for good."""
        self.reboot()
        if tasks := list(self._tasks):
            await asyncio.wait(tasks)


class SimKernel(Kernel):
    """The agent's kernel, whose process, files and log are imagined; its states, its end and its events are real."""

    def __init__(self, kernel_id: str, directory: Path, notify: Notify, disk: Disk | None = None) -> None:
        super().__init__(kernel_id, directory, notify, disk)
        self.machine = Machine.known[directory.parts[2]]
        self.agent = self.machine.agent
        self.process: Process | None = None

    async def start(
        self,
        asked: Start,
        taken: Callable[[], AbstractSet[int]],
        *,
        spec_folder: Path | None = None,
        login: dict[str, str] | None = None,
        umask: int = -1,
        open_files: int = -1,
        waited: float = 0.0,
        spawner: Spawner = spawn_aside,
    ) -> None:
        """Make an entry in the table of processes."""
        self.owner, self.host_set, self.attempt = asked.owner, asked.host_set, asked.attempt
        self.argv, self.transport, self.orphan_timeout = asked.argv, asked.transport, asked.orphan_timeout
        try:
            await asyncio.sleep(self.machine.spawn_seconds)
            if self.machine.is_full:
                raise StartError("no processes are left", host_fault=True)
        except BaseException:
            self.state = EXITED
            self.exited.set()
            self.discard()
            raise
        self.process = self.machine.spawn(self.id, self.attempt)
        self.pid, self.started = self.process.pid, f"{self.machine.boot}:{self.process.pid}"
        self.connection = {"transport": "ipc"}
        self.save()
        self.watch()

    def watch(self) -> None:
        """Hear of its readiness and its end."""
        if self.state == EXITED or self.process is None:
            return
        self.process.watchers.append(self._end)
        if self.state == STARTING:
            ready_at = self.process.born + self.machine.ready_seconds
            self.machine.loop.call_at(ready_at, self._be_ready)

    def _be_ready(self) -> None:
        if self.state == STARTING and self._is_watched():
            self.state = RUNNING
            self.save()
            self._notify(self, Ready(self.id, self.attempt, self.pid))

    def _is_watched(self) -> bool:
        return self.agent is self.machine.agent and self.agent is not None

    def _end(self, code: int) -> None:
        if self._is_watched() and self.state != EXITED:
            self.state, self.exit_code, self.end_time = EXITED, code, monotonic()
            self.save()
            self.exited.set()
            self._notify(self, Exited(self.id, self.attempt, exit_code=code))

    def send_signal(self, signum: int) -> bool:
        """Signal the entry."""
        process = self.process
        if process is None or not process.is_alive:
            return False
        process.signal(signum)
        return True

    async def read_tail(self, size: int = 4096) -> str:
        """Return nothing: no logs are kept."""
        return ""

    async def connect(self, channel: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a channel of the process."""
        if self.process is None or not self.process.is_alive:
            raise ConnectionRefusedError
        reader, writer = self.process.connect(channel)
        return reader, cast("asyncio.StreamWriter", writer)

    def save(self) -> None:
        """Write the record."""
        if not self.discarded:
            names = ("id", "attempt", "owner", "lease", "host_set", "argv", "state", "exit_code", "pid", "started")
            record = {name: getattr(self, name) for name in names}
            self.machine.disk[self.directory] = {**record, "orphan_timeout": self.orphan_timeout}

    def discard(self) -> None:
        """Remove the record."""
        if not self.discarded:
            self.discarded = True
            self.machine.disk.pop(self.directory, None)

    @classmethod
    def load(cls, directory: Path, notify: Notify, disk: Disk | None = None) -> SimKernel | None:
        """Return the kernel of a record."""
        machine = Machine.known[directory.parts[2]]
        record = machine.disk[directory]
        kernel = cls(record["id"], directory, notify, disk)
        vars(kernel).update(record)
        kernel.connection = {"transport": "ipc"}
        process = machine.processes.get(kernel.pid)
        if process is not None and (process.kernel, process.attempt) == (kernel.id, kernel.attempt):
            kernel.process = process
        elif kernel.state != EXITED:
            kernel.state = EXITED
        if kernel.state == EXITED:
            kernel.exited.set()
        return kernel


class SimProcessors(Processors):
    """Processors of which each start uses one until it is ready, and which are idle else; no start waits for anything."""

    spare = 1.0
    least = 1

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def count(self) -> int:
        """Return what the machine has."""
        return self._machine.processors

    def idle(self) -> float | None:
        """Return what it would be without any start."""
        return self._machine.processors * monotonic()

    def used(self, pid: int) -> Use | None:
        """Return the process's age, for as long as it starts."""
        process = self._machine.processes.get(pid)
        return None if process is None else Use(monotonic() - process.born, runs=True)


class SimDisk(Disk):
    """A disk that has done everything by the time it is asked."""

    async def done(self, seconds: float, job: Callable[[], Any]) -> Any:
        """Return what *job* returns."""
        return job()

    async def settle(self, seconds: float) -> bool:
        """Return True: nothing waits."""
        return True


class SimAgent(Agent):
    """The real agent, but for its socket and its disk."""

    kernel_type = SimKernel

    def __init__(self, machine: Machine) -> None:
        directory = ROOT / machine.name
        identity = AgentIdentity(f"id-{machine.name}", str(directory), machine.name, str(machine.boot))
        processors = SimProcessors(machine)
        super().__init__(directory, "simulated", identity=identity, disk=SimDisk(), processors=processors)
        self.machine = machine
        self.is_dead = False
        self.connections: list[End] = []

    def restore(self) -> None:
        """Take over what is on the disk."""
        self._take_over(list(self.machine.disk))

    async def _look(self) -> None:
        """No other agent is here, and nothing removes files."""

    def _look_soon(self) -> asyncio.Task[None]:
        """Look once: there is nothing to see."""
        return self._looking or super()._look_soon()

    def _tick(self) -> None:
        self._swept = monotonic()  # no logs are kept
        if len(self.connections) > 64:
            self.connections = [writer for writer in self.connections if not writer.is_closing()]
        super()._tick()

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks that end with the agent's process."""
        running = [stream.running for stream in self.streams._streams.values()]
        return [*self._ending, *running, *([self._looking] if self._looking is not None else [])]
