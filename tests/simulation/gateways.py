"""Imagined gateways: the real cluster, and what people do with it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, cast

from eg_distributed.channels import Endpoints
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError, HostUnreachable
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.link.links import Link
from eg_distributed.link.login import Progress
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed
from eg_distributed.surroundings import Surroundings

from .machines import Machine
from .network import End, Path, SimLink, connection

if TYPE_CHECKING:
    from .world import World

LOGIN_CPU = 0.010
"""Seconds that a login takes of the thread that carries all cells of its gateway; as measured with asyncssh."""
_LOCAL = 0.00005


class SimEndpoints(Endpoints):
    """A kernel's channels, whose listening sockets are imagined; what is carried over them, and how, is real."""

    _is_open = False

    def take_over(self, before: Any) -> None:
        """Leave it to `serve`."""

    def bind(self, before: Any = None) -> None:
        """Be there for clients."""
        self._is_open = True

    async def close(self) -> None:
        """Close the streams."""
        self._is_open = False
        self.drop_streams()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def dial(self, channel: str) -> tuple[asyncio.StreamReader, End]:
        """Connect to a channel, as a client does; raises ConnectionRefusedError where the socket would not be there."""
        if not self._is_open:
            raise ConnectionRefusedError
        client, (reader, writer) = connection(asyncio.get_running_loop(), _LOCAL)
        self._accept(channel)(reader, cast("asyncio.StreamWriter", writer))
        return client


async def at_once(key: Hashable, function: Callable[[], Any]) -> Any:
    """Read and write files here and now: there are none."""
    return function()


class Gateway:
    """One gateway, and the people in front of it."""

    def __init__(self, world: World, name: str, settings: Distributed) -> None:
        self.world = world
        self.name = name
        self.settings = settings
        self.rng = random.Random(f"{world.seed} {name}")
        self.paths: dict[str, Path] = {}
        self.wanted: dict[
            str, tuple[str, str]
        ] = {}  # kernels that are to be there: their host and attempt, as persisted
        self.kept: dict[str, object] = {}  # what is persisted of their agents
        self.logins: dict[str, int] = {}  # logins that led to a link, by host
        self.in_vain = 0  # logins that did not
        self.deaths: list[str] = []
        self._busy_until = 0.0
        self._is_dead = False
        self.cluster = self._begin()

    def _begin(self) -> Cluster:
        self._is_dead = False
        self._life = object()
        surroundings = Surroundings(self.world.loop, self._connector(self._life), SimEndpoints, at_once)
        return Cluster(self.settings, self.name, surroundings)

    # -- the network ---------------------------------------------------------------------------------------------

    def path(self, host: str) -> Path:
        """Return the network between this gateway and a host."""
        if host not in self.paths:
            patience = self.settings.keepalive_interval * self.settings.keepalive_count
            self.paths[host] = Path(self.world.loop, self.rng.uniform(0.0002, 0.005), patience)
        return self.paths[host]

    async def _compute(self, seconds: float) -> None:
        """Take *seconds* of this gateway's thread, behind whoever came before."""
        now = self.world.loop.time()
        self._busy_until = max(self._busy_until, now) + seconds
        await asyncio.sleep(self._busy_until - now)

    def _connector(self, life: object) -> Any:
        async def connect(host: str, settings: Distributed, *, keep: bool, progress: Progress) -> Link:
            """Log in, as over SSH, and have an agent there."""
            try:
                return await self._log_in(host, progress, life)
            except BaseException:
                self.in_vain += 1
                raise

        return connect

    async def _log_in(self, host: str, progress: Progress, life: object) -> Link:
        path, machine = self.path(host), Machine.known[host]
        loop = self.world.loop
        until = loop.time() + self.settings.connect_seconds()
        progress.enter("connecting")
        for pause in (1.0, 2.0, 4.0):  # as TCP sends its first packet again
            if not path.is_cut or loop.time() >= until:
                break
            await asyncio.sleep(min(pause, until - loop.time()))
        if path.is_cut or life is not self._life:
            raise HostUnreachable("no answer", host=host, remedy="check the network")
        await asyncio.sleep(2 * path.latency)
        if machine.refuses:
            raise HostUnreachable("connection refused", host=host, remedy="check sshd")
        await self._compute(LOGIN_CPU)
        if loop.time() > until:
            raise HostUnreachable("no banner in time", host=host, remedy="check sshd")
        progress.answered = True
        await asyncio.sleep(8 * path.latency)
        await path.whole()
        machine.bring_up()
        self.logins[host] = self.logins.get(host, 0) + 1
        return SimLink(path, machine.accept)

    def cut(self) -> None:
        """Take this gateway's uplink down."""
        for host in self.world.names:
            self.path(host).cut()

    def heal(self) -> None:
        """Bring it up again."""
        for path in self.paths.values():
            path.heal()

    # -- what people do ------------------------------------------------------------------------------------------

    async def start(self, kernel_id: str, hosts: tuple[str, ...], **params: Any) -> bool:
        """Start a kernel, or restart one; return False if that failed with an error that a person would read."""
        defaults: dict[str, Any] = {"language": "python", "key": "k", "balancer": "least-connection"}
        request = StartRequest(
            kernel_id=kernel_id, argv=["ipykernel", "{connection_file}"], hosts=hosts, **{**defaults, **params}
        )
        life = self._life
        try:
            kernel = await self.cluster.start(request)
        except DistributedError:
            if life is self._life:
                self._look_after_failure(kernel_id)
            return False
        if life is self._life:
            kernel.on_exit = self._hear_of_death
            self._persist(kernel)
        return True

    def _look_after_failure(self, kernel_id: str) -> None:
        if kernel_id not in self.cluster.kernels and kernel_id not in self.cluster._starts:
            self.wanted.pop(kernel_id, None)

    def _persist(self, kernel: RemoteKernel) -> None:
        if kernel.node is not None:
            self.wanted[kernel.id] = kernel.node.name, kernel.attempt
            self.kept[kernel.id] = kernel.agent_kept

    async def release(self, kernel_id: str) -> None:
        """Delete a kernel."""
        self.wanted.pop(kernel_id, None)
        self.kept.pop(kernel_id, None)
        await self.cluster.release(kernel_id)

    def _hear_of_death(self, kernel: RemoteKernel) -> None:
        self.deaths.append(kernel.id)
        self.world.check_death(self, kernel)

    async def crash(self) -> None:
        """End the gateway's process, and begin the next one, which adopts what was persisted."""
        self._life = object()  # nothing that the former one still does gets anywhere
        for path in self.paths.values():
            path.reset()
        await self.cluster.leave()
        self.cluster = self._begin()
        for kernel_id, (host, attempt) in list(self.wanted.items()):
            self.cluster.adopt(kernel_id, host, attempt, {"key": "k"}, self.kept.get(kernel_id), self._hear_of_death)
        self.cluster.serve_adopted()

    # -- what is seen --------------------------------------------------------------------------------------------

    def alive(self) -> int:
        """Return how many kernels this gateway knows to be alive."""
        return sum(kernel.state is State.ALIVE for kernel in self.cluster.kernels.values())

    def is_whole(self) -> bool:
        """Return True if this gateway is connected to every host with a kernel of its own, and knows all of these to be alive."""
        hosts = self.cluster.hosts
        return all(
            host in hosts and hosts[host].node.connected.is_set() for host in {host for host, _ in self.wanted.values()}
        ) and self.alive() == len(self.cluster.kernels) == len(self.wanted)

    def connected(self) -> int:
        """Return how many hosts this gateway is connected to."""
        return sum(host.node.connected.is_set() for host in self.cluster.hosts.values())


class Listener:
    """A client that listens to a kernel's output, and checks that no line is lost or doubled on any one connection."""

    def __init__(self, gateway: Gateway, kernel_id: str) -> None:
        self.gateway = gateway
        self.kernel_id = kernel_id
        self.last = 0  # line that came
        self.lines = 0  # that came in all
        self.connections = 0
        self.errors: list[str] = []
        self._task = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        while True:
            kernel = self.gateway.cluster.kernels.get(self.kernel_id)
            if kernel is not None:
                with contextlib.suppress(ConnectionRefusedError):
                    await self._hear(*cast("SimEndpoints", kernel.endpoints).dial("iopub"))
            await asyncio.sleep(0.5)  # as ZMQ connects again

    async def _hear(self, reader: asyncio.StreamReader, writer: End) -> None:
        self.connections += 1
        self.last = 0
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                number = int(line)
                if self.last and number != self.last + 1:
                    self.errors.append(f"kernel {self.kernel_id}: line {number} comes after {self.last}")
                self.last = number
                self.lines += 1
        finally:
            writer.close()

    async def close(self) -> None:
        """Listen no more."""
        self._task.cancel()
        await asyncio.wait({self._task})
