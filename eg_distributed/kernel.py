"""The handle of one kernel, wherever it runs: state, signals, end, endpoints, log."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .abandoned import Abandoned
from .channels import Endpoints
from .errors import (
    AgentUnavailable,
    DistributedError,
    HostError,
    HostUnresponsive,
    KernelError,
    KernelGone,
    KernelStartFailed,
    KernelStartTimeout,
    KernelTaken,
)
from .hosts import HostSet, canonical_name
from .link.deadlines import within
from .node import TAKEN_REMEDY, FolderMissing, HostBusier, News, Node
from .protocol import (
    CHANNELS,
    ELSEWHERE,
    FOLDERS_PROTOCOL,
    TAKEN_OVER,
    AgentIdentity,
    Answered,
    Exited,
    Found,
    KernelEvent,
    Missing,
    Ping,
    Queued,
    ReadLog,
    Ready,
    Replied,
    Request,
    SetEndpoints,
    Signal,
    Stalled,
    Start,
    Started,
    Stop,
    Taken,
)
from .queueing import Place
from .request import StartRequest
from .settings import Distributed
from .spec_folder import SpecFolders, named
from .transports import Transports
from .wire import Malformed, Message, Reader, Writer, integer, one_line, scalar, table, text

log = logging.getLogger(__name__)
R = TypeVar("R")

_LAUNCHER_GRACE = 0.3  # seconds between the request to shut down and SIGTERM for kernels behind a launcher
_SILENT_PATIENCE = 2.0  # seconds for a host that was not heard lately, and is connected, to show that it is there
_STOP_GRACE = 5.0  # seconds between SIGTERM and SIGKILL when the cluster ends a kernel
_LOSS_SILENCE = 5.0  # seconds within which streams that can't be resumed are one loss
_STALL_SILENCE = 60.0  # seconds between two warnings of output that waits too long
PROVING = 1.0
"""Seconds that a kernel which may not take UNIX sockets has to run on them before its first start counts."""
_SHORT_LIFE = 3.0  # seconds: one that ends within them may have ended for its transport
_LAST_WORDS = 2000  # characters of a kernel's output that are told with its death
_SIGNAL_HINT = " Signal 9 is also how a host that is out of memory ends a process."
_CUTS_IN_QUEUE = 5  # cuts of the connection after each of which a start gets in line again
_PROBE = 2.0  # seconds between two looks at whether the node still answers while a kernel starts there


class State(enum.Enum):
    """What is known of a kernel. UNKNOWN is not DEAD: a network that is down ends no kernel.

    Whether a kernel is being started is the cluster's to know; until it has been ready, it is UNKNOWN.
    """

    ALIVE = "alive"
    UNKNOWN = "unknown"
    DEAD = "dead"


class _Away(NamedTuple):
    """What a kernel was that was given up with its host."""

    node: Node
    attempt: str
    pid: int
    key: str
    agent: AgentIdentity | None
    lease: int


def read_launcher_answer(answer: Message) -> tuple[Message, int]:
    """Return the connection information in a launcher's *answer*, and the process to be interrupted (0: unknown).

    Raises Malformed for what the agent would refuse: that would count against the host, and not against the launcher.
    """
    info = table(scalar, 100)(answer)
    checks = {"key": text(4096), "signature_scheme": text(256), "transport": text(256), "ip": text(4096)}
    for name, check in checks.items():
        if name in info:
            info[name] = check(info[name])
    for name in ("comm_port", *(f"{channel}_port" for channel in CHANNELS)):
        if name != "comm_port" or info.get(name):
            info[name] = integer(0, 65535)(_whole(info.get(name)))
    return info, integer(0, 1 << 31)(_whole(info.pop("pid", 0) or 0))


def _whole(value: object) -> object:
    """Return *value*, as a number where it is one in digits: launchers in R write all of them so."""
    is_digits = isinstance(value, str) and len(value) <= 10 and value.isascii() and value.isdigit()
    return int(str(value)) if is_digits else value


class RemoteKernel:
    """One kernel on its node. Made by the Cluster; methods that are no coroutines may be called from any thread.

    *on_exit(self)* is called on the cluster's loop when the kernel is known to be dead.
    """

    def __init__(
        self,
        kernel_id: str,
        settings: Distributed,
        prefix: Path,
        identity: tuple[str, str],
        abandoned: Abandoned,
        spec_folders: SpecFolders,
        transports: Transports,
        make_endpoints: type[Endpoints] = Endpoints,
    ) -> None:
        self.id = kernel_id
        self._node: Node | None = None
        self.agent: AgentIdentity | None = None  # who has the kernel; None: an agent that does not say who it is
        self.attempt = ""
        self.lease = 0  # the number that is held of it; see `Adopt` in protocol.py
        self.taken_by = ""  # the gateway that has adopted it since
        self.pid = 0
        self.key = ""
        self.signature_scheme = "hmac-sha256"
        self.exit_code: int | None = None
        self.exit_log = ""
        self.death = ""  # what is said of an end that was not asked for
        self.died_at = 0.0  # in the loop's time
        self.end_expected = False  # asked to end, so that its end is no news
        self.lost = False  # dead only because its host has been out of reach for too long
        self.hosts: HostSet = ()  # on which it may run; none where they are not known, and with a pin
        self._away: _Away | None = None  # what a lost kernel was, while nothing has replaced it yet
        self.on_exit: Callable[[RemoteKernel], None] | None = None
        self.on_taken: Callable[[RemoteKernel], None] | None = None  # called when all of it here is gone; as `on_exit`
        self.on_verified: Callable[[], None] | None = None  # an adopted one is ours for sure; on the cluster's loop
        self.let_go: Callable[[RemoteKernel], None] | None = None  # the cluster's part of that
        self.on_loss: Callable[[str], None] | None = None  # told of output that is lost; on the cluster's loop
        self.on_stalled: Callable[[], None] | None = None  # it may have dropped output that was not taken; the same
        self.on_replied: Callable[[], None] | None = None  # clients of before have replies to be taken; the same
        self._loss_told = -_LOSS_SILENCE  # when, in the loop's time
        self._settings = settings
        self._identity = identity
        self._abandoned = abandoned
        self._spec_folders = spec_folders
        self._transports = transports
        self._ready = False
        # An attempt is under way on a node: who this handle is, is being decided. Not the same as `Cluster._starts`, which knows
        # a whole start, with the picking of a host and the moments between two hosts. In those a kernel that was away may come
        # back with its host: it is heard, streams open to it, and its end is told, as of any kernel that runs.
        self._starting = False
        self.place = Place(kernel_id)
        self._unproven: tuple[str, ...] = ()  # the kernelspec of one that is on UNIX sockets, and may not take them
        self._started_at = 0.0  # in the loop's time
        self._exited = False
        self._changed = asyncio.Event()
        self._elsewhere = False  # another agent than the kernel's answers on its host, so that nothing is known of it
        self._unverified = False  # adopted, and the node has not spoken yet
        self._asked_at = 0.0  # in the loop's time: since when its host is asked for it, if it is adopted
        self._stall_told = -_STALL_SILENCE  # when, in the loop's time
        self._response: tuple[Message, int] | None = None
        self._decrypt: Callable[[str], Message] | None = None
        self.endpoints = make_endpoints(
            prefix,
            kernel_id,
            identity,
            self._usable,
            self._open_link,
            self._note_stream,
            settings.replay_limit,
            settings.endpoints,
            lambda: self.lease,
        )
        self.endpoints.on_broken = self._tell_loss

    @property
    def node(self) -> Node | None:
        """The node on which the kernel is; None while it is on none."""
        return self._node

    @node.setter
    def node(self, node: Node | None) -> None:
        if self._node is not None:
            self._node.users.pop(self, None)
        self._node = node
        self.endpoints.counters = node.counters if node is not None else None
        if node is not None:
            node.users[self] = None

    @property
    def elsewhere(self) -> HostSet:
        """The hosts to which a restart could go; none where they are not known."""
        here = canonical_name(self._node.name) if self._node is not None else ""
        return tuple(name for name in self.hosts if canonical_name(name) != here)

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What is known now; costs nothing, so it may be polled."""
        if self._exited:
            return State.DEAD
        node = self.node  # once: the cluster's thread may change it between two looks of another
        is_seen = self._ready and node is not None and node.connected.is_set()
        return State.ALIVE if is_seen and not self._elsewhere else State.UNKNOWN

    @property
    def out_of_reach_since(self) -> float | None:
        """When its host was last heard, in seconds since the epoch; None while it answers, and for a kernel that does not run.

        Costs nothing, so it may be polled.
        """
        node = self.node  # once: other threads ask
        if self._exited or self._starting or not self._ready or node is None:
            return None
        return node.silent_since

    @property
    def connection_info(self) -> dict[str, Any]:
        """The connection information for clients at the gateway."""
        return {**self.endpoints.connection_info, "key": self.key, "signature_scheme": self.signature_scheme}

    def hear(self, news: News) -> None:
        """Take what the node says of this kernel; events of earlier attempts are ignored."""
        if isinstance(news, Missing):
            if self._ready:  # a start that is under way learns it by its own request
                self._take_absence()
            self._changed.set()
            return
        if isinstance(news, Taken) or (isinstance(news, Found) and news.state == TAKEN_OVER):
            # An event about the attempt before: its replacement, on another host perhaps, is nobody else's.
            if isinstance(news, Found) or self._unverified or news.attempt == self.attempt:
                self.be_taken(one_line(news.owner), news.lease)
            return
        if self._unverified and isinstance(news, Found):
            # What was kept on disk may be older: a gateway may have been killed in the middle of a restart.
            self._unverified, self.attempt = False, news.attempt
        if news.attempt != self.attempt:
            if isinstance(news, Found) and news.state != "exited" and self._ready and not self._starting and self.node:
                # One that was replaced while another agent answered in place of its own.
                self._abandoned.end_soon(self.node, self.id, news.attempt, news.lease)
            return
        if isinstance(news, Found):
            if self._away is not None and self._away.attempt == news.attempt and news.state != "exited":
                self._take_back(self._away.node)
            self._take_description(news)
        elif self._elsewhere and self.node is not None:
            self.node.keep_connected(fresh=self.id)  # the agent has it now, or again: it is asked for all that it knows
        else:
            self._take_event(news)
        self._changed.set()

    @property
    def is_late(self) -> bool:
        """Whether the kernel was adopted long ago, and its host has not been heard since: another gateway may use it by now."""
        if not self._unverified or not self._asked_at:
            return False
        patience = self._settings.request_timeout + self._settings.connect_seconds()
        return asyncio.get_running_loop().time() - self._asked_at > patience

    def note_asked(self) -> None:
        """Note that the kernel is being asked for, having been adopted; called by the cluster."""
        self._asked_at = asyncio.get_running_loop().time()

    @property
    def is_sure(self) -> bool:
        """Whether the kernel is known to be ours, and not another gateway's."""
        return not (self.taken_by or self._unverified)

    def be_taken(self, owner: str, lease: int) -> None:
        """Leave the kernel to the gateway *owner*, which has adopted it with the number *lease*; it has not ended."""
        if self.taken_by or lease <= self.lease:
            return
        self.taken_by = owner or "another gateway"
        self._away = None
        self._changed.set()
        host = self.node.name if self.node is not None else "its host"
        log.warning("kernel %s on %s: taken over by gateway %s, to which it is left", self.id, host, self.taken_by)
        if self.let_go is not None:
            self.let_go(self)

    def raise_if_taken(self) -> None:
        """Raise KernelTaken if another gateway has the kernel."""
        if self.taken_by:
            host = self.node.name if self.node is not None else None
            text = f"kernel {self.id} was taken over by gateway {self.taken_by}"
            raise KernelTaken(text, host=host, remedy=TAKEN_REMEDY, owner=self.taken_by)

    async def _ask(self, request: Request[R], timeout: float | None = None) -> R:
        """Ask the node for something that its owner alone may ask for. Raises KernelTaken, and as `Node.request`."""
        assert self.node is not None
        if self._unverified:
            await self._heard_of()
        self.raise_if_taken()
        try:
            return await self.node.request(request, timeout)
        except KernelTaken as error:
            self.be_taken(error.owner, error.lease)
            raise

    async def _heard_of(self) -> None:
        """Wait until an adopted kernel is ours: what is asked before that says no number, and another gateway may have it still.

        Raises HostUnresponsive.
        """
        assert self.node is not None
        deadline = asyncio.get_running_loop().time() + self._settings.request_timeout
        while self._unverified and not self.taken_by and not self._exited:
            if self._elsewhere:
                raise self._another_agent()
            remaining = deadline - asyncio.get_running_loop().time()
            if not self.node.connected.is_set() or remaining <= 0:
                raise HostUnresponsive("not connected", host=self.node.name, remedy="check the network to the host")
            self._changed.clear()
            await self._hears_within(min(remaining, _PROBE))

    async def _hears_within(self, seconds: float) -> bool:
        """Return True as soon as something is heard of the kernel, False after *seconds*. By a timer: each start waits so."""
        is_over = False

        def end() -> None:
            nonlocal is_over
            is_over = True
            self._changed.set()  # who else waits for it looks once more

        timer = asyncio.get_running_loop().call_later(seconds, end)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
        return not is_over

    def _take_absence(self) -> None:
        """The agent that answers has no such kernel: it is dead, unless another agent has it."""
        now = self.node.agent if self.node is not None else None
        if self.agent is None or (now is not None and now.knows_end_of(self.agent)):
            self._die(None, "")
        else:
            self._lose_sight()

    def _lose_sight(self) -> None:
        """Another agent has the kernel than the one that answers: it is UNKNOWN until that one says more."""
        if not self._elsewhere:
            self._elsewhere = True
            log.warning("kernel %s: nothing is known of it: %s", self.id, self._another_agent())

    def _another_agent(self) -> HostUnresponsive:
        """Return the error of what the kernel is asked to do while another agent answers on its host."""
        assert self.node is not None
        now, then = self.node.agent, self.agent
        if now is not None and (then is None or then.id == now.id):
            return HostUnresponsive(
                f"an earlier agent in {now.folder} still has the kernel",
                host=self.node.name,
                remedy="wait until it has ended, or end it: `pgrep -fa eg-distributed` lists the agents there",
            )
        return HostUnresponsive(
            f"the agent that answers there{f', in {now.folder},' if now else ''} is not the one that has the kernel"
            f"{f', which was in {then.folder}' if then else ''}",
            host=self.node.name,
            remedy="see that the latter folder is there and can be written to, and end the agent in the former; "
            f"if the kernel (pid {self.pid}) runs no more, restart or delete it",
        )

    @property
    def agent_kept(self) -> Message | None:
        """What `Cluster.adopt` is to be told of the agent that has the kernel, by a later process of this gateway."""
        return self.agent.write() if self.agent is not None else None

    def _take_event(self, event: KernelEvent) -> None:
        if isinstance(event, Ready):
            self._ready = True
            self.pid = event.pid or self.pid
        elif isinstance(event, Queued):
            self.place.hear(event)
        elif isinstance(event, Answered):
            self._take_response(event.payload)
        elif isinstance(event, Exited):
            self._die(event.exit_code, event.log)
        elif isinstance(event, Stalled):
            self._tell_stall()
            if self.on_stalled is not None:
                self.on_stalled()
        elif isinstance(event, Replied) and self.on_replied is not None:
            self.on_replied()

    def _tell_loss(self) -> None:
        """Say what a stream's end costs that could not be resumed: each client has one, so once for all."""
        now = asyncio.get_running_loop().time()
        is_over = self._exited or bool(self.taken_by) or self.node is None
        if is_over or self.node is None or self.on_loss is None or now - self._loss_told < _LOSS_SILENCE:
            return
        self._loss_told = now
        self.node.counters.losses += 1
        self.on_loss(
            f"Output may be missing here: what the kernel printed in the {now - self.node.disconnected_at:.1f} s without a "
            f"connection to {self.node.name} could not be kept, since the agent there was ended, or it took too long."
        )

    def _tell_stall(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._stall_told > _STALL_SILENCE:
            self._stall_told = now
            log.warning("kernel %s: its output is taken too slowly; the kernel itself may have dropped some", self.id)

    def _take_response(self, payload: str) -> None:
        if self._decrypt is None:
            return
        try:
            self._response = read_launcher_answer(self._decrypt(payload))
        except ValueError as error:
            log.warning("kernel %s: an answer that is none of its launcher was ignored (%s)", self.id, error)

    def _take_description(self, found: Found) -> None:
        """Take what the agent says of the kernel after a reconnection."""
        if found.state == ELSEWHERE:
            self._lose_sight()
            return
        self._elsewhere = False
        self.lease = found.lease or self.lease
        if self.on_verified is not None and (found.lease or found.state != "exited"):
            on_verified, self.on_verified = self.on_verified, None
            on_verified()
        self.agent = self.node.agent if self.node is not None else None
        if found.state == "exited":
            self._die(found.exit_code, found.log)
            return
        self.pid = found.pid
        self._ready = self._ready or found.state == "running"
        if found.response and not self._ready:  # it came while the node was out of reach
            self._take_response(found.response)

    def _die(self, exit_code: int | None, tail: str) -> None:
        if self._exited:
            return
        self._exited, self.exit_code, self.exit_log = True, exit_code, tail
        self.died_at = asyncio.get_running_loop().time()
        if not self._ready or self._starting:
            return
        if not self.end_expected:
            self._tell_death()
        if self._unproven and not self.end_expected and self._is_short_lived() and exit_code != 0:
            self._note_need_of_ports(self._unproven)
        if self.on_exit is not None:
            self.on_exit(self)

    def _is_short_lived(self) -> bool:
        """Return True if the kernel ended so soon after its start that its transport may be why, and was not killed."""
        was_killed = self.exit_code in (-signal.SIGKILL, -signal.SIGTERM)
        return self._exited and not was_killed and self.died_at - self._started_at < _SHORT_LIFE

    def _tell_death(self) -> None:
        """Say how a kernel ended that was not asked to: it may be started again at once."""
        host = self.node.name if self.node is not None else "its host"
        if self.node is not None:
            self.node.counters.deaths += 1
        hint = _SIGNAL_HINT if self.exit_code == -signal.SIGKILL else ""
        words = self.exit_log.strip()[-_LAST_WORDS:]
        self.death = f"The kernel {exit_text(self.exit_code)} on {host}.{hint}"
        if words:
            self.death += f" Its last output:\n{words}"
        log.warning(
            "kernel %s: %s\nAll of its output: %s (`--previous` once it was started again)",
            self.id,
            self.death.replace("\n", "\n    "),  # no line of a kernel's begins like one of the log
            logs_command(self.id),
        )

    def expect_end(self) -> None:
        """Take the next end of the kernel as asked for; called by adapters when they have told the kernel itself to end."""
        self.end_expected = True

    def give_up(self, *, returnable: bool = False) -> None:
        """Count the kernel as dead, since its host is out of reach, and have it ended when that is back.

        A *returnable* one, which nobody asked to end, goes on instead if its host is back before a replacement has started.
        """
        if self.node is not None and not self._exited:
            if returnable:  # not at once: the host may be coming back right now
                self._abandoned.mark(self.node, self.id, self.attempt, self.lease)
                self.node.come_back()
            else:
                self._abandoned.end_soon(self.node, self.id, self.attempt, self.lease)
            self.lost = self.end_expected = True
            away = _Away(self.node, self.attempt, self.pid, self.key, self.agent, self.lease)
            self._away = away if returnable else None
            self._die(None, "")
            self._changed.set()

    def _take_back(self, node: Node) -> None:
        """Go on with a kernel that was given up: *node*, its host, is back and has it, and nothing has taken its place."""
        self._abandoned.keep(node, self.id, self.attempt)
        self._away = None
        self._exited = self.lost = self.end_expected = False
        log.warning("kernel %s: %s is back with it, before a replacement has started: it goes on", self.id, node.name)

    @property
    def is_away(self) -> bool:
        """Whether the kernel was given up with its host, and would go on if that came back now."""
        return self._away is not None

    def stay_away(self) -> None:
        """Be what `give_up` made of it again, after a replacement could not be started; nothing if it has come back since."""
        if self._away is not None:
            self.node, self.attempt, self.pid, self.key, self.agent, self.lease = self._away
            self._ready = self._exited = self.lost = self.end_expected = True

    async def _usable(self, resuming: bool) -> None:
        """Wait until a stream can be opened (the kernel runs), or resumed (its node is connected)."""
        while True:
            node = self.node
            if (
                node is not None
                and node.connected.is_set()
                and not self._elsewhere
                and (resuming or (self._ready and not self._exited and not self._starting))
            ):
                return
            self._changed.clear()
            waiting = [asyncio.ensure_future(self._changed.wait())]
            if node is not None and not node.connected.is_set():
                waiting.append(asyncio.ensure_future(node.connected.wait()))
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()

    async def _open_link(self) -> tuple[Reader, Writer]:
        if self.node is None:
            raise ConnectionError("the kernel is on no node")
        return await self.node.open()

    def _note_stream(self, error: Exception | None) -> None:
        if self.node is not None:
            self.node.note_stream(error)

    # -- life ----------------------------------------------------------------------------------------------------

    async def start_on(
        self, node: Node, request: StartRequest, attempt: str, deadline: float, believed: int = -1
    ) -> None:
        """Start the kernel on *node*, which is connected; return when it is ready. Called by the cluster.

        *deadline* is in the loop's time. *believed* is how many kernels *node* was picked for having; -1: it was not picked for
        that. Raises HostError (HostBusier if it has more) or KernelError; then nothing of the attempt stays on the node, at once
        or, if it can't be reached, as soon as it comes back.
        """
        if self.node is not node:
            self.endpoints.drop_streams()  # their other ends are on the node that it left, or never were
        self.node = node
        self.hosts = () if request.pin is not None else request.hosts
        transport = self._transports.choose(request.transport, request.language, request.own_argv)
        may_need_ports = (
            request.transport == "auto" and transport == "ipc" and not self._transports.is_proven(request.own_argv)
        )
        self._unproven = request.own_argv if may_need_ports else ()
        self._starting = True
        waited = self.place.seconds
        try:
            try:
                await self._start_attempt(node, request, attempt, transport, deadline, believed)
            except KernelStartFailed:
                if not (may_need_ports and self._is_short_lived()):
                    raise
                self._unproven = ()
                # Its record: nobody else asks for that attempt again.
                self._abandoned.end_soon(node, self.id, attempt, self.lease)
                deadline += self.place.seconds - waited
                await self._start_attempt(node, request, f"{attempt}-tcp", "tcp", deadline)
                self._note_need_of_ports(request.own_argv)
            else:
                if may_need_ports:
                    self._transports.note(request.own_argv, takes_sockets=True)
        except KernelTaken:  # what is there is the other gateway's
            raise
        except KernelError as error:
            _explain_folder(error, request)
            await self._abandoned.end(node, self.id, self.attempt, self.lease)
            raise
        except HostBusier:  # nothing was begun
            raise
        except (HostError, asyncio.CancelledError):
            self._abandoned.end_soon(
                node, self.id, self.attempt, self.lease
            )  # not waited for: a hanging host must not hold up the move
            raise
        finally:
            self._starting = False
        self._away = None
        self._changed.set()

    async def _start_attempt(
        self, node: Node, request: StartRequest, attempt: str, transport: str, deadline: float, believed: int = -1
    ) -> None:
        """Start the kernel on *transport*; return once it is ready, and has proved itself. Raises as `start_on`."""
        self.attempt = attempt
        self._ready = self._exited = self._elsewhere = self.lost = self.end_expected = False
        self.death = ""
        self._response, self._decrypt = None, request.decrypt
        self.key, self.signature_scheme = request.key, request.signature_scheme
        self._started_at = asyncio.get_running_loop().time()
        waited = self.place.seconds
        started = await self._ask_to_start(node, request, transport, deadline, believed)
        deadline += self.place.seconds - waited
        self.raise_if_taken()  # an event was quicker than the answer
        self._started_at = asyncio.get_running_loop().time()  # without the folder's delivery
        self.pid, self.agent, self.lease = started.pid, node.agent, started.lease or self.lease
        node.counters.note_warm(started.warm)
        if started.warning:
            log.warning("kernel %s: %s: %s", self.id, node.name, one_line(started.warning, 2000))
        await self._await_ready(node, request, deadline)
        if self._unproven:
            self._started_at = asyncio.get_running_loop().time()  # what ends while it proves itself is short-lived
            await self._prove(node)

    async def _prove(self, node: Node) -> None:
        """Wait for a kernel that could end at once, after it has opened its sockets; raises KernelStartFailed if it does."""
        proved_at = asyncio.get_running_loop().time() + PROVING
        while not self._exited and (remaining := proved_at - asyncio.get_running_loop().time()) > 0:
            self._changed.clear()
            await self._hears_within(remaining)
        if self._exited:
            raise self._start_failed(node, "as soon as it was ready")

    def _note_need_of_ports(self, argv: tuple[str, ...]) -> None:
        """Start kernels of *argv* on loopback ports from now on, and tell the operator how to have it so from the first start."""
        self._transports.note(argv, takes_sockets=False)
        self._unproven = ()
        log.warning(
            "kernel %s: it ended soon after its start on UNIX sockets, which not every kernel takes: kernels of this kernelspec "
            'are started on loopback ports from now on. Put "transport": "tcp" into the config of its process proxy. argv: %s',
            self.id,
            list(argv),
        )

    async def _ask_to_start(
        self, node: Node, request: StartRequest, transport: str, deadline: float, believed: int
    ) -> Started:
        """Have the agent start the kernel; bring the kernelspec's folder if it is not there. Raises HostError, KernelError."""
        start = self._start_message(node, request, transport, believed)
        waited = self.place.seconds
        try:
            try:
                return await self._ask_in_turn(node, start, request)
            except FolderMissing:
                if request.shipping.folder is None:
                    raise
                deadline += self.place.seconds - waited  # an agent may tell of it only at the start's turn
                await self._spec_folders.deliver(request.shipping.folder, node.name, node.open, deadline)
                return await self._ask_in_turn(node, start, request)
        except KernelTaken as error:
            self.be_taken(error.owner, error.lease)
            raise

    async def _ask_in_turn(self, node: Node, start: Start, request: StartRequest) -> Started:
        """Ask *node* for the start, and wait for its turn there. Raises HostError, KernelError.

        A place in the queue that a cut of the connection has cost is asked for again once the node is back: nothing has begun.
        """
        for left in reversed(range(_CUTS_IN_QUEUE + 1)):
            self.place.begin(node.name, self._settings.request_timeout, request.launch_timeout)
            connections = node.connections
            try:
                return await node.request(start, patience=self.place.patience)
            except HostUnresponsive:
                if self.place.before < 0 or not left:
                    raise
                await self._probe(node)
                if node.connections == connections:  # it was not cut: the host says nothing of the start any more
                    raise
            finally:
                self.place.leave()
        raise AssertionError("the last try has returned, or raised")

    def _start_message(self, node: Node, request: StartRequest, transport: str, believed: int) -> Start:
        """Return *request* as the agent of *node* is told it; raises AgentUnavailable where that agent is too old for it."""
        shipping, env = request.shipping, request.env
        folder = shipping.folder
        needs_folders = folder is not None or any("/" in name for name in shipping.files)
        if node.protocol < FOLDERS_PROTOCOL and needs_folders:
            what = "the kernelspec's folder" if folder is not None else "this launcher"
            raise AgentUnavailable(
                f"an agent of an older release is there, which serves another gateway and cannot take {what}",
                host=node.name,
                remedy="upgrade that gateway too, or let its kernels on this host end",
            )
        if shipping.files:
            # Names of Enterprise Gateway's own, for what only the gateway knows; Spark drivers are reached by them.
            low, high = request.port_range or (0, 0)
            known = {"EG_NODE": node.name, "EG_PORT_RANGE": f"{low}..{high}", "EG_ATTEMPT": self.attempt}
            env = {"KERNEL_ID": self.id, **env, **known}  # an id of the gateway's own is there already
        return Start(
            kernel=self.id,
            attempt=self.attempt,
            owner=self._identity[0],
            host_set=",".join(request.hosts),
            argv=request.argv,
            spec_env=request.spec_env,
            env=env,
            cwd=request.cwd,
            transport=transport,
            key=request.key,
            signature_scheme=request.signature_scheme,
            kernel_name=request.kernel_name,
            log_dir=self._settings.log_dir,
            port_range=request.port_range,
            orphan_timeout=self._settings.orphan_timeout,
            files=dict(shipping.files),
            interrupt_signal=shipping.interrupt_signal,
            on_exit=list(shipping.on_exit),
            spec_folder=folder.digest if folder is not None else "",
            believed=believed,
            lease=self.lease,
            queues=self._settings.queue_starts and request.queues,
            warm=request.warm,
            preload=list(request.preload),
        )

    async def _await_ready(self, node: Node, request: StartRequest, deadline: float) -> None:
        """Wait for `ready` or `exited`, and ask now and then whether the node is still there at all."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            self.raise_if_taken()
            if self._ready:
                return
            if self._exited:
                raise self._start_failed(node, "before it was ready")
            if self._response is not None:
                (info, pid), self._response = self._response, None
                self.key = info.get("key", "")
                self.signature_scheme = info.get("signature_scheme", self.signature_scheme)
                try:
                    await self._ask(SetEndpoints(self.id, info, pid, lease=self.lease))
                except HostUnresponsive:
                    await self._probe(node)  # once it is back, the node says again what it still waits for
                    continue
            remaining = deadline - loop.time()
            if remaining <= 0:
                raise await self._start_timeout(node, request)
            if not await self._hears_within(min(remaining, _PROBE)) and deadline - loop.time() > 0:
                await self._probe(node)

    def _start_failed(self, node: Node, when: str) -> KernelStartFailed:
        return KernelStartFailed(
            f"the kernel {exit_text(self.exit_code)} {when}",
            host=node.name,
            remedy="its output says why; the kernelspec's argv and env are what was run. All of its output: "
            + logs_command(self.id),
            exit_code=self.exit_code,
            log=self.exit_log,
        )

    async def _probe(self, node: Node) -> None:
        """Raise HostUnresponsive if the node does not answer; a connection that was just lost has time to come back."""
        if not node.connected.is_set():
            try:
                await within(node.connect(), self._settings.connect_seconds())
            except asyncio.TimeoutError:
                raise HostUnresponsive(
                    "the connection was lost while the kernel started",
                    host=node.name,
                    remedy="check the network to the host",
                ) from None
        await node.request(Ping())

    async def _start_timeout(self, node: Node, request: StartRequest) -> KernelStartTimeout:
        tail = ""
        with contextlib.suppress(HostError, KernelGone):  # the time-out is the news; its log is only a help
            tail = await node.request(ReadLog(self.id, 2048), timeout=1.0)
        return KernelStartTimeout(
            f"the kernel was not ready within {request.launch_timeout:g} s",
            host=node.name,
            remedy=f"raise KERNEL_LAUNCH_TIMEOUT if it needs longer, else see its output: {logs_command(self.id)}",
            log=tail,
        )

    def be_adopted(self, attempt: str, connection_info: Message, agent: object) -> None:
        """Be a kernel that an earlier process of this gateway started; raises OSError where no clients could reach it.

        Called by the cluster, on any thread, before anybody else knows the handle: what its node says comes later.
        """
        with contextlib.suppress(Malformed):  # None, of an older release: then each agent's word counts
            self.agent = AgentIdentity.read(agent)
        self.attempt, self._ready, self._unverified = attempt, True, True
        self.key = connection_info.get("key", "")
        self.signature_scheme = connection_info.get("signature_scheme", self.signature_scheme)
        try:
            self.endpoints.take_over(connection_info)
        except OSError:
            self.endpoints.unbind()  # nobody will ask for it
            raise

    async def signal(self, signum: int) -> bool:
        """Send *signum* to the kernel; returns False if it has ended. Raises HostError if its node can't be reached."""
        node, attempt = self.node, self.attempt
        if self._exited or node is None:
            return False
        if self._elsewhere:
            raise self._another_agent()
        if signum in (signal.SIGTERM, signal.SIGKILL):
            self.end_expected = True
        try:
            if not self.end_expected:  # whatever a gateway takes for an interrupt (EG_ALTERNATE_SIGINT)
                # A request that a host which hangs has not read yet strikes when it goes on, long after an error was answered,
                # and hits whatever cell runs then.
                await self.make_sure("the interrupt was not sent")
                if self.state is State.DEAD or self.node is not node or self.attempt != attempt:
                    return False  # what it was meant for has ended, or is started again
            return await self._ask(Signal(self.id, signum, lease=self.lease))
        except KernelGone:
            self._take_absence()
            self._changed.set()
            if self._elsewhere:
                raise self._another_agent() from None
            return False

    async def make_sure(self, what: str) -> None:
        """Raise HostError if the kernel's host does not answer now; *what* is not done then. Nothing for one that has ended.

        Called by adapters before something that would be half done, or done too late, on a host that hangs.
        """
        node = self.node
        if self._exited or node is None:
            return
        if self._elsewhere:
            raise self._another_agent()
        since = self.out_of_reach_since
        if since is None or node.connected.is_set():  # it may be us who were too busy to hear it
            try:
                await node.request(Ping(), timeout=None if since is None else _SILENT_PATIENCE)
                since = None
            except HostUnresponsive:
                since = since or node.silent_since or time.time()
        if since is not None:
            raise HostUnresponsive(
                f"it has not answered since {time.strftime('%H:%M:%S', time.localtime(since))}, so {what}; the kernel is kept",
                host=node.name,
                remedy="try again once the host is back",
            )

    async def end_launcher(self, attempt: str) -> None:
        """Send SIGTERM to *attempt* if its launcher has not ended by itself soon, as Enterprise Gateway's own proxy does at once.

        ipykernel first waits for its children to be gone, and a Python launcher never reaps the listener that it began with.
        """
        await asyncio.sleep(_LAUNCHER_GRACE)
        if self.attempt == attempt and self.state is not State.DEAD:
            with contextlib.suppress(DistributedError):  # it is ended when it is forgotten
                await self.signal(signal.SIGTERM)

    async def stop(self, grace: float = _STOP_GRACE) -> None:
        """End the kernel and wait for it: SIGTERM, then SIGKILL after *grace* seconds. Raises HostError."""
        if self.node is not None and not self._exited:
            self.end_expected = True
            if self._elsewhere:
                raise self._another_agent()
            answer = await self._ask(
                Stop(self.id, self.attempt, grace=grace, lease=self.lease),
                timeout=grace + self._settings.request_timeout,
            )
            self._die(answer.exit_code, "")

    async def forget(self) -> None:
        """Close the endpoints and leave nothing on the node; ends the kernel if it still runs. Raises nothing.

        A node that is out of reach is told as soon as it is back.
        """
        self.end_expected = True
        self._away = None
        if self.taken_by and not self.lease:
            # Without a number of it, nothing tells what was ours there from what is the other gateway's.
            self.node = None
        if self.node is not None:
            # Before anything is waited for: a node that is coming back stops when it has nothing left to come back for.
            self._abandoned.mark(self.node, self.id, self.attempt, self.lease)
        await self.endpoints.close()
        if self.node is None:
            return
        node, self.node = self.node, None
        self._exited = True
        await self._abandoned.end(node, self.id, self.attempt, self.lease)


def _explain_folder(error: KernelError, request: StartRequest) -> None:
    """Add to *error*'s remedy what `{resource_dir}` is, if the error or the kernel's output names a file there."""
    shipping = request.shipping
    folder = shipping.folder
    shown = folder.digest[:16] if folder is not None else shipping.resource_dir
    if not shown or shown not in f"{error.cause} {getattr(error, 'log', '')}":
        return
    if folder is None:
        why = f"{shipping.resource_dir} is the kernelspec's folder on the gateway, and is not brought to hosts: install it there"
        why += ' at the same path, or let it be brought ("bring_folder", Distributed.folder_limit)'
    else:
        why = f"{shown} is a copy of the kernelspec's folder {folder.path} on the gateway"
        if folder.left_out:
            why += f", without {named(folder.left_out)}"
        why += '; where the hosts hold the folder themselves, set "bring_folder": false in its process proxy config'
    error.remedy = f"{error.remedy}; {why}" if error.remedy else why


def exit_text(code: int | None) -> str:
    """Say how a kernel with the exit code *code* ended; -N: by signal N, None: unknown."""
    if code is None:
        return "ended"
    return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"


def logs_command(kernel_id: str) -> str:
    """Return the command that prints a kernel's log, for errors."""
    return f"`jupyter distributed logs {shlex.quote(kernel_id)}`"
