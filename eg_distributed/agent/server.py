"""The agent's process: its socket, its gateways, and the kernels and streams that they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
import sys
import time
import traceback
import weakref
from pathlib import Path
from typing import AbstractSet, Any, Callable, Iterator, NamedTuple, Optional, TypeVar

from ..clock import monotonic
from ..connections import Connection
from ..protocol import (
    CHANNELS,
    ELSEWHERE,
    PROTOCOL,
    QUEUED,
    TAKEN_OVER,
    WARNING,
    Adopt,
    AgentIdentity,
    ControlHello,
    Description,
    Exited,
    FindKernelspecs,
    FindLogs,
    FindTemplates,
    FolderHello,
    ForgetOutput,
    Found,
    KernelBrief,
    KernelEvent,
    Leave,
    Listed,
    ListKernels,
    Load,
    LogEntry,
    Login,
    LogPart,
    Ping,
    Pong,
    ReadLog,
    ReadLogPart,
    Ready,
    Request,
    SetEndpoints,
    Signal,
    Start,
    Started,
    Stop,
    Stopped,
    StreamHello,
    Taken,
    TakeOutput,
    WarmStarts,
    Welcome,
    read_request,
    write_event,
)
from ..streams import StreamBroken
from ..wire import MAX_ANSWER, MAX_MESSAGE, LocalWriter, Malformed, Message, Reader, encode, read_message
from . import kept_logs, memory, processes
from .admission import COLD, WARM, Admission, QueueFull, Turn
from .aside import aside
from .disk import Disk
from .identity import identity_of
from .kept_output import KeptOutput
from .kernels import EXITED, LOG_DEADLINE, RUNNING, SETTLE_DEADLINE, START_DEADLINE, Kernel, shown_argv
from .kernelspecs import Kernelspecs
from .leases import Leases, TakenOver, is_lost
from .log_caps import LogCaps
from .nursery import Nurseries, NurseryHello
from .place import BACKLOG, GONE, TAKEN, Place, listen
from .processors import Processors
from .records import RECORD, Records
from .spawning import StartError
from .spec_folder import FolderMissing, SpecFolders
from .streams import Streams
from .warm import Templates

T = TypeVar("T")
_ALL_KERNELS = 10  # looks at the place between two at all kernels' records
IDLE = 300.0
"""Seconds without a kernel and without a visitor after which the agent leaves."""
EXITED_KEPT = 3600.0
"""Seconds for which the record of an ended kernel waits for a gateway to ask."""
TICK = 1.0
LOOK_DEADLINE = 1.0
"""Seconds that an adoption waits for a look at what other agents have left, of those that a gateway waits for its answer."""
SWEEP = 60.0
"""Seconds between two looks at the logs that are kept of kernels which have ended."""
ENDING_AWAITED = 3.0
"""Seconds that a start waits for the end of an earlier attempt of its kernel which is being ended; less than gateways wait."""
FOLDER_KEPT = 3600.0
"""Seconds for which a kernel's folder without a record, of a start that was cut short, is left alone."""
SILENCE = 60.0
"""Seconds after which a gateway that says nothing, not even a ping, is gone: its machine or the network was lost, and TCP,
which has nothing to send to it, would not notice for hours."""
HEARD_LATELY = 20.0
"""Seconds within which each gateway pings: one that was heard in them, and whose connection then ends, is gone itself. Where
it ends after more silence, sshd or TCP has given up a link that was cut, and the gateway may be alive."""


class Unclaimed(NamedTuple):
    """What is known of a kernel's lack of a gateway."""

    since: float
    gone_timeout: float = 0.0
    """See `ControlHello`; 0 where the gateway may only be cut off."""

    def is_orphan(self, orphan_timeout: float, now: float) -> bool:
        """Return True if a kernel with this *orphan_timeout* has been without a gateway for too long."""
        limits = [limit for limit in (orphan_timeout, self.gone_timeout) if limit > 0]
        return bool(limits) and now - self.since > min(limits)


class UnknownKernel(Exception):
    """A request names a kernel that is not here."""


class LogUnreadable(Exception):
    """A log is known, and cannot be read."""


class Busier(Exception):
    """The node has more kernels than the one that asks for a start believed."""


class OutputUnreadable(Exception):
    """What was kept of a kernel's output cannot be read now."""


class Gateway:
    """One control connection: a gateway's, identified by *owner* (stable) and *incarnation* (one life of its process)."""

    def __init__(self, hello: ControlHello, writer: LocalWriter) -> None:
        self.keep_output = hello.keep_output
        self.gone_timeout = hello.gone_timeout
        self.is_gone = False  # its process has ended, as far as can be told
        self.owner = hello.gateway
        self.incarnation = hello.incarnation
        self.host = hello.host  # the name that it has for this machine
        self.process = (hello.gateway, hello.incarnation)
        self.kernels: set[str] = set()  # the kernels it answers for
        self.missed: set[str] = set()  # those that it asked about, and that were not here
        self.heard = monotonic()
        self._writer = writer

    def send(self, message: Message) -> None:
        """Queue *message*; see `send_encoded`."""
        self.send_encoded(encode(message), message.get("id"))

    def send_encoded(self, encoded: bytes, number: Any = None) -> None:
        """Queue a message, the answer to request *number*; a gateway that does not read loses its connection, not our memory."""
        if self._writer.transport.get_write_buffer_size() > MAX_MESSAGE:
            self._writer.transport.abort()
        elif not self._writer.is_closing():
            if len(encoded) > MAX_ANSWER:  # the gateway would have to take it for a broken peer
                text = f"the answer has {len(encoded)} bytes, at most {MAX_ANSWER} are allowed"
                encoded = encode({"id": number, "error": text, "kind": "internal"})
            self._writer.write(encoded)

    def abort(self) -> None:
        """Close the connection at once; what is queued is lost."""
        self._writer.transport.abort()


class Agent:
    """The truth about this node for one user; *directory* (0700) holds the socket and the kernels' records."""

    kernel_type: type[Kernel] = Kernel
    """What its kernels are made of; a simulated node has processes of another kind."""

    def __init__(
        self,
        directory: Path,
        digest: str,
        idle: float = IDLE,
        umask: int = 0o077,
        open_files: int = -1,
        identity: Optional[AgentIdentity] = None,
        disk: Optional[Disk] = None,
        standing: str = "",
        processors: Optional[Processors] = None,
    ) -> None:
        self.directory = directory
        self.identity = identity or identity_of(directory)
        self.digest = digest
        self.idle = idle
        self.umask = umask  # of kernels: the login's own, not ours
        self.login: Optional[dict[str, str]] = None  # the newest login's environment; None: ours
        self.open_files = open_files  # the same of the soft limit of open files; -1: as ours
        self.kernels: dict[str, Kernel] = {}
        # The ids of those that were not seen to end, in order: counted for each start, so not looked for among all of them.
        self._living: dict[str, None] = {}
        self.gateways: set[Gateway] = set()
        self.streams = Streams(self.kernels, self._notify, self._keeps_output)
        self.kept_output = KeptOutput(self.streams, self._notify)
        self._leases = Leases(self.kernels)
        self._log_caps = LogCaps(self.kernels)
        self._spec_folders = SpecFolders(directory)
        self._kernelspecs = Kernelspecs()
        self._nurseries = Nurseries(standing)
        self._templates = Templates(directory)
        self._disk = disk or Disk()
        self._admission = Admission(processors)
        self._unclaimed: dict[str, Unclaimed] = {}  # kernel id: since when no gateway answers for it, and why
        self._orphans: set[Kernel] = set()  # unclaimed for so long that they are being ended
        # All that may still touch a folder of theirs, by its name.
        self._attempts: weakref.WeakValueDictionary[str, Kernel] = weakref.WeakValueDictionary()
        self._waiting: dict[tuple[str, str], int] = {}  # kernel id, attempt: starts that have not begun
        self._starting = 0  # starts under way
        self._withdrawn: set[tuple[str, str]] = set()  # those of them that were stopped meanwhile
        self._place = Place(self.identity, socket_path(directory))
        self._server: asyncio.base_events.Server | None = None
        self._is_superseded = False  # another agent has the socket's name
        self._looks = 0  # at the place
        self._said: set[str] = set()  # what has been wrong with the place since it was last whole
        self._records = Records(directory / "k")
        self._looking: asyncio.Task[None] | None = None  # at the place, and at records of other agents
        self._condemned: set[tuple[str, str]] = set()  # kernel id, attempt: to be ended once another agent's is ours
        self._last_tick = monotonic()
        self._idle_since = monotonic()
        self._leave = asyncio.Event()
        self._visitors = 0
        self._swept = -SWEEP  # when the kept logs were last looked at: at first they are at once
        self._sweeping: asyncio.Future[None] | None = None
        self._finishing: list[Kernel] = []  # ended and forgotten, with something still to be run after them
        self._ending: set[asyncio.Task[None]] = set()
        self._methods: dict[type[Request[Any]], Callable[[Gateway, Any], Any]] = {
            Start: self._start,
            SetEndpoints: self._set_endpoints,
            Signal: self._signal,
            Stop: self._stop,
            Adopt: self._adopt,
            ListKernels: self._list,
            ReadLog: self._log,
            FindLogs: self._find_logs,
            ReadLogPart: self._log_part,
            TakeOutput: self._output,
            ForgetOutput: self._forget_output,
            FindKernelspecs: self._find_kernelspecs,
            FindTemplates: self._find_templates,
            Ping: self._ping,
            Leave: self._leave_now,
            Login: self._take_login,
        }

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self, listening: socket.socket) -> None:
        """Serve until idle, or until told to leave; kernels outlive the agent and are found again by the next one."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leave.set)
        self._restore()
        pruning = loop.run_in_executor(None, self._spec_folders.prune)
        # Whatever it raises: a folder that stays is tried again by the next agent.
        pruning.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._place.claim()
        self._server = await self._listen(listening)
        try:
            await self.serve()
        finally:
            self._admission.close()
            self._templates.close()
            await self._let_starts_end()
            if self._looking is not None:  # it might bind the name again
                await asyncio.wait({self._looking}, timeout=LOOK_DEADLINE)
            await self._disk.settle(LOOK_DEADLINE)  # the next agent has to know what this one does
            # In this order: as long as this agent listens no boot starts another one under the name.
            self._place.leave()
            self._server.close()

    async def serve(self) -> None:
        """Do what is due each second, until idle, or until told to leave; connections come by `accept`."""
        leaving = asyncio.ensure_future(self._leave.wait())
        try:
            while not self._leave.is_set():
                self._tick()
                await asyncio.wait({leaving}, timeout=TICK)
        finally:
            leaving.cancel()

    async def _let_starts_end(self) -> None:
        """Wait for the starts under way, for a moment: what they execute is to be on record, or ended, before we go."""
        until = monotonic() + LOOK_DEADLINE
        while self._starting and monotonic() < until:
            await asyncio.sleep(0.01)

    async def settle(self, seconds: float) -> None:
        """Wait until the disk has done what was asked of it, *seconds* at most."""
        await self._disk.settle(seconds)

    def leave(self) -> None:
        """Have `run` end; called on the agent's loop."""
        self._leave.set()

    def _restore(self) -> None:
        self._take_over(self._records.look(frozenset()))
        for directory in (self.directory / "k").glob("*"):
            if not (directory / RECORD).exists():
                with contextlib.suppress(OSError):  # somebody else removes it as well
                    if time.time() - directory.stat().st_mtime > FOLDER_KEPT:
                        shutil.rmtree(directory)

    async def _look(self) -> None:
        """Look for records of other agents, take over those whose agents are gone, and look at what is ours."""
        names, over = self._used(), self._records.over
        run = asyncio.get_running_loop().run_in_executor
        free = await run(None, self._records.look, names)
        self._take_over([folder for folder in free if folder.name not in self._used()])
        # It was removed, and is there again: the disk is back that was hidden while the kernel ended, or an older state of it.
        # By the second look whatever began meanwhile is known.
        for folder in self._records.over:
            if folder in over and folder.name not in self._used():
                await run(None, functools.partial(shutil.rmtree, folder, ignore_errors=True))
        try:
            await self._keep_place()
        except OSError as error:
            self._say(f"{self.directory} cannot be kept: {error}")

    def _used(self) -> frozenset[str]:
        """Return the names of the folders that attempts have; those of a kernel whose folder was removed are nobody's."""
        return frozenset(name for name, kernel in self._attempts.items() if not kernel.discarded)

    def _say(self, what: str) -> None:
        """Write to the agent's log what is wrong with its place, once: it is looked at each second."""
        if what not in self._said:
            self._said.add(what)
            print(what, file=sys.stderr, flush=True)

    async def _keep_place(self) -> None:
        """Make again what was removed of the agent's folder while it runs: caches are cleaned. Raises OSError."""
        run = asyncio.get_running_loop().run_in_executor
        kernels = {kernel.directory: kernel for kernel in self.kernels.values() if kernel.pid}
        found = await run(None, self._place.look, [])
        self._looks += 1
        # Kernels' records seldom, one by one: a home may be far away.
        if found.name == GONE or not found.is_whole or self._looks % _ALL_KERNELS == 0:
            await self._disk.settle(LOOK_DEADLINE)  # what was not written yet is not missing
            found = await run(None, self._place.look, list(kernels))
        self._is_superseded = found.name == TAKEN
        missing = [kernels[folder] for folder in found.missing if not kernels[folder].discarded]
        if found.is_whole and found.name != GONE and not missing:
            if self._is_superseded:
                self._say(f"another agent has the socket's name in {self.directory}: leaving as soon as may be")
            else:
                self._said.clear()
            return
        self._say(f"{self.directory} was removed, or some of it: making it again")
        await run(None, self._place.mend)
        for kernel in missing:
            if not kernel.discarded and (lost := await self._disk.done(LOOK_DEADLINE, kernel.make_again)):
                self._say(lost)
        if self._leave.is_set():
            return
        if found.name == GONE and (listening := await run(None, self._place.bind)) is not None:
            before = self._server
            self._server = await self._listen(listening)
            if before is not None:
                before.close()  # nobody can find it any more; connections stay

    def _look_soon(self) -> asyncio.Task[None]:
        """Begin to look, unless that is under way."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())
            # Whatever it raises: the next one follows.
            self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._looking

    def _take_over(self, folders: list[Path]) -> None:
        """Make the kernels in *folders*, whose agents are gone, ours; of two attempts of one kernel, only the one that counts."""
        for folder in folders:
            kernel = self.kernel_type.load(folder, self._notify, self._disk)
            if kernel is None:
                continue
            self._attempts[folder.name] = kernel
            kernel.holder = (kernel.owner, "")
            kernel.save()
            kernel.watch()
            other = self.kernels.get(kernel.id)
            if other is not None and _rank(other) > _rank(kernel):
                self._supersede(kernel)
                continue
            if other is not None:
                self._supersede(other)
            self.kernels[kernel.id] = kernel
            if kernel.state != EXITED:
                self._living[kernel.id] = None
            if (kernel.id, kernel.attempt) in self._condemned:
                self._condemned.discard((kernel.id, kernel.attempt))
                self._supersede(kernel)
                continue
            if not any(kernel.id in gateway.kernels for gateway in self.gateways):
                self._unclaimed[kernel.id] = Unclaimed(monotonic())
                self.kept_output.find(kernel)
            self._tell_take_over(kernel)
        self._condemned = {each for each in self._condemned if each[0] in self._records.held}

    def _supersede(self, kernel: Kernel) -> None:
        """End an attempt that is not wanted, and forget it."""

        async def end() -> None:
            await kernel.stop(grace=5.0)
            self._let_go(kernel)

        self._ending.add(task := asyncio.ensure_future(end()))
        task.add_done_callback(self._ending.discard)

    def _tell_take_over(self, kernel: Kernel) -> None:
        """Tell the gateways that asked about *kernel* before it was ours what is known of it; one that starts is told later."""
        for gateway in self.gateways:
            if kernel.id in gateway.kernels | gateway.missed:
                gateway.missed.discard(kernel.id)
                if kernel.state == RUNNING:
                    gateway.send(write_event(Ready(kernel.id, kernel.attempt, kernel.pid)))
                elif kernel.state == EXITED:
                    gateway.send(write_event(Exited(kernel.id, kernel.attempt, exit_code=kernel.exit_code)))
        self._tell_load()

    def _tick(self) -> None:
        """Whatever is due: unowned kernels, forgotten records, abandoned streams, our own idleness."""
        now = monotonic()
        for gateway in list(self.gateways):
            if now - self._last_tick > SILENCE / 2:
                gateway.heard = now  # this node stood still, so nobody can have been heard
            elif now - gateway.heard > SILENCE:
                self._dismiss(gateway)
        self._last_tick = now
        for kernel_id, unclaimed in list(self._unclaimed.items()):
            kernel = self.kernels.get(kernel_id)
            if kernel is None:
                del self._unclaimed[kernel_id]
                continue
            if kernel in self._orphans:
                continue
            if kernel.state == EXITED:
                if now - unclaimed.since > EXITED_KEPT:
                    self._drop(kernel)
            elif self._is_superseded:
                pass  # whether anyone answers for it is the other agent's to know
            elif unclaimed.is_orphan(kernel.orphan_timeout, now):
                self._end_orphan_soon(kernel)
        self._look_soon()
        self._log_caps.tick()
        self.streams.tick(self.kept_output.is_keeping)
        self.kept_output.tick()
        self._nurseries.tick()
        self._templates.tick()
        if now - self._swept > SWEEP and (self._sweeping is None or self._sweeping.done()):
            self._swept = now
            self._sweeping = asyncio.get_running_loop().run_in_executor(None, self._sweep)
            self._disk.retry()
        self._finishing = [kernel for kernel in self._finishing if not kernel.discarded]
        if self._is_superseded and not self._finishing and not (self.kernels and self._visitors):
            self._leave.set()  # the other agent takes over what runs; not before, since streams here would lose what they keep
        elif self.kernels or self._visitors or self._finishing:
            self._idle_since = now
        elif now - self._idle_since > self.idle:
            self._leave.set()

    def _sweep(self) -> None:
        """Remove kept logs that are too old, or too many; in a thread, since the disk may hang."""
        try:
            kept_logs.sweep(self.directory)
        except OSError as error:
            print(f"kept logs cannot be cleaned: {error}", file=sys.stderr, flush=True)

    def _end_orphan_soon(self, kernel: Kernel) -> None:
        self._orphans.add(kernel)
        task = asyncio.ensure_future(self._end_orphan(kernel))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_orphan(self, kernel: Kernel) -> None:
        """End a kernel that nobody answers for; nothing of it stays, since nobody will ask, unless somebody came meanwhile."""
        await kernel.stop(grace=5.0)
        self._orphans.discard(kernel)
        if kernel.id in self._unclaimed and self.kernels.get(kernel.id) is kernel:
            self._let_go(kernel)

    def _drop(self, kernel: Kernel) -> None:
        """Forget an ended kernel and all that is left of it; a newer attempt that has its id now stays what it is."""
        if self.kernels.get(kernel.id) is kernel:
            self._leases.remember(kernel)
            del self.kernels[kernel.id]
            self._living.pop(kernel.id, None)
            self._unclaimed.pop(kernel.id, None)
            for gateway in self.gateways:
                gateway.kernels.discard(kernel.id)
        self.kept_output.drop(kernel)
        kernel.discard()
        if not kernel.discarded and kernel not in self._finishing:
            self._finishing.append(kernel)
        self._swept = -SWEEP  # its log is one more that is kept
        self._tell_load()

    def _let_go(self, kernel: Kernel) -> None:
        """Forget an ended kernel that nobody wants anything more of, and close what gateways still have open to it.

        A kernel that merely ends, or is replaced by a restart, is only dropped: its streams end by themselves, after their
        last byte.
        """
        self.streams.close_of(kernel)
        self._drop(kernel)

    # -- connections ---------------------------------------------------------------------------------------------

    async def _listen(self, listening: socket.socket) -> asyncio.base_events.Server:
        accepted = functools.partial(Connection, self.accept)
        return await asyncio.get_running_loop().create_unix_server(accepted, sock=listening, backlog=BACKLOG)

    async def accept(self, reader: Reader, writer: LocalWriter) -> None:
        """Serve one connection until it ends; its hello says what for. Called for each one to the agent's socket."""
        self._visitors += 1
        try:
            hello = await asyncio.wait_for(read_message(reader), 10.0)
            if hello is None:
                return
            if hello.get("type") == "control":
                await self._serve_gateway(ControlHello.read(hello), reader, writer)
            elif hello.get("type") == "stream":
                await self.streams.serve(StreamHello.read(hello), reader, writer)
            elif hello.get("type") == "nursery":
                self._visitors -= 1  # it is there for us, and goes with us
                try:
                    await self._nurseries.serve(NurseryHello.read(hello), reader, writer)
                finally:
                    self._visitors += 1
            elif hello.get("type") == "folder":
                await self._spec_folders.receive(FolderHello.read(hello), reader, writer)
        except (OSError, ValueError, StreamBroken, asyncio.TimeoutError) as error:
            print(f"connection ended: {error!r}", file=sys.stderr, flush=True)
        finally:
            self._visitors -= 1
            with contextlib.suppress(OSError):
                writer.close()

    async def _serve_gateway(self, hello: ControlHello, reader: Reader, writer: LocalWriter) -> None:
        gateway = Gateway(hello, writer)
        for earlier in list(self.gateways):
            # Not by gateway alone: one that lists this machine by two names has two connections, and each would end the other.
            if (earlier.owner, earlier.incarnation, earlier.host) == (gateway.owner, gateway.incarnation, gateway.host):
                self._dismiss(earlier)  # half open: had its link not been lost, there would be no other one
        living = {gateway.incarnation, *(g.incarnation for g in self.gateways if g.owner == gateway.owner)}
        self.streams.close_earlier_lives(gateway.owner, living, self.kept_output.is_keeping)
        self.gateways.add(gateway)
        kernels = [KernelBrief(kernel.id, kernel.state) for kernel in self.kernels.values()]
        gateway.send(Welcome(PROTOCOL, self.digest, kernels, agent=self.identity, keeps_output=True).write())
        try:
            while gateway in self.gateways:  # what a dismissed one had still queued must not begin anything
                try:
                    request = await read_message(reader)
                except Malformed as error:  # of that message alone: the next one can be read
                    gateway.send({"id": None, "error": str(error), "kind": "malformed"})
                    continue
                if request is None:
                    return
                gateway.heard = monotonic()
                task = asyncio.create_task(self._answer(gateway, request))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        finally:
            # Not for silence: then it is dismissed already.
            gateway.is_gone = gateway in self.gateways and monotonic() - gateway.heard <= HEARD_LATELY
            self._dismiss(gateway)

    def _keeps_output(self, owner: str) -> bool:
        """Return True if the gateway *owner* wants output to be kept for its next process."""
        return any(gateway.keep_output for gateway in self.gateways if gateway.owner == owner)

    def _dismiss(self, gateway: Gateway) -> None:
        """A gateway is gone, or counts as gone: nobody answers for its kernels until somebody adopts them."""
        self.gateways.discard(gateway)
        self._admission.give_up(gateway)
        claimed = set().union(*(other.kernels for other in self.gateways))
        for kernel_id in gateway.kernels - claimed:
            self._unclaimed[kernel_id] = Unclaimed(monotonic(), gateway.gone_timeout if gateway.is_gone else 0.0)
            if (kernel := self.kernels.get(kernel_id)) is not None:
                self.kept_output.begin(kernel, gateway.process, gateway.keep_output)
        gateway.kernels.clear()
        gateway.abort()

    # -- events --------------------------------------------------------------------------------------------------

    def _notify(self, kernel: Kernel, event: KernelEvent) -> None:
        message = write_event(event)
        for gateway in self.gateways:
            if kernel.id in gateway.kernels:
                gateway.send(message)
        if isinstance(event, (Ready, Exited)):
            self._admission.note_over(kernel)
            self._tell_waiting(kernel, message)
        if isinstance(event, Ready):
            self._templates.answered(kernel.id, kernel.attempt)
        if isinstance(event, Exited):
            self._templates.forget(kernel.id, kernel.attempt)
            if self.kernels.get(kernel.id) is kernel:
                self._living.pop(kernel.id, None)
                if kernel.id in self._unclaimed:
                    self._unclaimed[kernel.id] = Unclaimed(monotonic())  # its record waits from now on
            self._tell_load()

    def _tell_waiting(self, kernel: Kernel, message: Message) -> None:
        """Tell the gateways that were not given *kernel* while another one started it that they may ask again; see `_give`."""
        for gateway in self.gateways:
            if kernel.id in gateway.missed and kernel.id not in gateway.kernels:
                gateway.missed.discard(kernel.id)
                gateway.send(message)

    def _tell_load(self) -> None:
        """Tell every gateway which kernels run here: what balancing counts."""
        encoded = encode(write_event(Load(self._running())))  # once: it is long where many kernels run
        for gateway in self.gateways:
            gateway.send_encoded(encoded)

    def _running(self) -> list[str]:
        """Return the kernels that count for this node: those that have not ended, and those whose starts have not begun."""
        return [*self._living, *self._not_begun_yet()]

    def _not_begun_yet(self) -> set[str]:
        return {kernel_id for kernel_id, _ in self._waiting} - self._living.keys()

    # -- requests ------------------------------------------------------------------------------------------------

    async def _answer(self, gateway: Gateway, request: Message) -> None:
        number = request.get("id")
        try:
            asked = read_request(request)
            result = await self._methods[type(asked)](gateway, asked)
            gateway.send({"id": number, "result": result})
        except Malformed as error:
            gateway.send({"id": number, "error": str(error), "kind": "malformed"})
        except FolderMissing as error:
            gateway.send({"id": number, "error": str(error), "kind": "folder"})
        except QueueFull as error:
            gateway.send({"id": number, "error": str(error), "kind": "full", "remedy": error.remedy})
        except StartError as error:
            kind = "host" if error.host_fault else "start"
            gateway.send({"id": number, "error": str(error), "kind": kind, "remedy": error.remedy})
        except UnknownKernel as error:
            gateway.send({"id": number, "error": str(error), "kind": "gone"})
        except TakenOver as error:
            who = {"owner": error.owner, "lease": error.lease}
            gateway.send({"id": number, "error": str(error), "kind": "taken", **who})
        except Busier as error:
            gateway.send({"id": number, "error": str(error), "kind": "busier"})
        except (LogUnreadable, OutputUnreadable) as error:
            gateway.send({"id": number, "error": str(error), "kind": "log"})
        except Exception as error:  # noqa: BLE001 - a defect of one request must reach its gateway and not end the agent
            gateway.send({"id": number, "error": repr(error), "kind": "internal"})

    def _kernel(self, kernel_id: str) -> Kernel:
        kernel = self.kernels.get(kernel_id)
        if kernel is None:
            raise UnknownKernel(f"no kernel {kernel_id!r} is there")
        return kernel

    async def _start(self, gateway: Gateway, asked: Start) -> Message:
        self._starting += 1
        turn = self._admission.ask(asked, gateway, self._weight(asked))
        try:
            return await self._start_now(gateway, asked, turn)
        except BaseException:  # cancellation included: who fails lets the next one begin
            turn.leave()
            raise
        finally:
            self._starting -= 1

    def _weight(self, asked: Start) -> float:
        return WARM if self._templates.may_fork(asked) else COLD

    async def _start_now(self, gateway: Gateway, asked: Start, turn: Turn) -> Message:
        kernel_id = asked.kernel
        self._leases.check(kernel_id, asked.lease, gateway.process)
        # In one step with the next line, from which on this start counts: of two gateways that believe the same, one is right.
        self._keep_even(gateway, asked)
        began = monotonic()
        with self._not_begun(kernel_id, asked.attempt):
            if asked.spec_folder:
                # Before it gets in line: its gateway would bring what is missing only at its turn, and get in line again.
                await self._on_disk(began, functools.partial(self._spec_folders.find, asked.spec_folder))
                self._check_asked_for(gateway, asked)
            await turn.come()
            if turn.arrived is not None:  # it has waited, and its gateway knows
                began = monotonic()
            await self._let_end(kernel_id)
            spec_folder, directory = await self._find_room(asked, began)
            self._check_asked_for(gateway, asked)
            self._leases.check(kernel_id, asked.lease, gateway.process)  # again: all of that took time
            previous = self.kernels.get(kernel_id)
            if previous is not None:
                if previous.state != EXITED:
                    if self._is_anothers(gateway, kernel_id):
                        raise TakenOver(kernel_id, previous.holder[0], previous.lease)
                    text = f"kernel {kernel_id} already runs on this node (pid {previous.pid})"
                    raise StartError(text, host_fault=True)  # one that could not be ended here may start elsewhere
                self._drop(previous)
            while directory.name in self._attempts:  # another start was quicker
                directory = self._other_directory(kernel_id)
            kernel = self.kernel_type(kernel_id, directory, self._notify, self._disk)
            kernel.lease = lease = self._leases.next(kernel_id, asked.lease)
            kernel.holder = gateway.process
            self._attempts[directory.name] = kernel
            self.kernels[kernel_id] = kernel
            self._living[kernel_id] = None
            gateway.kernels.add(kernel_id)
        self._admission.follow(turn, kernel)
        try:
            await kernel.start(
                asked,
                self._ports_taken,
                spec_folder=spec_folder,
                login=self.login,
                umask=self.umask,
                open_files=self.open_files,
                waited=monotonic() - began,
                spawner=self._templates.spawner(
                    asked,
                    self._nurseries.spawn,
                    is_own=self._nurseries.is_own,
                    is_cold=functools.partial(self._admission.note_cold, turn, self._weight),
                ),
            )
        except BaseException as error:  # cancellation included: a kernel that has no process must not be counted
            self._tell_waiting(kernel, write_event(Exited(kernel.id, asked.attempt, exit_code=None)))
            self._drop(kernel)
            self._templates.forget(kernel_id, asked.attempt)
            if isinstance(error, StartError):  # who hears of the failure finds nothing left
                await self._disk.settle(SETTLE_DEADLINE)
            raise
        self._tell_load()
        if gateway not in self.gateways:  # it left meanwhile
            self._unclaimed[kernel_id] = Unclaimed(monotonic(), gateway.gone_timeout if gateway.is_gone else 0.0)
        await self._disk.settle(SETTLE_DEADLINE)  # an agent that is killed now leaves the next one a record
        if kernel.holder != gateway.process:  # nobody must be given a number that is another one's
            raise TakenOver(kernel_id, kernel.holder[0], kernel.lease)
        warm = ("forked" if kernel.is_forked else "cold") if asked.warm else ""
        return Started(**vars(kernel.describe()), warning=kernel.warning[:WARNING], lease=lease, warm=warm).write()

    def _check_asked_for(self, gateway: Gateway, asked: Start) -> None:
        """Raise StartError if nobody wants the start any more, or the agent is leaving; for after each wait."""
        if (asked.kernel, asked.attempt) in self._withdrawn:
            raise StartError("the start was stopped before it began")
        if gateway not in self.gateways:
            raise StartError("the gateway that asked is gone", host_fault=True)
        if self._leave.is_set():
            raise StartError("the agent is leaving", host_fault=True)

    def _keep_even(self, gateway: Gateway, asked: Start) -> None:
        """Raise Busier if the node has more kernels than it was picked for having; the gateway is told which."""
        if asked.believed < 0:
            return
        waiting = self._not_begun_yet() if self._waiting else set()
        count = len(self._living) + len(waiting) - (asked.kernel in self._living or asked.kernel in waiting)
        if count > asked.believed:
            gateway.send(write_event(Load(self._running())))
            raise Busier(f"{count} kernels are there, and not {asked.believed}")

    @contextlib.contextmanager
    def _not_begun(self, kernel_id: str, attempt: str) -> Iterator[None]:
        """Note a start that nothing is known of yet, so that a stop of it counts; see `_stop`."""
        this = (kernel_id, attempt)
        self._waiting[this] = self._waiting.get(this, 0) + 1
        try:
            yield
        finally:
            self._waiting[this] -= 1
            if not self._waiting[this]:
                del self._waiting[this]
                self._withdrawn.discard(this)
            kernel = self.kernels.get(kernel_id)
            if kernel is None or kernel.state == EXITED:
                self._tell_load()  # gateways may have heard that it counts here

    async def _let_end(self, kernel_id: str) -> None:
        """Wait for the end of an attempt of the kernel that is being ended, for as long as a start may take for that.

        Refusing at once would blame the host for what is over in a moment.
        """
        deadline = monotonic() + ENDING_AWAITED
        while (previous := self.kernels.get(kernel_id)) is not None and previous.is_being_ended:
            remaining = deadline - monotonic()
            if remaining <= 0:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(previous.exited.wait(), remaining)

    async def _find_room(self, asked: Start, began: float) -> tuple[Optional[Path], Path]:
        """Return the kernelspec's folder, if one is asked for, and one for the kernel's own files; raises StartError."""
        kernel_id, digest, short = asked.kernel, asked.spec_folder, _short(asked.kernel)
        # Those with an ending of their own count only where the first name is taken: most starts look at no other.
        names = {name for name in self._attempts if name.startswith(short)} if short in self._attempts else set()

        def find() -> tuple[Optional[Path], Path]:
            return self._spec_folders.find(digest), self._free_directory(kernel_id, names)

        return await self._on_disk(began, find)

    async def _on_disk(self, began: float, find: Callable[[], T]) -> T:
        """Return what *find* does on the disk, for a start that *began* then; raises StartError."""
        remaining = max(START_DEADLINE - (monotonic() - began), SETTLE_DEADLINE)
        try:
            found: T = await self._disk.done(remaining, find)
        except asyncio.TimeoutError:
            text = f"{self.directory} does not answer: the disk that the kernel's files would be on hangs"
            raise StartError(text, host_fault=True) from None
        return found

    def _ports_taken(self) -> set[int]:
        """Return the ports that were given to kernels which have not ended, whether they have bound them yet or not."""
        taken: set[int] = set()
        for kernel in self.kernels.values():
            if kernel.state != EXITED and kernel.connection.get("transport") == "tcp":
                taken.update(int(kernel.connection.get(f"{channel}_port", 0)) for channel in CHANNELS)
        return taken

    def _free_directory(self, kernel_id: str, taken: AbstractSet[str]) -> Path:
        """Return a folder for an attempt that nothing has; its record says whose it is. Called by the agent's disk.

        None that an earlier attempt was given, even if nothing has that name now: as long as it exists it may still write, or
        remove, what is there.
        """
        directory = self.directory / "k" / _short(kernel_id)
        while directory.name in taken or directory.exists():
            directory = self._other_directory(kernel_id)
        return directory

    def _other_directory(self, kernel_id: str) -> Path:
        return self.directory / "k" / f"{_short(kernel_id)}-{os.urandom(2).hex()}"

    async def _set_endpoints(self, gateway: Gateway, asked: SetEndpoints) -> None:
        self._check_owner(gateway, asked.kernel, asked.lease)
        self._kernel(asked.kernel).set_connection(asked.connection, asked.pid)

    def _check_owner(self, gateway: Gateway, kernel_id: str, held: int) -> None:
        """Raise TakenOver unless the gateway may ask for what only a kernel's owner may; one that says no number has to be it."""
        self._leases.check(kernel_id, held, gateway.process)
        if not held and self._is_anothers(gateway, kernel_id):
            lease, owner = self._leases.latest(kernel_id)
            raise TakenOver(kernel_id, owner, lease)

    def _is_anothers(self, gateway: Gateway, kernel_id: str) -> bool:
        """Return True if another gateway, which is connected, answers for a kernel. An earlier process of *gateway* is none."""
        if kernel_id in gateway.kernels:
            return False
        return any(kernel_id in other.kernels for other in self.gateways if other.owner != gateway.owner)

    async def _signal(self, gateway: Gateway, asked: Signal) -> bool:
        self._check_owner(gateway, asked.kernel, asked.lease)
        return self._kernel(asked.kernel).send_signal(asked.signum)

    async def _stop(self, gateway: Gateway, asked: Stop) -> Message:
        if not asked.force:
            # A gateway that holds no number adopted the kernel and never heard that it has it: it ends nothing of another one's.
            self._check_owner(gateway, asked.kernel, asked.lease)
        held = self._records.held.get(asked.kernel)
        if held is not None and asked.attempt == held.attempt and asked.forget:
            self._condemned.add((asked.kernel, asked.attempt))
        is_queued = self._admission.withdraw(
            asked.kernel, asked.attempt, "the start was stopped while it waited for its turn"
        )
        if (asked.kernel, asked.attempt) in self._waiting:  # it has not begun, and must not
            self._withdrawn.add((asked.kernel, asked.attempt))
            return Stopped(True).write()
        kernel = self.kernels.get(asked.kernel)
        if kernel is None or (asked.attempt and kernel.attempt != asked.attempt):
            return Stopped(is_queued).write()
        await kernel.stop(asked.grace)
        if asked.forget:
            self._let_go(kernel)
            await self._disk.settle(SETTLE_DEADLINE)
        return Stopped(True, kernel.exit_code).write()

    async def _adopt(self, gateway: Gateway, asked: Adopt) -> Message:
        """Make the gateway the one that answers for these kernels; what is missing is gone."""
        found = {}
        if not self.kernels.keys() >= set(asked.kernels):  # an agent that has just ended may have left them
            await asyncio.wait({self._look_soon()}, timeout=LOOK_DEADLINE)
        known = [kernel for kernel in map(self.kernels.get, asked.kernels) if kernel is not None]
        # Before anything is waited for: an end is told from now on, and what other gateways ask for is refused.
        # Who was asked for a kernel long ago, and could not say so here until now, takes it from nobody who uses it by now.
        late = {each for each in asked.late if self._is_anothers(gateway, each)}
        taken_over = [
            self._give(gateway, kernel, asked.leases.get(kernel.id, 0)) for kernel in known if kernel.id not in late
        ]
        ended = [kernel for kernel in known if kernel.state == EXITED]
        # All at once: one disk that hangs has to cost less than the gateway waits for this answer.
        tails = dict(
            zip((kernel.id for kernel in ended), await asyncio.gather(*(kernel.read_tail() for kernel in ended)))
        )
        if any(taken_over):
            await self._disk.settle(SETTLE_DEADLINE)  # the next agent has to know who has them
        for kernel_id in asked.kernels:
            kernel = self.kernels.get(kernel_id)
            if kernel is not None:
                if kernel_id in late and self._is_anothers(gateway, kernel_id):
                    found[kernel_id] = _taken(kernel_id, kernel.holder[0], kernel.lease, kernel).write()
                    continue
                found[kernel_id] = self._found(
                    gateway, kernel, asked.leases.get(kernel_id, 0), tails.get(kernel_id, "")
                )
                continue
            elsewhere = self._records.held.get(kernel_id)
            held = asked.leases.get(kernel_id, 0)
            lease, owner = self._leases.taker(kernel_id, held, gateway.process, elsewhere)
            if owner:
                found[kernel_id] = _taken(kernel_id, owner, lease).write()
            elif elsewhere is not None:
                gateway.kernels.add(kernel_id)
                found[kernel_id] = elsewhere.write()
            else:
                gateway.missed.add(kernel_id)
        return found

    def _give(self, gateway: Gateway, kernel: Kernel, held: int) -> bool:
        """Have *gateway*, which holds the number *held* of *kernel*, answer for it, unless another one has taken it over since.

        Returns True if it has a new number for that. One that holds none takes it over from whichever gateway has it; but a
        kernel that has ended stays with the one that has seen to it so far, and may be about to start it again. One that is
        being started is with who starts it until it is ready: nobody else could read what its launcher answers.
        """
        if gateway not in self.gateways or is_lost(kernel, held, gateway.process):
            return False
        others = [other for other in self.gateways if kernel.id in other.kernels and other.process != gateway.process]
        # An earlier process of the same gateway starts nothing any more, though its connection may still count as there.
        if not held and kernel.state != RUNNING and self._is_anothers(gateway, kernel.id):
            return False
        # A number higher than ours was given by an agent before us that was killed before it could write it down.
        # Then the one that we took for the owner may hold that very number, so it is left behind as well.
        has_it = kernel.holder == gateway.process or (held > 0 and kernel.holder[0] == gateway.owner)
        lease, holder = max(held, kernel.lease) + (0 if has_it else 1), kernel.holder
        is_new = (lease, gateway.owner) != (kernel.lease, kernel.owner)
        kernel.lease, kernel.owner, kernel.holder = lease, gateway.owner, gateway.process
        for other in others:
            other.kernels.discard(kernel.id)
            other.send(write_event(Taken(kernel.id, kernel.attempt, gateway.owner, lease)))
        if is_new:
            kernel.save()
        if is_new and holder[1] and holder != gateway.process:
            self.kept_output.hand_over(kernel, holder, gateway.keep_output)
        self.kept_output.adopt(kernel, gateway.process, gateway.keep_output)
        self.streams.sever(kernel, gateway.process, self.kept_output.is_keeping)
        gateway.kernels.add(kernel.id)
        self._unclaimed.pop(kernel.id, None)
        return is_new

    def _found(self, gateway: Gateway, kernel: Kernel, held: int, tail: str) -> Message:
        """Return what the gateway, which held the number *held*, is told of a kernel that it asked about."""
        has_it = kernel.id in gateway.kernels
        if not has_it and not held and kernel.state not in (RUNNING, EXITED):
            gateway.missed.add(kernel.id)
            description = vars(kernel.describe())
            description["state"] = ELSEWHERE
            return Found(**description).write()
        if not has_it and (kernel.state != EXITED or is_lost(kernel, held, gateway.process)):
            return _taken(kernel.id, kernel.holder[0], kernel.lease, kernel).write()
        # Of two gateways that see to one dead kernel, only the one that has it may start it again by its number.
        lease = kernel.lease if has_it else 0
        return Found(**vars(kernel.describe()), log=tail, response=kernel.response, lease=lease).write()

    async def _output(self, gateway: Gateway, asked: TakeOutput) -> Message:
        kernel = self._kernel(asked.kernel)
        if asked.kernel not in gateway.kernels:
            raise UnknownKernel(f"kernel {asked.kernel!r} is another gateway's")
        try:
            return (await self.kept_output.take(kernel, asked.session, asked.position, asked.after)).write()
        except asyncio.TimeoutError:
            raise OutputUnreadable(f"the disk with the output of kernel {asked.kernel} does not answer") from None
        except OSError as error:
            raise OutputUnreadable(f"the output of kernel {asked.kernel} cannot be read: {error}") from error

    async def _forget_output(self, gateway: Gateway, asked: ForgetOutput) -> None:
        if asked.kernel in gateway.kernels:
            self.kept_output.forget(self._kernel(asked.kernel))

    async def _find_kernelspecs(self, gateway: Gateway, asked: FindKernelspecs) -> Message:
        environment = dict(os.environ) if self.login is None else self.login
        return (await self._kernelspecs.find(asked.patterns, environment)).write()

    async def _find_templates(self, gateway: Gateway, asked: FindTemplates) -> Message:
        seen = await asyncio.get_running_loop().run_in_executor(None, self._templates.seen)
        return WarmStarts(seen, self._templates.forked, dict(self._templates.cold)).write()

    async def _list(self, gateway: Gateway, asked: ListKernels) -> list[Message]:
        claimed = {kernel_id for other in self.gateways for kernel_id in other.kernels}
        awaited = self.streams.kernels()
        queued = [
            Listed(**vars(_not_begun_yet(turn)), claimed=True, before=before).write()
            for turn, before in self._admission.waiting()
        ]
        return queued + [
            Listed(
                **vars(kernel.describe()),
                claimed=kernel.id in claimed,
                awaited=kernel.id in awaited,
                lease=kernel.lease,
            ).write()
            for kernel in self.kernels.values()
        ]

    async def _log(self, gateway: Gateway, asked: ReadLog) -> str:
        return await self._kernel(asked.kernel).read_tail(asked.size)

    def _here(self) -> list[Kernel]:
        """Return the kernels whose logs are where the kernels write them."""
        return [*self.kernels.values(), *(kernel for kernel in self._finishing if not kernel.discarded)]

    async def _kept(self, kernel_id: str) -> list[kept_logs.KeptLog]:
        """Return the logs that are kept of kernels whose ids begin with *kernel_id*; raises LogUnreadable."""
        try:
            found: list[kept_logs.KeptLog] = await aside(
                "kept", LOG_DEADLINE, kept_logs.find, self.directory, kernel_id
            )
            return found
        except asyncio.TimeoutError:
            raise LogUnreadable(f"{kept_logs.folder_of(self.directory)} does not answer") from None
        except OSError as error:
            raise LogUnreadable(f"{kept_logs.folder_of(self.directory)} cannot be read: {error}") from error

    async def _find_logs(self, gateway: Gateway, asked: FindLogs) -> list[Message]:
        kept = [log.entry for log in await self._kept(asked.kernel)]
        here = [kernel.log_entry() for kernel in self._here() if kernel.id.startswith(asked.kernel)]
        known = {(entry.kernel, entry.attempt) for entry in kept}
        here = [entry for entry in here if (entry.kernel, entry.attempt) not in known]  # just being moved to those
        newest = sorted([*here, *kept], key=lambda entry: -entry.start_time)[: FindLogs.MOST]
        return [entry.write() for entry in newest]

    async def _log_part(self, gateway: Gateway, asked: ReadLogPart) -> Message:
        def is_asked(entry: LogEntry) -> bool:
            return (entry.kernel, entry.attempt) == (asked.kernel, asked.attempt)

        missing = None
        try:
            for kernel in self._here():
                if is_asked(kernel.log_entry()):
                    try:
                        return (await kernel.read_part(asked.position, asked.size)).write()
                    except FileNotFoundError as error:  # it may just have been moved to those that are kept
                        missing = error
            kept = await self._kept(asked.kernel)
            for log in kept:
                if is_asked(log.entry):
                    log.stop = self._next_start(log, kept)
                    key = ("log", log.path.parent)
                    found: LogPart = await aside(key, LOG_DEADLINE, log.read_part, asked.position, asked.size)
                    return found.write()
            if missing is not None:
                raise missing
        except asyncio.TimeoutError:
            raise LogUnreadable(f"the disk with the log of kernel {asked.kernel} does not answer") from None
        except OSError as error:
            raise LogUnreadable(f"the log of kernel {asked.kernel} cannot be read: {error}") from error
        raise UnknownKernel(f"no log of kernel {asked.kernel!r} is there")

    def _next_start(self, log: kept_logs.KeptLog, kept: list[kept_logs.KeptLog]) -> Optional[int]:
        """Return where the output of the next start begins in the operator's file that *log* is a part of, None without one."""
        starts = [(each.path, each.entry.start_time, each.start) for each in kept if not each.end]
        starts += [(kernel.log, kernel.start_time, kernel.log_start) for kernel in self._here() if kernel.keep_log]
        later = [(time_, at) for path, time_, at in starts if path == log.path and time_ > log.entry.start_time]
        return min(later)[1] if later and not log.end else None

    async def _take_login(self, gateway: Gateway, asked: Login) -> bool:
        """Have kernels that start from now on find what a login finds today: variables, ticket caches, umask."""
        if any(not name or "=" in name or "\0" in name + value for name, value in asked.env.items()):
            raise Malformed("what no environment can have")
        self.login, self.umask, self.open_files = asked.env, asked.umask, asked.open_files
        return self._nurseries.has(asked.standing)

    async def _ping(self, gateway: Gateway, asked: Ping) -> Message:
        return Pong(os.getpid(), self.digest, running=len(self.kernels)).write()

    async def _leave_now(self, gateway: Gateway, asked: Leave) -> bool:
        """Leave if no kernel is here and nobody else is served; for clean-up and upgrades."""
        await self._disk.settle(LOOK_DEADLINE)  # what has just ended may still have files
        if self.kernels or self.gateways - {gateway} or any(not kernel.discarded for kernel in self._finishing):
            return False
        asyncio.get_running_loop().call_soon(self._leave.set)
        return True


def _not_begun_yet(turn: Turn) -> Description:
    """Return what is known of a kernel whose start waits for its *turn*."""
    asked, since = turn.asked, time.time() - (monotonic() - turn.since)
    argv, owner = shown_argv(asked.argv), asked.owner
    return Description(asked.kernel, asked.attempt, owner, asked.host_set, argv, QUEUED, None, 0, since, "")


def _taken(kernel_id: str, owner: str, lease: int, kernel: Optional[Kernel] = None) -> Found:
    """Return what a gateway is told of a kernel that another one, *owner*, has taken over; *kernel* is None if it is gone."""
    attempt = kernel.attempt if kernel is not None else ""
    return Found(kernel_id, attempt, owner, "", [], TAKEN_OVER, None, 0, 0.0, "", lease=lease)


def _short(kernel_id: str) -> str:
    """Return the name of a kernel's first folder: short, since a UNIX socket's path may have 107 bytes."""
    return "".join(character for character in kernel_id if character.isalnum())[:12]


def _rank(kernel: Kernel) -> tuple[bool, int, float]:
    """Return by what of two attempts of one kernel the one that counts is told: one that runs, else the later one."""
    runs = kernel.state != EXITED
    # Of those that run, by the system's own count: clocks are set.
    return runs, processes.ticks(kernel.started) if runs else 0, kernel.start_time


def socket_path(directory: Path) -> Path:
    """Return where the agent in *directory* listens: releases that speak the same protocol share one agent."""
    return directory / f"agent-{PROTOCOL}.sock"


def main(directory: str, digest: str, umask: str = "077", standing: str = "") -> None:
    """Run an agent in *directory*; called by the archive's `__main__`, started by `boot`."""
    processes.reset_signals()
    os.umask(0o077)
    os.chdir("/")
    home = Path(directory)
    (home / "k").mkdir(mode=0o700, exist_ok=True)
    listening = listen(socket_path(home))
    open_files = processes.raise_file_limit()
    agent = Agent(home, digest, umask=int(umask, 8), open_files=open_files, standing=standing)

    async def serve() -> None:
        memory.return_what_is_freed()  # here, where the boot that waits for the socket has seen it
        # asyncio.Event must be made where its loop runs on Python 3.9.
        agent._leave = asyncio.Event()
        code = 1
        try:
            try:
                await agent.run(listening)
                code = 0
            except Exception:  # noqa: BLE001 - whatever ends an agent is to be found in its log
                traceback.print_exc()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=1.0)
            await agent.settle(LOOK_DEADLINE)  # what they have left to be written or removed
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # Not by returning: asyncio, and Python itself, would wait for a thread, and one may hang on a disk for good.
            os._exit(code)

    asyncio.run(serve())
