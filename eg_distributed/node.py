"""A node: one host from the gateway's side. Holds the link, asks the agent, hears its events, and comes back after a cut."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from .clock import monotonic
from .counters import HostCounters
from .errors import (
    AgentUnavailable,
    DistributedError,
    HostError,
    HostUnresponsive,
    KernelGone,
    KernelStartFailed,
    KernelTaken,
)
from .link.deadlines import within
from .link.late import connect
from .link.way import Link, LocalLink, Progress
from .protocol import (
    OLDEST_PROTOCOL,
    PROTOCOL,
    TAKEN_OVER,
    Adopt,
    AgentIdentity,
    ControlHello,
    Found,
    KernelEvent,
    Load,
    Missing,
    Ping,
    Queue,
    Reply,
    Request,
    Welcome,
    read_event,
    write_request,
)
from .settings import Distributed
from .turns import Turns
from .wire import MAX_ANSWER, Malformed, Message, Reader, Writer, encode, one_line, read_message

log = logging.getLogger(__name__)
R = TypeVar("R")
News = KernelEvent | Found | Missing
"""What a node tells of a kernel: events as they come, and, after it was adopted, what the agent found."""

_FIRST_BACKOFF, _LAST_BACKOFF = 0.2, 5.0
"""Seconds between attempts to come back, each with up to half as much again of jitter."""
_IDLE_BACKOFF = 60.0
"""The same where only ended kernels wait for the host: it may have been taken away for good."""
_STEADY = 2.0
"""Seconds that a connection has to last for the next one to be made at once."""
_PING, _IDLE_PING = 2.0, 15.0
"""Seconds between two signs of life to an agent with kernels, and to others, which give up a gateway that is silent for 60."""
_QUIET = 4.0
"""Seconds without a word of the agent after which people are told that the host does not answer; its link may yet recover."""
_FAILURE_COUNTS = 60.0
"""Seconds for which a host that nothing needs counts as unreachable after an attempt that failed: a few scrapes of Prometheus."""
_DEAF = 60.0
"""Seconds without a word of the agent after which the link is given up."""
_STREAMS_FAILED, _STREAMS_TOLD = 5, 1.0
"""Streams in a row that have to fail for it to count, and for so many seconds for it to be told: a cut lets some fail as well."""
STREAMS_PATIENCE = 10.0
"""Seconds of nothing but streams that fail, over a link that else stands, until it is made again; twice as many the next time.

Where it is sshd's limit of open files, connecting again interrupts a thousand streams that work, and mends nothing.
"""
_LAST_STREAMS_PATIENCE = 300.0
TAKEN_REMEDY = "connect to the kernel again, which a load balancer in front of the gateways leads to its owner"
_STREAMS_FORGOTTEN = 600.0  # seconds after which a link that was made again for its streams is forgotten


class FolderMissing(AgentUnavailable):
    """The kernelspec's folder is not on the node: to be brought, and the start asked for again."""


class HostBusier(AgentUnavailable):
    """The node has more kernels than it was picked for having, and has told which ones: another pick has to be made."""


class QueueFull(HostBusier):
    """As many starts wait on the node as may: it is well, and another one has to be picked."""


class Owner(Protocol):
    """What a node asks of the Cluster, which holds it."""

    def hear(self, news: News) -> None:
        """Take an event of a kernel, or what has become of one that was asked about."""
        ...

    def wanted(self, host: str) -> list[str]:
        """Return the ids of the kernels that need a connection to *host*, and are asked about after each reconnection."""
        ...

    def handle(self, kernel: str) -> object:
        """Return what stands for a kernel here, None if nothing does: answers are for whoever stood there when it was asked."""
        ...

    def lease(self, kernel: str) -> int:
        """Return the number that is held of a kernel; 0 for one that is taken over from its owner."""
        ...

    def is_late(self, kernel: str) -> bool:
        """Return True if a kernel that is taken over was asked for so long ago that no gateway that uses it loses it."""
        ...

    def has_errands(self, host: str) -> bool:
        """Return True if *host* is needed for anything else: a reason to come back, though a less urgent one."""
        ...

    def run_errands(self, node: Node) -> None:
        """Do what waited for *node*, which has just connected; waits for nothing."""
        ...


class Connector(Protocol):
    """How a node gets its link: by `link.connect.connect`, unless whoever makes the cluster brings a network of its own."""

    async def __call__(self, host: str, settings: Distributed, *, keep: bool, progress: Progress) -> Link:
        """Connect to *host*, and have an agent there; raises HostError."""
        ...


class Node:
    """The connection to one host and its agent; one per host, shared by all kernels there, held by its *owner*, the Cluster.

    All methods run on the cluster's loop.
    """

    def __init__(
        self,
        name: str,
        settings: Distributed,
        identity: tuple[str, str],
        owner: Owner,
        turns: Turns | None = None,
        connector: Connector | None = None,
        counters: HostCounters | None = None,
    ) -> None:
        self.name = name
        self.counters = counters or HostCounters(name)
        self.running: set[str] = set()  # kernels of all gateways, as the agent says
        self.users: dict[object, None] = {}  # the handles of this gateway's kernels here, in order; kept by themselves
        self.last_error: HostError | None = None
        self.failed_at = 0.0
        self.connections = 0  # made so far
        self.protocol = PROTOCOL  # what the agent speaks
        self.agent: AgentIdentity | None = None  # who the agent is; None: it does not say so
        # The agent's, see `AgentIdentity.place`; asked for with each pick.
        self.place: tuple[str, str, str] | None = None
        self.keeps_output = False  # whether the agent keeps what kernels say while no gateway is there
        self.connected = asyncio.Event()
        self.disconnected_at = 0.0
        self._connected_at = 0.0
        self._heard_at = monotonic()  # the last word of the agent; at first, when this node was first connected to
        self._spoke_at = self._heard_at  # our last word to it
        self._is_expected = False  # to say anything: set when it is first connected to
        self._backoff = 0.0  # seconds to wait before coming back, where connections don't last
        self._settings = settings
        self._identity = identity
        self._owner = owner
        self._turns = turns or Turns()
        self._connector = connector or connect
        self._recent_loss = asyncio.Event()  # set where a connection was lost that stood
        self._hurry = asyncio.Event()  # set where somebody waits for the attempt to connect that is under way
        self.progress = Progress()
        """How far the last attempt to connect has come."""
        self._link: Link | None = None
        self._writer: Writer | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._coming_back: asyncio.Task[None] | None = None
        self._claiming: set[asyncio.Task[None]] = set()
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._last_id = 0
        self._closed = False
        self._complained = False  # of a malformed message on this link
        self._streams_failed = 0  # in a row, on this link
        self._streams_fail_since = 0.0  # in the loop's time
        self._streams_told = False
        self._streams_patience = STREAMS_PATIENCE
        self._streams_given_up_at = 0.0  # in the loop's time

    # -- connecting ----------------------------------------------------------------------------------------------

    async def connect(self, *, hurry: bool = True) -> None:
        """Have a connection: return at once if there is one, else make it, together with whoever else wants it.

        Without *hurry* no user waits for it, and hosts for which one does go first. Raises HostError. Cancellation: the
        attempt goes on for the others.
        """
        if self.connected.is_set():
            return
        if self._connecting is None:
            self.expect()
            self.progress = Progress(phase="waiting for other logins of this gateway")
            self._hurry.clear()
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        if hurry:
            self._hurry.set()
        await asyncio.shield(self._connecting)

    def expect(self) -> None:
        """Count the host's silence and absence from now on, if it has never been connected to; later it changes nothing.

        A gateway that adopts a thousand kernels makes the first node seconds before it connects to any: that is no outage.
        """
        if not self._is_expected:
            self._is_expected = True
            self._heard_at = monotonic()
            self.disconnected_at = asyncio.get_running_loop().time()

    def hurry(self) -> None:
        """Have the attempt to connect that is under way, if any, go before those of hosts that come back: a user waits."""
        self._hurry.set()

    @property
    def steady_for(self) -> float:
        """How long the connection has stood, in seconds; 0 without one."""
        return asyncio.get_running_loop().time() - self._connected_at if self.connected.is_set() else 0.0

    def is_slow(self) -> bool:
        """Return True if an attempt to connect has got an answer from the host, and takes longer than a dead one would."""
        return (
            self._connecting is not None
            and self.progress.has_answered()
            and monotonic() - self.progress.began > self._settings.connect_seconds()
        )

    def _connect_ended(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled() and isinstance(error := task.exception(), HostError):
            self.counters.connect_failures += 1
            self.failed(error)

    @property
    def silent_since(self) -> float | None:
        """When the agent was last heard, in seconds since the epoch; None if that is not so long ago that people are told.

        None as well before the first attempt to connect: who was not asked is not silent.
        """
        if not self._is_expected:
            return None
        silence = monotonic() - self._heard_at
        return time.time() - silence if silence > _QUIET else None

    @property
    def is_unreachable(self) -> bool | None:
        """Whether the host does not answer; None: nothing needs it, and nothing was asked of it lately. On any thread.

        An agent without kernels says nothing between two pings. And nobody comes back to a host for a failure alone, so that one
        says something for a while only: the host may have been mended long ago.
        """
        now = monotonic()
        if self.connected.is_set():
            return now - self._heard_at > (_QUIET if self.running else _IDLE_PING + self._settings.request_timeout)
        if self.users:
            return self.last_error is not None or self.silent_since is not None
        is_recent = now - self.failed_at < max(self._settings.retry_after, _FAILURE_COUNTS)
        return True if self.last_error is not None and is_recent else None

    def is_reached_by_network(self) -> bool:
        """Return True if a connection stands that says something of the gateway's own network: this machine's agent's doesn't."""
        return self.connected.is_set() and not isinstance(self._link, LocalLink)

    def failed(self, error: HostError) -> None:
        """Remember that the host could not be reached, or not take a kernel, just now."""
        self.last_error, self.failed_at = error, monotonic()

    async def _connect(self) -> None:
        """Make the connection and take our kernels back; raises HostError alone, and then leaves no link behind."""
        link: Link | None = None
        try:
            async with self._turns.turn(self._hurry, fresh=self.last_error is None):
                self.progress = Progress()  # its clock begins here
                keep = self.protocol < PROTOCOL
                link = await self._connector(self.name, self._settings, keep=keep, progress=self.progress)
            # Never before hosts that are waited for, nor behind those that cannot be reached.
            link.turn = functools.partial(self._turns.turn, asyncio.Event(), fresh=True)
            self.connections += 1
            await self._greet(link)
            await self._take_back()
            if self._link is not link:
                raise HostUnresponsive(
                    "the connection was lost again at once", host=self.name, remedy="check the network to the host"
                )
        # Not narrower: whatever ends the attempt, no link may stay; and starts move on to the next host, and coming back goes on,
        # only after a HostError.
        except BaseException as error:
            if link is not None:
                link.close()
            if isinstance(error, HostError) or not isinstance(error, Exception):
                raise
            log.exception("%s: an unexpected error", self.name)
            raise AgentUnavailable(
                f"connecting failed unexpectedly ({error!r})", host=self.name, remedy="see the gateway's log"
            ) from error
        if self._connected_at:
            self.counters.reconnects += 1
        self._connected_at = asyncio.get_running_loop().time()
        self.connected.set()

    async def _greet(self, link: Link) -> None:
        """Open the control connection over *link* and begin to hear the agent; raises AgentUnavailable."""
        owner, incarnation = self._identity
        try:
            reader, writer = await within(link.open(), self._settings.request_timeout)
            settings = self._settings
            hello = ControlHello(
                owner, incarnation, PROTOCOL, self.name, settings.kept_output_limit, settings.gone_timeout
            )
            writer.write(encode(hello.write()))
            answer = await within(read_message(reader, MAX_ANSWER), self._settings.request_timeout)
            if answer is None:
                raise ConnectionError("it closed the connection")
            welcome = Welcome.read(answer)
        except (OSError, asyncio.TimeoutError, ValueError) as error:
            raise AgentUnavailable(
                f"its agent does not answer as one of ours ({error!r})",
                host=self.name,
                remedy="see agent.log in ~/.cache/eg-distributed, and end that agent",
            ) from error
        if not OLDEST_PROTOCOL <= welcome.protocol <= PROTOCOL:
            raise AgentUnavailable(
                f"its agent speaks protocol {welcome.protocol}, this gateway {OLDEST_PROTOCOL} to {PROTOCOL}",
                host=self.name,
                remedy="upgrade the gateway, or end that agent",
            )
        self.protocol, self.agent, self.keeps_output = welcome.protocol, welcome.agent, welcome.keeps_output
        self.place = welcome.agent.place if welcome.agent is not None else None
        self._heard_at = self._spoke_at = monotonic()
        self._link, self._writer = link, writer
        self._complained = False
        self.running = {kernel.kernel for kernel in welcome.kernels if kernel.state != "exited"}
        self.last_error = None
        self._serving = asyncio.ensure_future(self._serve(link, reader))

    async def _take_back(self) -> None:
        """Claim our kernels again, learn what became of them meanwhile, and run what waited for the host."""
        await self._claim(self._owner.wanted(self.name))
        self._owner.run_errands(self)

    async def _claim(self, kernels: list[str]) -> None:
        """Tell the agent that we answer for *kernels*, and hear what has become of each."""
        parts = [kernels[start : start + Adopt.MOST] for start in range(0, len(kernels), Adopt.MOST)]
        asked = {kernel_id: self._owner.handle(kernel_id) for kernel_id in kernels}
        found: Message = {}
        for answer in await asyncio.gather(*(self.request(self._adopt(part)) for part in parts)):
            found |= answer
        wanted = set(self._owner.wanted(self.name))
        for kernel_id in kernels:
            # One that was taken over meanwhile, and then back: it is asked about by itself, and this is of before.
            if self._owner.handle(kernel_id) is not asked[kernel_id]:
                continue
            if kernel_id not in found:
                if kernel_id in wanted:  # else it has been started on another host meanwhile
                    self._pass_on(Missing(kernel_id))
                continue
            try:
                news = Found.read(found[kernel_id])
                if news.state != TAKEN_OVER or kernel_id in wanted:
                    self._pass_on(news)
            except Malformed as error:  # of that kernel alone: it stays unknown, and the others are taken back
                log.warning("%s: its agent's word on kernel %s is malformed: %s", self.name, kernel_id, error)

    def _adopt(self, kernels: list[str]) -> Adopt:
        held = {kernel_id: self._owner.lease(kernel_id) for kernel_id in kernels}
        leases = {kernel_id: lease for kernel_id, lease in held.items() if lease}
        return Adopt(kernels, leases, [kernel_id for kernel_id in kernels if self._owner.is_late(kernel_id)])

    def _pass_on(self, news: News) -> None:
        """Hand *news* to the cluster."""
        try:
            self._owner.hear(news)
        except Exception:  # what one kernel's adapter makes of it must not cut off all kernels of the host
            log.exception("%s: news of kernel %s was not taken: %s", self.name, news.kernel, type(news).__name__)

    async def _serve(self, link: Link, reader: Reader) -> None:
        """Hear the agent until the link is lost, then come back if anything of ours is there."""
        watching = asyncio.ensure_future(link.wait_closed())
        hearing = asyncio.ensure_future(self._hear(reader))
        pinging = asyncio.ensure_future(self._ping(link))
        try:
            await asyncio.wait({watching, hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, hearing, pinging):
                task.cancel()
            link.close()
            if self._link is link:  # else it had been given up, and there is a later one
                self._lost()

    async def _ping(self, link: Link) -> None:
        """Tell the agent that we live, and give up a link whose agent doesn't: SSH's keep-alives ask sshd alone.

        What the agent says of itself is as good as an answer, so where much happens nothing is asked.
        """
        while (silence := monotonic() - self._heard_at) < _DEAF:
            await asyncio.sleep(_PING - silence if silence < _PING else _PING)
            now = monotonic()
            is_due = now - self._heard_at >= _PING if self.running else now - self._heard_at > _IDLE_PING
            if is_due or now - self._spoke_at > _IDLE_PING:
                with contextlib.suppress(DistributedError):  # whatever it answers, it lives
                    await self.request(Ping())
        log.warning("%s: its agent has not answered for %d s: reconnecting", self.name, _DEAF)
        link.close()

    async def _hear(self, reader: Reader) -> None:
        """Take replies and events until the agent closes; a malformed one is passed over, and the next one taken."""
        while True:
            try:
                message = await read_message(reader, MAX_ANSWER)
                if message is None:
                    return
                self._heard_at = monotonic()
                self._take(message)
            except Malformed as error:
                self._complain(str(error))
            except ValueError as error:  # where the next message begins is unknown
                log.warning("%s: its agent sent %s: reconnecting", self.name, error)
                return

    def _take(self, message: Message) -> None:
        """Take one message of the agent; raises Malformed."""
        if "event" not in message:
            number = message.get("id")
            reply = self._replies.pop(number, None) if isinstance(number, int) else None
            if reply is not None and not reply.done():
                reply.set_result(message)
            return
        event = read_event(message)
        if isinstance(event, Load):
            self.running = set(event.kernels)
        elif isinstance(event, Queue):
            for start in event.starts:
                self._pass_on(start)
        elif isinstance(event, KernelEvent):
            self._pass_on(event)

    def _complain(self, what: str) -> None:
        """Log a malformed message, once for each link: a hostile node could fill the log."""
        log.log(logging.DEBUG if self._complained else logging.WARNING, "%s: malformed message: %s", self.name, what)
        self._complained = True

    def _lost(self) -> None:
        """The link is gone: whoever waits for an answer hears so, and kernels there are unknown, not dead."""
        if self._writer is not None:
            self._writer.close()  # a link to this machine's own agent holds no connections that it could close
        self._link = self._writer = None
        self._streams_failed = 0
        if self.connected.is_set():  # what ends before our kernels were taken back was no contact with them
            self.connected.clear()
            self._turns.note_loss()
            self._recent_loss.set()
            self.disconnected_at = asyncio.get_running_loop().time()
            if self.disconnected_at - self._connected_at > _STEADY:
                self._backoff = 0.0
            else:  # whatever cuts it off at once would do so again, five times a second and for ever
                self._backoff = min(max(2 * self._backoff, _FIRST_BACKOFF), _LAST_BACKOFF)
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            if not reply.done():
                reply.set_exception(
                    HostUnresponsive("the connection was lost", host=self.name, remedy="check the network to the host")
                )
                reply.exception()  # seen: its waiter may have gone already
        self._begin_to_come_back()

    def come_back(self) -> None:
        """Begin to reconnect if anything needs the host, unless a connection stands or is being made."""
        if not self.connected.is_set() and self._connecting is None:
            self._begin_to_come_back()

    def _begin_to_come_back(self) -> None:
        if not self._closed and (self._coming_back is None or self._coming_back.done()):
            self._coming_back = asyncio.ensure_future(self._come_back())

    def keep_connected(self, fresh: str) -> None:
        """Connect, and stay so for as long as kernels are wanted; *fresh* is one that this node is to be asked about now.

        Does not wait: what the node says of the kernel comes as an event.
        """
        if self.connected.is_set():
            self._claiming.add(task := asyncio.ensure_future(self._claim_or_reconnect(fresh)))
            task.add_done_callback(self._claiming.discard)
        else:
            self._begin_to_come_back()

    async def _claim_or_reconnect(self, kernel_id: str) -> None:
        try:
            await self._claim([kernel_id])
        except HostError as error:
            # Whether the claim arrived is unknown, and without it nobody would tell us of the kernel: begin anew with all.
            log.warning("%s: claiming kernel %s failed, reconnecting: %s", self.name, kernel_id, error)
            if self._link is not None:
                self._link.close()

    async def _come_back(self) -> None:
        """Reconnect, ever more patiently, for as long as something of ours is there."""
        backoff, said = _FIRST_BACKOFF, ""
        await self._wait_after_loss()
        while not self._closed and not self.connected.is_set() and self._is_needed():
            try:
                await self.connect(hurry=False)
            except HostError as error:
                log.log(logging.DEBUG if str(error) == said else logging.WARNING, "cannot reconnect: %s", error)
                said = str(error)
                self._recent_loss.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(self._recent_loss.wait(), backoff * random.uniform(1, 1.5))
                backoff = min(backoff * 2, _LAST_BACKOFF if self._owner.wanted(self.name) else _IDLE_BACKOFF)
                if self._recent_loss.is_set():  # a start has connected meanwhile, and that is lost as well
                    backoff = _FIRST_BACKOFF
                    await self._wait_after_loss()
                continue
            # Not assumed: it may have been lost between its making and this line, and `_lost` leaves coming back to this task.
            if self.connected.is_set():
                log.info("%s is back", self.name)
            else:
                await self._wait_after_loss()

    async def _wait_after_loss(self) -> None:
        """Wait where connections are lost as soon as they are made, longer each time, or where many hosts are lost at once."""
        await asyncio.sleep(0)  # so that those which were lost in the same moment are counted
        await asyncio.sleep(self._turns.delay())
        if self._backoff > _FIRST_BACKOFF:
            log.warning("%s: its connections are lost at once: waiting %g s", self.name, self._backoff)
            await asyncio.sleep(self._backoff)

    def _is_needed(self) -> bool:
        return bool(self._owner.wanted(self.name)) or self._owner.has_errands(self.name)

    # -- talking -------------------------------------------------------------------------------------------------

    async def request(
        self, request: Request[R], timeout: float | None = None, patience: Callable[[], float] | None = None
    ) -> R:
        """Ask the agent and return its answer; *timeout* in seconds, the request_timeout setting by default.

        An answer that is not there by then is waited for as many more seconds as *patience* returns, and it is asked again after
        those; the DistributedError that it raises is raised.

        Raises HostUnresponsive without an answer in time, KernelStartFailed or KernelGone as the agent says, and
        AgentUnavailable for an answer that is malformed.
        """
        if self._writer is None:
            raise HostUnresponsive("not connected", host=self.name, remedy="check the network to the host")
        self._last_id += 1
        number = self._last_id
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Message] = loop.create_future()
        self._replies[number] = reply
        seconds = self._settings.request_timeout if timeout is None else timeout
        self._spoke_at = monotonic()
        # Not wait_for: up to Python 3.11 it drops a cancellation that comes together with the reply, as those do that a lost
        # link brings. Its pinger would go on over the next link, one more for each loss.
        timers: list[asyncio.TimerHandle] = []  # the last one counts

        def overdue() -> None:
            try:
                if patience is not None and not reply.done() and (more := patience()) > 0:
                    timers.append(loop.call_later(more, overdue))
                    return
            except DistributedError as error:
                if not reply.done():
                    reply.set_exception(error)
            self._give_up_reply(reply, request.METHOD, seconds)

        timers.append(loop.call_later(seconds, overdue))
        try:
            self._writer.write(encode(write_request(number, request)))
            message = await reply
        except OSError as error:
            raise HostUnresponsive(f"the connection was lost ({error})", host=self.name) from error
        finally:
            timers.pop().cancel()
            self._replies.pop(number, None)
        try:
            answer = Reply.read(message)
            if answer.error is not None:
                raise self._agent_error(answer)
            result: R = request.answer(answer.result)
        except Malformed as error:
            raise AgentUnavailable(
                f"its agent's answer to {request.METHOD!r} is malformed ({error})",
                host=self.name,
                remedy="end that agent",
            ) from error
        return result

    def _give_up_reply(self, reply: asyncio.Future[Message], method: str, seconds: float) -> None:
        """Have whoever waits for *reply* hear that none came in time."""
        if not reply.done():
            reply.set_exception(
                HostUnresponsive(
                    f"no answer to {method!r} within {seconds:g} s",
                    host=self.name,
                    remedy="check whether the host hangs or is overloaded",
                )
            )

    def _agent_error(self, answer: Reply) -> DistributedError:
        kind, text, remedy = answer.kind, answer.error or "", answer.remedy
        if kind == "start":
            remedy = remedy or "check argv, PATH and the files that the kernelspec names, on that host"
            return KernelStartFailed(text, host=self.name, remedy=remedy)
        if kind == "host":
            remedy = remedy or "free disk, memory, processes or ports on the host"
            return AgentUnavailable(text, host=self.name, remedy=remedy)
        if kind == "folder":
            return FolderMissing(text, host=self.name, remedy="free disk space on the host")
        if kind == "gone":
            return KernelGone(text, host=self.name, remedy="start the kernel again")
        if kind == "taken":
            return KernelTaken(
                text, host=self.name, remedy=TAKEN_REMEDY, owner=one_line(answer.owner), lease=answer.lease
            )
        if kind == "busier":
            return HostBusier(text, host=self.name, remedy="start the kernel again")
        if kind == "full":
            return QueueFull(text, host=self.name, remedy=remedy or "start the kernel again later")
        if kind == "log":
            return AgentUnavailable(text, host=self.name, remedy="check that file and its disk, on that host")
        if kind == "malformed" and text.startswith("no method "):
            return AgentUnavailable(
                "its agent is of an older release, which cannot answer this",
                host=self.name,
                remedy="it makes room for the new one when its kernels have ended",
            )
        return AgentUnavailable(f"its agent failed: {text}", host=self.name, remedy="see agent.log on the host")

    async def open(self) -> tuple[Reader, Writer]:
        """Open a byte connection to the agent, for one stream; raises OSError if the node is not connected."""
        if self._link is None:
            raise ConnectionError("not connected")
        return await self._link.open()

    def note_stream(self, error: Exception | None) -> None:
        """Take note of a stream to the agent that was opened, or could not be for *error*; called by kernels for each.

        Where nothing but failures come for ten seconds the link is closed, and all is brought up again: the control connection,
        which still stands, says nothing of whether the agent's socket is there, or sshd has a descriptor left.
        """
        if error is None:
            self._streams_failed, self._streams_told = 0, False
            return
        if not self.connected.is_set() or self._link is None:
            return
        now = asyncio.get_running_loop().time()
        if now - self._streams_given_up_at > _STREAMS_FORGOTTEN:
            self._streams_patience = STREAMS_PATIENCE
        if not self._streams_failed:
            self._streams_fail_since = now
        self._streams_failed += 1
        seconds = now - self._streams_fail_since
        if self._streams_failed < _STREAMS_FAILED:
            return
        if not self._streams_told and seconds >= min(_STREAMS_TOLD, self._streams_patience):
            self._streams_told = True
            log.warning(
                "%s: it is connected, but kernels' channels to its agent cannot be opened (%s): they are tried again, and if "
                "none can be within %g s it is connected again. Look for the agent's socket below ~/.cache/eg-distributed, and "
                "at sshd's limit of open files (LimitNOFILE)",
                self.name, error, self._streams_patience,
            )  # fmt: skip
        if seconds >= self._streams_patience:
            self._streams_given_up_at = now
            self._streams_patience = min(2 * self._streams_patience, _LAST_STREAMS_PATIENCE)
            self._link.close()

    async def close(self) -> None:
        """Close the connection; kernels there live on. Called by the cluster when it ends."""
        self._closed = True
        for task in (self._coming_back, self._connecting, self._serving):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self._link is not None:
            self._link.close()
