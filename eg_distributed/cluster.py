"""The cluster: picks a host for a kernel, starts it there, moves on when a host fails, and finds kernels again.

The only thing that adapters talk to. It runs on a private thread with an asyncio loop of its own, so that nothing that a
host does, or fails to do, ever holds up the gateway's loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import hashlib
import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .abandoned import Abandoned
from .absences import Absences
from .agent.identity import is_here
from .agent.processes import raise_file_limit
from .balancing import HostView, LoadBalancer, load_balancer
from .clock import monotonic
from .counters import Counters
from .errors import (
    AgentUnavailable,
    DistributedError,
    HostError,
    HostUnresponsive,
    KernelError,
    KernelGone,
    KernelStartTimeout,
    KernelTaken,
    NoHostAvailable,
    OutOfTime,
    RequestInvalid,
    RequestRefused,
)
from .hosts import Host, HostSet, canonical_name, parse_hosts
from .kernel import RemoteKernel, State
from .link.deadlines import within
from .link.late import leads_here, prepare
from .link.way import is_gateway
from .node import HostBusier, News, Node, QueueFull
from .protocol import (
    FindKernelspecs,
    FindLogs,
    FindTemplates,
    HostKernelspecs,
    Listed,
    ListKernels,
    LogEntry,
    LogPart,
    Ping,
    ReadLogPart,
    Stop,
    WarmStarts,
)
from .request import StartRequest, check_env, check_pin
from .settings import Distributed
from .spec_folder import SpecFolders
from .surroundings import Surroundings
from .transports import Transports
from .turns import Turns
from .unended import NAME as UNENDED_NAME
from .wire import Message

log = logging.getLogger(__name__)
T = TypeVar("T")


_FIRST_LOOKS = 8  # hosts of a start that are looked at with the start's own urgency, where none is connected
_STEADY_ELSEWHERE = 30.0
"""Seconds, at most, for which another host has to be connected before kernels are given up for it."""
_UNSEEN = 2  # kernels that a host counts for beside its own until it has answered
_TICK = 1.0  # seconds between two looks for hosts that have been out of reach for too long
_LOOK = 0.5
"""Seconds between two looks at whether a login has become a slow one."""
_FIRST_COUNT = 1.0  # seconds that least-connection starts wait, once, to learn what other gateways run on a host
_DEAD_KEPT = 300.0  # seconds for which a dead kernel's host is remembered, in case it is started again
_FORGET = 10.0  # seconds between two looks for such kernels
_ADOPTED_LONG = 30.0
"""Seconds after which adopted kernels are connected to where the adapter has not said that these are all."""
_SOCKETS_RETRY = 10.0  # seconds before the sockets of adopted kernels that could not be made are made again
_CLOSE_DEADLINE = 10.0
_DISKS = 5.0  # seconds that a node may take beside the time for an answer where it looks through many folders
_TAKEN_KEPT = 60.0
"""Seconds for which a kernel that was taken over is not started again by a restart that was under way."""
_PICKS_AGAIN = 20
"""Hosts, at most, that a start is sent to and refused by for having more kernels than was believed. Each time another start has
been let in there; after so many of them this one goes where it can, evenly or not."""
_NONE: frozenset[str] = frozenset()
TAKEN_UP_AFTER = 30.0
"""Seconds after the gateway's start, and so after its kernels were adopted, when it ends what its earlier process could not."""


@functools.lru_cache(8)
def _expanded(folder: str) -> Path:
    """Return *folder* without `~`; asked for with each kernel."""
    return Path(folder).expanduser()


def _of_host(error: DistributedError, node: Node) -> HostError:
    """Return *error*, an answer to a question about all of a node, as a fault of that node: none else says such a thing."""
    if isinstance(error, HostError):
        return error
    return AgentUnavailable(f"its agent failed: {error.cause}", host=node.name, remedy="see agent.log on the host")


@dataclass
class _Start:
    """A start that is under way."""

    task: asyncio.Task[Any] | None
    machine: object = None  # where it is being tried, see `Host.machine`; None between two tries


@dataclass
class _Probe:
    """A look at a host, in the background."""

    task: asyncio.Task[None]
    began: float  # in the loop's time


class Cluster:
    """All hosts, nodes and kernels of one gateway. Coroutines run on its loop: call them by `run` or `submit`.

    *surroundings* are the real ones as a rule. With a loop in them the cluster has no thread: all methods are called on that
    loop, and `leave` ends it.
    """

    def __init__(self, settings: Distributed, identity: str, surroundings: Surroundings | None = None) -> None:
        self.settings = settings
        self._surroundings = surroundings or Surroundings()
        self.hosts: dict[str, Host] = {}
        self.kernels: dict[str, RemoteKernel] = {}
        self.identity = (identity, secrets.token_hex(8))
        self.counters = Counters()
        self._balancers: dict[tuple[str, HostSet], LoadBalancer] = {}
        self._runtime_dir: Path | None = None
        self._releasing: set[asyncio.Task[None]] = set()
        self._taken: dict[str, tuple[float, RemoteKernel]] = {}  # of the last minute; since when, in the loop's time
        self._released: dict[str, asyncio.Event] = {}  # set when a kernel that is being released is gone, by its id
        raise_file_limit()  # of the whole process, as jupyter_server does it: its own default is over with a hundred kernels
        # By kernel id: its start that is under way, from the request to its answer. A kernel's own `_starting` is narrower: it is
        # true while an attempt is on a node.
        self._starts: dict[str, _Start] = {}
        self._tried: dict[object, set[str]] = {}  # the starts that are being tried, by machine
        # The hosts of each host set, by its own spelling of their names.
        self._members: dict[HostSet, dict[str, Host]] = {}
        # What balancers were last told of hosts that were well: most still are as they were.
        self._told: dict[str, HostView] = {}
        self._abandoned = Abandoned(settings.orphan_timeout, self._unended_file, self._surroundings.call_aside)
        self._spec_folders = SpecFolders(settings.folder_limit)
        self._transports = Transports()
        self._absences = Absences()
        self._turns = Turns()
        self.ticked_at = monotonic()
        """When this thread last had time for everything: what it has not heard for a moment may be its own fault."""
        self._probes: dict[str, _Probe] = {}  # by the canonical name of the host that is being looked at
        self._ticking: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._adopted: list[RemoteKernel] = []  # those that are not served yet
        self._adopted_timer: asyncio.TimerHandle | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._letting_go: set[asyncio.Task[None]] = set()
        self._has_left = False
        self._is_parents = False  # see `leave_to_parent`
        self.on_reached: list[Callable[[str], None]] = []
        """Called on the cluster's loop with the name of each host that has just connected; they return at once."""
        if self._surroundings.loop is not None:
            self._loop = self._surroundings.loop
            self._ticking = self._loop.create_task(self._tick())
        else:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run_loop, name="eg-distributed", daemon=True)
            self._thread.start()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._preparing = self._loop.create_task(prepare())  # so that the first start need not wait for it
        self._loop.create_task(self._tick())
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run *coroutine* on the cluster's loop, from any thread; nobody need wait for the future."""
        if self._is_parents:
            coroutine.close()
            raise RuntimeError("this process was forked from the one whose cluster this is")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* on the cluster's loop and await its result on the caller's own.

        Cancellation: cancels the coroutine as well.
        """
        return await asyncio.wrap_future(self.submit(coroutine))

    @property
    def is_closed(self) -> bool:
        """Whether the cluster has ended, so that nothing can be asked of it any more."""
        return self._is_parents or self._loop.is_closed()

    def leave_to_parent(self) -> None:
        """Be closed, in a process that was forked: the thread is not here, and the connections are the parent's."""
        self._is_parents = True

    def close(self, *, end_untaken: bool = False) -> None:
        """End the thread and close all connections; kernels live on, starts that are under way are ended.

        Called from another thread: by adapters when their gateway's process ends, by the command line, by tests. With
        *end_untaken* kernels end as well whose adapter has not heard of their start any more (they have no `on_exit`): a
        gateway that stops doesn't list them. Called again, it does nothing.
        """
        if self.is_closed:
            return
        with contextlib.suppress(concurrent.futures.TimeoutError):
            self.submit(self.leave(end_untaken=end_untaken)).result(_CLOSE_DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_DEADLINE)

    async def leave(self, *, end_untaken: bool = False) -> None:
        """Do as `close`, on the cluster's loop, which goes on; for a cluster that was given its loop, and by `close`."""
        self._has_left = True
        if self._adopted_timer is not None:
            self._adopted_timer.cancel()
            self._adopted_timer = None
        self._adopted.clear()
        serving = set(self._serving)
        for task in serving:  # before the endpoints are closed: it would make sockets that nobody removes
            task.cancel()
        if serving:
            await asyncio.wait(serving)
        # While the nodes can still be told: a start that is cancelled leaves nothing behind.
        starts = {start.task for start in self._starts.values() if start.task is not None}
        for task in starts:
            task.cancel()
        if end_untaken:
            for kernel in list(self.kernels.values()):
                if kernel.on_exit is None and kernel.id not in self._starts:
                    self.release_soon(kernel.id)
        if ending := starts | self._releasing | self._letting_go:
            await asyncio.wait(ending, timeout=_CLOSE_DEADLINE / 2)
        for kernel in list(self.kernels.values()):
            await kernel.endpoints.close()
        await self._abandoned.save()
        await asyncio.gather(*(host.node.close() for host in self.hosts.values()))
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait({self._ticking})
        if self._runtime_dir is not None and not self.settings.runtime_dir:
            with contextlib.suppress(OSError):  # another gateway's process may have put something there
                self._runtime_dir.rmdir()

    async def _tick(self) -> None:
        """Look, every second, for kernels that are to be given up or forgotten, and once for what earlier processes left."""
        began = forgot = asyncio.get_running_loop().time()
        has_taken_up = False
        while True:
            await asyncio.sleep(_TICK)
            self.ticked_at = monotonic()
            now = asyncio.get_running_loop().time()
            if not has_taken_up and now - began > TAKEN_UP_AFTER:
                has_taken_up = True
                await self._abandoned.take_up(lambda name: self.host(name).node)
            if now - forgot > _FORGET:  # not every second: it looks at every kernel
                forgot = now
                self._forget_the_dead(now)
            self._give_up_lost(now)

    def _forget_the_dead(self, now: float) -> None:
        """Forget kernels that died long ago: Enterprise Gateway does not say so when its restarter gives one up."""
        for kernel in list(self.kernels.values()):
            is_dead = kernel.state is State.DEAD and kernel.id not in self._starts
            if is_dead and now - kernel.died_at > _DEAD_KEPT:
                self.release_soon(kernel.id)

    def _give_up_lost(self, now: float) -> None:
        """Give up the kernels of hosts that have been out of reach for longer than `host_lost_after`, if the policy says so.

        Not those that had nowhere else to go: a restart could only wait for the same host, and would find them gone.
        """
        nodes = {known_as: host.node for known_as, host in self.hosts.items()}
        online = any(node.is_reached_by_network() for node in nodes.values())
        self._absences.look(now, {name: node.connected.is_set() for name, node in nodes.items()}, online=online)
        if self.settings.host_lost_policy != "restart-elsewhere" or self.settings.host_lost_after <= 0:
            return
        for kernel in list(self.kernels.values()):
            node = kernel.node
            if node is None or node.connected.is_set() or kernel.state is not State.UNKNOWN:
                continue
            if kernel.id in self._starts:
                continue  # its start has a deadline of its own
            here = kernel.agent.place if kernel.agent is not None else None
            # Not the kernel's own machine by another name: it could not start beside itself, and it lives.
            others = [other for other in map(self.host, kernel.elsewhere) if other.machine != here]
            # Not one that is back just now: when a site's network returns, one of its hosts is the first.
            steady = min(self.settings.host_lost_after, _STEADY_ELSEWHERE)
            if not any(other.node.steady_for >= steady for other in others):
                self._probe(other for other in others if other.is_healthy(self.settings.retry_after))
                continue
            away = min(self._absences.seconds(canonical_name(node.name)), now - node.disconnected_at)
            if away > self.settings.host_lost_after:
                log.error("kernel %s: given up, %s has been out of reach for too long", kernel.id, node.name)
                kernel.give_up(returnable=True)

    def _probe(self, hosts: Iterable[Host]) -> None:
        """Connect to *hosts* in the background, to see whether they can be reached and what runs there."""
        for host in hosts:
            if host.node.connected.is_set():
                continue
            name = canonical_name(host.name)
            if name not in self._probes:
                task = asyncio.ensure_future(self._connect_in_background(host.node))
                self._probes[name] = _Probe(task, asyncio.get_running_loop().time())
                task.add_done_callback(lambda _, name=name: self._probes.pop(name, None))  # type: ignore[misc]

    async def _connect_in_background(self, node: Node) -> None:
        with contextlib.suppress(HostError):  # the node remembers it
            await node.connect(hurry=False)

    async def reaches_any(self, names: Iterable[str], seconds: float) -> bool:
        """Return True as soon as one of the hosts *names* answers, False after *seconds*; of many, only some are asked."""
        hosts = {host.known_as: host for host in map(self.host, names)}
        first = sorted(hosts.values(), key=lambda host: not host.node.connected.is_set())[:_FIRST_LOOKS]

        async def answers(node: Node) -> bool:
            try:
                await node.connect()
                await node.request(Ping())
            except DistributedError:  # the node remembers it
                return False
            return True

        asked = [asyncio.ensure_future(answers(host.node)) for host in first]
        try:
            for answer in asyncio.as_completed(asked, timeout=seconds):
                if await answer:
                    return True
        except asyncio.TimeoutError:
            pass
        finally:
            for task in asked:
                task.cancel()
        return False

    # -- hosts ---------------------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """Return what is known of the host *name*, by whatever spelling; the first time, nothing is."""
        known_as = canonical_name(name)
        host = self.hosts.get(known_as)
        if host is None:
            connector, counters = self._surroundings.connector, self.counters.of_host(name)
            node = Node(name, self.settings, self.identity, self, self._turns, connector, counters)
            host = self.hosts[known_as] = Host(name, node)
        return host

    # -- what nodes ask: see node.Owner --------------------------------------------------------------------------

    def wanted(self, host: str) -> list[str]:
        """Return the ids of kernels that need a connection to *host*."""
        known = self.hosts.get(canonical_name(host))
        # Of those that are there, and not of all: with a thousand hosts, each asks as it comes back.
        handles = () if known is None else known.node.users
        return [k.id for k in handles if isinstance(k, RemoteKernel) and self.kernels.get(k.id) is k]

    def handle(self, kernel: str) -> RemoteKernel | None:
        """Return a kernel's handle."""
        return self.kernels.get(kernel)

    def lease(self, kernel: str) -> int:
        """Return the number that is held of a kernel; 0 for one that is adopted, and was not heard of yet."""
        handle = self.kernels.get(kernel)
        return handle.lease if handle is not None else 0

    def is_late(self, kernel: str) -> bool:
        """Return True if a kernel is adopted so long after that was asked for that it is taken from nobody who uses it."""
        handle = self.kernels.get(kernel)
        return handle is not None and handle.is_late

    def has_errands(self, host: str) -> bool:
        """Return True if an attempt on *host* is still to be ended."""
        return self._abandoned.has_any_on(host)

    def run_errands(self, node: Node) -> None:
        """End the attempts that were abandoned while *node* was out of reach, and tell who wants to know that it is back."""
        self._abandoned.end_all_on(node)
        for tell in self.on_reached:
            tell(node.name)

    def hear(self, news: News) -> None:
        """Hand a node's *news* to the kernel's handle."""
        kernel = self.kernels.get(news.kernel)
        if kernel is not None:
            kernel.hear(news)

    # -- starting ------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> RemoteKernel:
        """Start a kernel, or start it again in place if it has ended; return its handle once it is ready.

        Raises RequestRefused, RequestInvalid, NoHostAvailable or KernelError. Then the kernel is on no host, no count has
        changed and its endpoints are gone. Only one that was given up with its host is still there, dead, and goes on if
        that host is back within five minutes.
        """
        if request.kernel_id in self._starts:
            # A client that lost patience sends its request again, with its KERNEL_ID.
            raise RequestInvalid(
                f"kernel {request.kernel_id} is being started already", remedy="wait for that, or send no KERNEL_ID"
            )
        self._starts[request.kernel_id] = _Start(asyncio.current_task())
        try:
            return await self._start(request)
        finally:
            del self._starts[request.kernel_id]

    async def _start(self, request: StartRequest) -> RemoteKernel:
        deadline = asyncio.get_running_loop().time() + request.launch_timeout
        check_env(request.env)
        check_pin(request.pin, request.hosts, allow_any_host=self.settings.allow_any_host)
        await self._keep_off_this_machine(request)
        if leaving := self._released.get(request.kernel_id):
            # Deleted just now: its node takes no second kernel of that id before the first has gone. The time for that is what
            # an agent has for any answer, unless it has none at all: then the start goes on, and what is left is ended later.
            with contextlib.suppress(asyncio.TimeoutError):
                await within(leaving.wait(), min(request.launch_timeout, self.settings.request_timeout))
        if request.shipping.brings_folder:
            # Before a restart ends anything: a folder that can't be brought must not cost a kernel that runs.
            folder = await self._spec_folders.look(request.shipping.resource_dir, deadline)
            request = replace(request, shipping=replace(request.shipping, folder=folder))
        earlier = self.kernels.get(request.kernel_id)
        since, taken = self._taken.get(request.kernel_id, (0.0, None))
        if earlier is None and taken is not None and asyncio.get_running_loop().time() - since < _TAKEN_KEPT:
            # A restart that was under way when it was taken over: it would be a second kernel of that id.
            taken.raise_if_taken()
        was_away = earlier is not None and earlier.is_away
        kernel = earlier or self._new_kernel(request.kernel_id)
        self.kernels[kernel.id] = kernel
        try:
            if earlier is not None and earlier.state is not State.DEAD:
                await self._end_for_restart(earlier, request, deadline)
            at_home = earlier.node if earlier is not None and not earlier.lost else None
            await self._open_endpoints(kernel)
            await self._start_somewhere(kernel, request, at_home, deadline, was_away=was_away)
            kernel.raise_if_taken()
        except BaseException:  # cancellation included: a start that fails leaves nothing behind
            if was_away and not kernel.taken_by:
                kernel.stay_away()  # it may still come back with its host, or has done so
            else:
                self.kernels.pop(kernel.id, None)
                await kernel.forget()
            raise
        return kernel

    def _leaves_host_set(self, request: StartRequest) -> bool:
        """Return True if a client chose the host, and this kernelspec's kernels don't run on the gateway's machine anyway."""
        if request.pin is None or canonical_name(request.pin) in self._candidates(replace(request, pin=None)):
            return False
        return not any(is_gateway(name) for name in request.hosts)

    async def _keep_off_this_machine(self, request: StartRequest) -> None:
        """Raise RequestRefused for a client's own choice of host that is the gateway's machine by its name or address.

        A kernel there is the gateway's own user: it could read its SSH keys and its secrets.
        """
        if self._leaves_host_set(request) and await leads_here(str(request.pin), self.settings):
            raise self._own_machine(request)

    def _keep_off_own_agent(self, request: StartRequest, node: Node) -> None:
        """Raise RequestRefused for the same where *node*'s agent says that it is so.

        A name may have another address by the time it is connected to, and behind a jump host, a tunnel or a translated address
        may be this machine. An agent here is an honest one: the client has no kernel here that could speak in its place.
        """
        if self._leaves_host_set(request) and node.agent is not None and is_here(node.agent):
            raise self._own_machine(request)

    @staticmethod
    def _own_machine(request: StartRequest) -> RequestRefused:
        return RequestRefused(
            f"KERNEL_REMOTE_HOST={request.pin} is the gateway's own machine, which is none of this kernel's hosts "
            f"({', '.join(request.hosts)})",
            remedy="name another host; Distributed.allow_any_host does not include the gateway's own",
        )

    async def _end_for_restart(self, kernel: RemoteKernel, request: StartRequest, deadline: float) -> None:
        """End what a restart replaces, if asking it to end was not enough; an unreachable one ends when its host is back.

        A host that nothing is known against is connected to first: the gateway may have started just now.
        """
        node = kernel.node
        try:
            if node is not None and node.last_error is None:
                patient = self._candidates(request) <= {canonical_name(node.name)}
                await self._connect(self.host(node.name), deadline, patient=patient)
            await kernel.stop(grace=0)
        except KernelTaken:
            raise
        except DistributedError as error:
            log.warning("kernel %s: its host could not be told to end it: %s", kernel.id, error)
            kernel.give_up()

    async def _open_endpoints(self, kernel: RemoteKernel) -> None:
        self._runtime_folder()
        try:
            await kernel.endpoints.open()
        except OSError as error:
            raise DistributedError(
                f"the gateway cannot make the kernel's sockets ({error})",
                remedy="free disk space, or set Distributed.runtime_dir to a short, writable folder of the gateway's user",
            ) from error

    async def _start_somewhere(
        self,
        kernel: RemoteKernel,
        request: StartRequest,
        at_home: Node | None,
        deadline: float,
        *,
        was_away: bool,
    ) -> None:
        """Try one host after the other until the kernel runs, the time is up, or the fault is the kernel's own.

        One that *was_away* and whose host comes back meanwhile, with the kernel alive, is not replaced.
        """
        errors: list[HostError] = []
        tried: set[str] = set()
        slow: list[Host] = []
        began, waited = deadline - request.launch_timeout, kernel.place.seconds
        picks_again = _PICKS_AGAIN
        while True:
            kernel.raise_if_taken()
            if was_away and not kernel.is_away:
                return  # it is back
            if errors and asyncio.get_running_loop().time() >= deadline:
                raise NoHostAvailable(errors)
            believed, was_connected = -1, True
            if at_home is not None and not errors:
                host = self.host(at_home.name)  # a restart stays where the kernel's files are
            elif slow and self._has_tried_all(request, tried):
                host = slow.pop(0)  # there is no other left: its login, which still goes on, is waited for after all
            else:
                host, believed = await self._pick(request, tried, errors, deadline)
                was_connected = host.node.connected.is_set()
            tried.add(host.known_as)
            patient = self._has_tried_all(request, tried)
            self._note_try(kernel.id, host)
            outcome = ""  # of none, as long as nothing is known against host or kernel
            try:
                await self._connect(host, deadline, patient=patient)
                self._note_try(kernel.id, host)  # its machine is known now
                if was_away and not kernel.is_away:
                    return
                self._keep_off_own_agent(request, host.node)
                believed = believed if picks_again else -1
                others = self._count(host) - 1  # without this start
                if believed >= 0 and not was_connected and believed != others:
                    text = f"{others} kernels are there, and not {believed}, as before it was connected"
                    raise HostBusier(text, host=host.name)
                await kernel.start_on(host.node, request, secrets.token_hex(8), deadline, believed)
            except HostBusier as error:
                log.debug("kernel %s: %s: %s: picking again", kernel.id, host.name, error.cause)
                if isinstance(error, QueueFull):
                    errors.append(error)  # nothing is wrong with it, and this start does not come again
                else:
                    picks_again -= 1
                    tried.discard(host.known_as)
                if was_away:
                    kernel.stay_away()
                else:
                    kernel.node = None
            except KernelStartTimeout as error:
                outcome = "timeout"
                error.earlier = tuple(errors)  # they had their share of the time
                raise
            except HostError as error:
                log.warning("kernel %s: %s could not take it: %s", kernel.id, host.name, error)
                outcome = "out_of_time" if isinstance(error, OutOfTime) else "host_failed"
                if not isinstance(error, OutOfTime):  # a client's short launch timeout says nothing of the host
                    host.node.failed(error)
                elif not patient:
                    slow.append(host)
                errors.append(error)
                if was_away:
                    kernel.stay_away()
                else:
                    kernel.node = None
            except KernelError as error:
                outcome = "" if isinstance(error, KernelTaken) else "kernel_failed"
                raise
            except asyncio.CancelledError:
                outcome = "cancelled"
                raise
            else:
                outcome = "ready"
                host.node.counters.start_seconds.note(asyncio.get_running_loop().time() - began)
                log.info("kernel %s: started on %s (pid %d)", kernel.id, host.name, kernel.pid)
                host.node.running.add(kernel.id)  # until the agent says so itself: no moment must show it missing
                return
            finally:
                host.node.counters.note_start(outcome)
                self._note_try(kernel.id, None)
                deadline, waited = deadline + kernel.place.seconds - waited, kernel.place.seconds

    @staticmethod
    def _candidates(request: StartRequest) -> set[str]:
        names = (request.pin,) if request.pin is not None else request.hosts
        return {canonical_name(name) for name in names}

    def _hosts_of(self, hosts: HostSet) -> dict[str, Host]:
        """Return *hosts* by this host set's own spelling, which is the one that its balancer knows; not to be changed."""
        members = self._members.get(hosts)
        if members is None:
            members = self._members[hosts] = {name: self.host(name) for name in hosts}
        return members

    def _has_tried_all(self, request: StartRequest, tried: set[str]) -> bool:
        """Return True if no host is left for a start that has been tried on *tried*."""
        if request.pin is not None:
            return canonical_name(request.pin) in tried
        return all(host.known_as in tried for host in self._hosts_of(request.hosts).values())

    def _note_try(self, kernel_id: str, host: Host | None) -> None:
        """Count a start for the machine of *host*, on which it is being tried now, and for no other."""
        start = self._starts[kernel_id]
        if start.machine is not None:
            there = self._tried[start.machine]
            there.discard(kernel_id)
            if not there:
                del self._tried[start.machine]
        start.machine = None
        if host is not None:
            start.machine = host.machine
            self._tried.setdefault(start.machine, set()).add(kernel_id)

    async def _connect(self, host: Host, deadline: float, *, patient: bool) -> None:
        """Connect within what is left of the start's time; not *patient*, leave a slow login for another host.

        That login goes on, and says nothing against the host: the next start may find it connected.
        """
        loop, node = asyncio.get_running_loop(), host.node
        if node.connected.is_set():
            return
        connecting = asyncio.ensure_future(node.connect())
        try:
            while not connecting.done() and loop.time() < deadline and (patient or not node.is_slow()):
                await asyncio.wait({connecting}, timeout=max(min(deadline - loop.time(), _LOOK), 0.1))
            if connecting.done():
                connecting.result()
                return
        finally:
            connecting.cancel()
        done = node.progress.say()
        so_far = f": {done}, it is {node.progress.phase}" if done else f": it is {node.progress.phase}"
        if loop.time() < deadline:
            raise OutOfTime(
                f"its login takes long{so_far}",
                host=host.name,
                remedy="see why logins take so long there (PAM, DNS, homes)",
            )
        raise OutOfTime(
            f"not connected when the launch timeout ended{so_far}",
            host=host.name,
            remedy="check the host; raise the launch timeout",
        )

    async def _pick(
        self, request: StartRequest, tried: set[str], errors: list[HostError], deadline: float
    ) -> tuple[Host, int]:
        """Return the pin, or the balancer's choice among the hosts that have not failed for this start yet.

        With it comes how many kernels it was picked for having, -1 where that does not count. What is believed of a host is never
        more than what is there, or on its way, for as long as no kernel ends. So if each start goes to the host with the fewest
        by what is believed, and no host takes one that has more than that, then no host has two more than another one.
        """
        if self._has_tried_all(request, tried):
            raise NoHostAvailable(errors)
        if request.pin is not None:
            return self.host(request.pin), -1
        candidates = self._hosts_of(request.hosts)
        if tried:
            candidates = {name: host for name, host in candidates.items() if host.known_as not in tried}
        views = self._view_well(candidates) or await self._view_any(request, candidates, deadline)
        key = (request.balancer, request.hosts)
        if key not in self._balancers:
            self._balancers[key] = load_balancer(request.balancer)(request.hosts)
        balancer = self._balancers[key]
        picked = self.host(balancer.pick(views).name)
        return picked, self._count(picked) if getattr(balancer, "is_exact", False) else -1

    def _view_well(self, hosts: dict[str, Host]) -> list[HostView]:
        """Return what a balancer is told of *hosts* where all are connected, healthy and machines of their own; else nothing.

        So it is for nearly all picks. Each start picks, and asks for all hosts of its set: of starts by the hundred this is what
        this thread does most, so it is one loop, with nothing in it that most hosts do not need.
        """
        views: list[HostView] = []
        machines: set[object] = set()
        tried, told = self._tried, self._told
        for name, host in hosts.items():
            node = host.node
            if node.last_error is not None or not node.connected.is_set():
                return []
            machine = node.place or host.known_as
            machines.add(machine)
            is_counted = machine not in tried and host.known_as not in tried
            kernels = len(node.running) if is_counted else self._count(host)
            view = told.get(name)
            if view is None or view.kernels != kernels:
                view = told[name] = HostView(name, kernels)
            views.append(view)
        return views if len(machines) == len(views) else []

    async def _view_any(self, request: StartRequest, candidates: dict[str, Host], deadline: float) -> list[HostView]:
        """Return what a balancer is told where some of *candidates* are not connected, have failed, or are one machine."""
        retry_after = self.settings.retry_after
        healthy = {name: host for name, host in candidates.items() if host.is_healthy(retry_after)}
        if request.balancer != "round-robin":
            await self._learn_counts(list(healthy.values()), deadline)
        return [
            self._view(name, host, healthy=name in healthy)
            for name, host in self._by_first_names(healthy or candidates).items()
        ]

    def _by_first_names(self, hosts: dict[str, Host]) -> dict[str, Host]:
        """Return *hosts* with each machine once, by the first of its names that is connected: by all it would get several shares.

        What a name is left out for is what it was when it was last connected. It may lead to another machine by now, so it is
        connected to again in the background.
        """
        machines = {host.node.place or host.known_as for host in hosts.values()}
        if len(machines) == len(hosts):  # as a rule, and for each start
            return hosts
        names: dict[object, list[str]] = {}
        for name, host in hosts.items():
            names.setdefault(host.machine, []).append(name)
        found = dict(hosts)
        for same in names.values():
            first = next((name for name in same if hosts[name].node.connected.is_set()), same[0])
            for name in same:
                if name != first:
                    self._tell_second_name(found.pop(name), hosts[first])
        return found

    def _tell_second_name(self, host: Host, first: Host) -> None:
        self._probe([host])
        if first.name not in (host.name, host.second_name_of):
            host.second_name_of = first.name
            log.info(
                "%s and %s are one machine: the same agent answers by both names. Kernels start there by the name %s, unless "
                "they are pinned to the other one, or only that one can be reached",
                first.name, host.name, first.name,
            )  # fmt: skip

    def _view(self, name: str, host: Host, *, healthy: bool) -> HostView:
        """Return what a balancer is told of *host*: a few more kernels where it has not answered yet, so others come first."""
        if host.node.connected.is_set():  # most are, and each start asks for all
            return HostView(name, self._count(host), healthy)
        return HostView(name, self._count(host) + _UNSEEN, healthy, host.may_take_its_share)

    def _count(self, host: Host) -> int:
        place, name = host.node.place, host.known_as
        starting = self._tried.get(name)
        if place is not None:
            there = self._tried.get(place)
            # By its name: begun before its machine was known.
            starting = there | starting if there and starting else there or starting
        return host.count(starting or _NONE)

    def count(self, host: str) -> int:
        """Return how many kernels count for *host*: all gateways', as its agent says, and ours that are being started."""
        return self._count(self.host(host))

    async def _learn_counts(self, hosts: list[Host], deadline: float) -> None:
        """Have hosts that are not connected looked at, and wait for that shortly; not for one that was looked at before.

        What is not known by then comes last, so it costs no start anything. Where nothing is, the first host to answer is waited
        for a little longer: the start needs a connection in any case.
        """
        if all(host.node.connected.is_set() for host in hosts):
            return
        self._probe(hosts)
        loop = asyncio.get_running_loop()
        now = loop.time()
        probes = [self._probes.get(canonical_name(host.name)) for host in hosts if host.node.last_error is None]
        first = [probe for probe in probes if probe is not None and now - probe.began < _FIRST_COUNT]
        if first:
            newest = max(probe.began for probe in first)
            await asyncio.wait({probe.task for probe in first}, timeout=min(newest + _FIRST_COUNT, deadline) - now)
        deadline = min(deadline, now + self.settings.connect_seconds())
        if not any(host.node.connected.is_set() for host in hosts):
            for host in hosts[:_FIRST_LOOKS]:
                host.node.hurry()  # else their looks would stand behind hosts that come back
        while not any(host.node.connected.is_set() for host in hosts) and (left := deadline - loop.time()) > 0:
            looking = {probe.task for host in hosts if (probe := self._probes.get(canonical_name(host.name)))}
            if not looking:
                return
            await asyncio.wait(looking, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    # -- finding and ending kernels ------------------------------------------------------------------------------

    def prefix(self, kernel_id: str) -> Path:
        """Return where a kernel's sockets are at the gateway: the same after the gateway's restart."""
        return self._runtime_folder() / "".join(c for c in kernel_id if c.isalnum())[:32] / "c"

    def _runtime_folder(self) -> Path:
        """Return the folder of all kernels' sockets, made if it is not there; raises DistributedError where it is not private.

        Asked for whenever a kernel's sockets are made: its name can be foreseen, and what cleans /tmp up removes folders that
        have long been quiet, so that another user could make it, and own what clients connect to.
        """
        folder = self._runtime_path()
        try:
            try:
                found = folder.lstat()
            except FileNotFoundError:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                found = folder.lstat()
        except OSError as error:
            raise DistributedError(
                f"{folder} cannot be made for kernels' sockets ({error.strerror})",
                remedy="set Distributed.runtime_dir to a short, writable folder of the gateway's user",
            ) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise DistributedError(
                f"{folder} is not a private folder of ours", remedy="remove it, or set Distributed.runtime_dir"
            )
        self._runtime_dir = folder
        return folder

    def _token(self) -> str:
        return hashlib.sha256(self.identity[0].encode()).hexdigest()[:8]

    def _runtime_path(self) -> Path:
        given = self.settings.runtime_dir
        return _expanded(given) if given else Path(f"/tmp/eg-distributed-{os.getuid()}-{self._token()}")  # noqa: S108

    def _unended_file(self, make: bool) -> Path | None:
        """Return where the file of `Abandoned` is; None where its folder is not there and not to be made."""
        if not make and not self._runtime_path().is_dir():
            return None
        return self._runtime_folder() / (UNENDED_NAME % self._token())

    def _new_kernel(self, kernel_id: str) -> RemoteKernel:
        kernel = RemoteKernel(
            kernel_id,
            self.settings,
            self.prefix(kernel_id),
            self.identity,
            self._abandoned,
            self._spec_folders,
            self._transports,
            self._surroundings.endpoints,
        )
        kernel.let_go = self._let_go_soon
        return kernel

    def _let_go_soon(self, kernel: RemoteKernel) -> None:
        """Let go of a kernel that another gateway has adopted; a start that is under way fails for it, and does so itself."""
        now = asyncio.get_running_loop().time()
        self._taken = {key: each for key, each in self._taken.items() if now - each[0] < _TAKEN_KEPT}
        self._taken[kernel.id] = now, kernel
        if kernel.id not in self._starts and self.kernels.get(kernel.id) is kernel:
            del self.kernels[kernel.id]
            task = asyncio.ensure_future(self._let_go(kernel))
            self._letting_go.add(task)
            task.add_done_callback(self._letting_go.discard)

    async def _let_go(self, kernel: RemoteKernel) -> None:
        """Leave nothing of the kernel here, and nothing to be done on its node; then tell its adapter."""
        kernel.node = None
        await kernel.endpoints.close()
        if kernel.on_taken is not None:
            kernel.on_taken(kernel)

    def adopt(
        self,
        kernel_id: str,
        host: str,
        attempt: str,
        connection_info: Message,
        agent: object = None,
        on_exit: Callable[[RemoteKernel], None] | None = None,
    ) -> RemoteKernel:
        """Take over a kernel of an earlier process of this gateway, or of another one; returns its handle at once, on any thread.

        Who else has it, another gateway or a process that still counts as there, lets go of it as soon as its host is told.
        *agent* is what that process kept of `RemoteKernel.agent_kept`; None: it was of a release that kept nothing.
        Until the host answers the kernel counts as UNKNOWN; if it turns out to have ended, *on_exit* says so. Waits neither for
        the host nor for the cluster's thread. Raises OSError or DistributedError where no sockets can be had: then the kernel is
        not adopted. `serve_adopted` is to be called when all kernels are adopted.
        """
        kernel = self._new_kernel(kernel_id)
        kernel.on_exit = on_exit
        kernel.be_adopted(attempt, connection_info, agent)
        self.call_soon(self._take_in, kernel, host)
        return kernel

    def _take_in(self, kernel: RemoteKernel, host: str) -> None:
        """Have an adopted kernel among ours."""
        self._taken.pop(kernel.id, None)
        self.kernels[kernel.id] = kernel
        kernel.node = node = self.host(host).node
        self._abandoned.keep(node, kernel.id, kernel.attempt)
        if not node.connected.is_set():
            node.disconnected_at = asyncio.get_running_loop().time()
        self._adopted.append(kernel)
        if self._adopted_timer is None and not self._has_left:
            self._adopted_timer = asyncio.get_running_loop().call_later(_ADOPTED_LONG, self._serve_adopted)

    def serve_adopted(self) -> None:
        """Serve the clients of adopted kernels, and connect to their hosts, now that all are adopted; from any thread.

        Called by adapters when their gateway is up. While it starts, this thread would take turns with the one that adopts, some
        milliseconds at a time, for each file that the latter opens: a thousand kernels took three times as long. Where it is not
        called it is done after half a minute.
        """
        self.call_soon(self._serve_adopted)

    def _serve_adopted(self) -> None:
        if self._has_left:
            return
        if self._adopted_timer is not None:
            self._adopted_timer.cancel()
            self._adopted_timer = None
        adopted, self._adopted = self._adopted, []
        kernels = [kernel for kernel in adopted if self.kernels.get(kernel.id) is kernel]
        for kernel in kernels:
            if kernel.node is not None:
                kernel.note_asked()
                kernel.node.expect()
                kernel.node.keep_connected(fresh=kernel.id)
        if kernels:
            task = asyncio.ensure_future(self._serve(kernels))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, kernels: list[RemoteKernel]) -> None:
        """Listen for the clients of *kernels*; what fails is tried again, since their clients try as well."""
        while kernels:
            left = []
            for kernel in kernels:
                if self.kernels.get(kernel.id) is not kernel:
                    continue  # released meanwhile
                try:
                    self._runtime_folder()  # it may have been cleaned up, and made by another user, since the adoption
                    await kernel.endpoints.serve()
                except (OSError, DistributedError) as error:
                    log.error("kernel %s: the gateway cannot make its sockets, and tries again: %s", kernel.id, error)
                    left.append(kernel)
                except Exception:  # whatever one kernel's sockets raise, the others' have to be made
                    log.exception("kernel %s: the gateway cannot make its sockets, and tries again", kernel.id)
                    left.append(kernel)
            kernels = left
            if kernels:
                await asyncio.sleep(_SOCKETS_RETRY)

    async def release(self, kernel_id: str) -> None:
        """End the kernel, if it still runs, and forget it: no process, no socket, no count and no file but its log is left."""
        kernel = self.kernels.pop(kernel_id, None)
        if kernel is not None:
            node = kernel.node
            released = self._released[kernel_id] = asyncio.Event()
            try:
                await kernel.forget()
                if node is not None and kernel_id not in self.kernels:
                    node.running.discard(kernel_id)
            finally:
                released.set()
                if self._released.get(kernel_id) is released:
                    del self._released[kernel_id]

    def release_soon(self, kernel_id: str) -> asyncio.Task[None]:
        """Release a kernel without anyone having to wait for it; on the cluster's loop. `close` waits for what is under way."""
        task = asyncio.ensure_future(self.release(kernel_id))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        return task

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Call *function* on the cluster's loop, from any thread."""
        self._loop.call_soon_threadsafe(function, *args)

    def is_starting(self, kernel_id: str) -> bool:
        """Return True if a start of the kernel is under way; on any thread."""
        return kernel_id in self._starts

    async def list_kernels(
        self, hosts: HostSet | str, seconds: float | None = None
    ) -> dict[str, list[Listed] | HostError]:
        """Ask each of *hosts* what runs there: this and other gateways' kernels, and orphans (`claimed` false).

        One that has not answered within *seconds* is a HostUnresponsive, and holds up none of the others; None: each as long as
        its connection and its answer may take.
        """

        async def ask(name: str) -> list[Listed] | HostError:
            node = self.host(name).node
            try:
                return await self._ask_for_kernels(node, seconds)
            except DistributedError as error:
                return _of_host(error, node)

        names = parse_hosts(hosts)
        return dict(zip(names, await asyncio.gather(*(ask(name) for name in names)), strict=True))

    @staticmethod
    async def _ask_for_kernels(node: Node, seconds: float | None) -> list[Listed]:
        async def ask() -> list[Listed]:
            # A program's look at all hosts, which has so many seconds, stands behind users' starts where logins take turns.
            await node.connect(hurry=seconds is None)
            return await node.request(ListKernels())

        if seconds is None:
            return await ask()
        try:
            return await within(ask(), seconds)
        except asyncio.TimeoutError:
            so_far = "" if node.connected.is_set() else f": it is {node.progress.phase}"
            raise HostUnresponsive(
                f"not listed: no answer within {seconds:g} s{so_far}",
                host=node.name,
                remedy="ask again, with more time, or see what `jupyter distributed doctor` says",
            ) from None

    async def find_logs(
        self, kernel: str, hosts: HostSet | str, *, newest: bool = True
    ) -> dict[str, list[LogEntry] | HostError]:
        """Ask each of *hosts* for the logs of kernels whose ids begin with *kernel*; for `jupyter distributed logs`.

        With *newest* a kernel of just that id that has not ended is all that was looked for: hosts that have not answered by then
        are not waited for, and not in the answer.
        """

        async def ask(name: str) -> list[LogEntry] | HostError:
            node = self.host(name).node
            try:
                await node.connect()
                found = await node.request(FindLogs(kernel))
            except DistributedError as error:
                return _of_host(error, node)
            return found

        asking = {asyncio.ensure_future(ask(name)): name for name in parse_hosts(hosts)}
        answers: dict[str, list[LogEntry] | HostError] = {}
        pending = set(asking)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    answer = answers[asking[task]] = task.result()
                    starts = [] if isinstance(answer, HostError) else answer
                    if newest and any(start.kernel == kernel and start.state != "exited" for start in starts):
                        return answers
        finally:
            for task in pending:
                task.cancel()
        return answers

    async def read_log_part(self, host: str, kernel: str, attempt: str, position: int) -> LogPart:
        """Return what *attempt* of *kernel* printed from *position* on. Raises HostError, or KernelGone where no log is."""
        node = self.host(host).node
        await node.connect()
        return await node.request(ReadLogPart(kernel, attempt, position))

    async def find_templates(self, host: str) -> WarmStarts:
        """Ask *host* what it forks kernels from; raises DistributedError, also where its agent knows no templates."""
        node = self.host(host).node
        await node.connect()
        return await node.request(FindTemplates())

    async def find_kernelspecs(self, host: str, environments: Sequence[str]) -> HostKernelspecs:
        """Return the kernelspecs that *host* has for its own users. Raises HostError; no start waits for that."""
        node = self.host(host).node
        await node.connect(hurry=False)
        return await node.request(FindKernelspecs([*environments]), self.settings.request_timeout + _DISKS)

    async def end(self, host: str, kernel_id: str, grace: float = 5.0) -> None:
        """End a kernel on *host*, whoever started it; for orphans. Raises KernelGone or HostError."""
        node = self.host(host).node
        await node.connect()
        answer = await node.request(
            Stop(kernel_id, grace=grace, forget=True, force=True), timeout=grace + self.settings.request_timeout
        )
        if not answer.stopped:
            raise KernelGone(f"no kernel {kernel_id} is there", host=host, remedy="list the kernels again")
