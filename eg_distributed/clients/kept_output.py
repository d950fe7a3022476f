"""What kernels said while no server's process was there, given to the clients of before as they come back.

After a server's start each kernel that is found again may have been heard by nobody for a while. Its
agent has kept what it said, and listens on. A session of before that connects again is given that first, from behind what it had
confirmed to the earlier process (`delivered`), and then what comes on its own channels:

    the agent's     ....a b c d e f g h i j k l m          taken again and again, until the session's own channel is known
    its own                          h i j k l m n ...     to be heard; of both, each message once, by its id

So nothing rests on when a subscription begins to count. The agent forgets it all when each session of before has been back,
or after ten minutes. Replies of the kernel to the addresses of the earlier process come by the agent for as long as it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final

from eg_distributed import kept_output
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError, HostError, HostUnresponsive, KernelGone
from eg_distributed.kept_output import Kept, Records
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.protocol import OutputPart
from eg_distributed.wire import Malformed

from .delivered import Delivered
from .frames import DELIM, header_of, parent_of

log = logging.getLogger(__name__)

_WAITED_FOR: Final = 600.0
"""Seconds for which sessions of before are waited for."""
_LONGEST: Final = 3600.0
"""Seconds for which those that are back by then may take what was kept."""
_AGAIN: Final = 0.3
"""Seconds between two looks at what else the agent has, while a session's own channel is not known to be heard."""
_OVERLAP: Final = 2.0
"""Seconds in which the agent must have heard what came on a session's own channel."""
_PATIENCE: Final = 30.0
"""Seconds without any progress after which the agent is not asked any more."""
_RETRY: Final = 2.0
_AT_ONCE: Final = 32
_QUESTIONS: Final = 10_000
"""Questions of the server itself whose channel is remembered."""
_MOST: Final = 4_000_000
"""Messages that a session is given, at most; any cell on a node can speak in its agent's place."""

Give = Callable[[str, list[bytes]], Awaitable[None]]
"""Sends a client a message of a channel; waits where the client is slow."""
Tell = Callable[[str, dict[str, Any]], None]
"""Shows a client a text in the output of the cell with that header."""

calls_itself = "gateway"
"""What people call the server."""
delivered = Delivered(None)
"""What sessions have got; replaced when the server turns out to find kernels again."""


class Adopted:
    """One kernel that an earlier process had, and its sessions that are waited for; on the server's loop."""

    def __init__(self, cluster: Cluster, kernel: RemoteKernel, limit: int, manager: Any) -> None:
        self.kernel = kernel
        self.awaited = delivered.sessions(kernel.id)
        """Their names, without those that have all that was kept."""
        self._cluster = cluster
        self._limit = limit
        self._manager = manager
        self._given_up: set[str] = set()  # names of those that were not back in time
        self._all_back = asyncio.Event()
        self._nobody_takes = asyncio.Event()
        self._nobody_takes.set()
        self._takers = 0
        self._records: dict[str, Records] = {}  # what reads the replies that are taken, by session
        self._replies: dict[str, deque[list[bytes]]] = {}  # those that were not given yet
        self._locks: dict[str, asyncio.Lock] = {}  # of those who take them
        self._minding: asyncio.Task[None] | None = None
        self._cells: Cells | None = None
        self._attempt = kernel.attempt
        self._away_at = -math.inf  # when its host was last seen to be out of reach, on the loop's clock

    def begin(self) -> None:
        """Wait for the sessions; called once the loop runs."""
        self._minding = asyncio.create_task(self._mind())
        self._cells = Cells(self._manager)

    def note_running(self) -> None:
        """Note that there are signs of a running cell."""
        if self._cells is not None and _adopted.get(self.kernel.id) is self:  # it may have been started again since
            self._cells.note_running()

    async def _mind(self) -> None:
        if not self.awaited:
            self._all_back.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_back.wait(), _WAITED_FOR)
        with contextlib.suppress(asyncio.TimeoutError):  # those that are back, but slow
            await asyncio.wait_for(self._nobody_takes.wait(), _LONGEST)
        self._given_up |= self.awaited
        self.awaited.clear()
        while _adopted.get(self.kernel.id) is self and self.kernel.state is not State.DEAD:
            try:
                await self._cluster.run(self._have_forgotten())
                return
            except HostError:
                await asyncio.sleep(_RETRY)
            except DistributedError:
                return

    def end(self) -> None:
        """Forget the kernel: it has ended, or is about to be started again."""
        if self._minding is not None:
            self._minding.cancel()
        if _adopted.get(self.kernel.id) is self:
            del _adopted[self.kernel.id]

    def waits_for(self, session: str) -> bool:
        """Return True if *session* was there before, and has not got what was kept."""
        return self._attempt == self.kernel.attempt and delivered.name_of(session) in self.awaited

    def missed(self, session: str) -> str:
        """Return, once, what a client is to be told that was not back in time; empty for all others."""
        name = delivered.name_of(session)
        if name not in self._given_up:
            return ""
        self._given_up.discard(name)
        return (
            f"Output may be missing here: what the kernel printed while the {calls_itself} was away was kept for "
            f"{_WAITED_FOR / 60:.0f} minutes after the {calls_itself}'s start, and this client came back later."
        )

    def has_come_back(self, session: str) -> None:
        """*session* has all that was kept."""
        self.awaited.discard(delivered.name_of(session))
        if not self.awaited:
            self._all_back.set()

    async def _take(self, session: str, position: int, after: str = "") -> OutputPart:
        """Ask the agent, once its host is in reach. Raises DistributedError after half a minute without an answer from there."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        while True:
            try:
                return await self._cluster.run(self._ask(session, position, after))
            except HostError:
                if self.kernel.state is State.UNKNOWN:
                    self._away_at = loop.time()
                    until = self._away_at + _PATIENCE
                elif loop.time() > until or self.kernel.state is State.DEAD:
                    raise
                await asyncio.sleep(_AGAIN)

    # On the cluster's loop, as is all that looks at the kernel's node: just after its adoption there is none yet.

    async def _ask(self, session: str, position: int, after: str) -> OutputPart:
        return await kept_output.take(self.kernel.node, self.kernel.id, session, position, after)

    async def _have_forgotten(self) -> None:
        await kept_output.forget(self.kernel.node, self.kernel.id)

    async def give_output(
        self, session: str, subscribe: Callable[[], Coroutine[Any, Any, None]], heard: Callable[[], str], back: Back
    ) -> None:
        """Give *session* what was kept of the kernel's output, until its own channel is heard; *subscribe* sees to that.

        *heard* returns the id of the first message that came on the channel, empty without one. Raises DistributedError.
        """
        self._takers += 1
        self._nobody_takes.clear()
        try:
            await self._give_output(session, subscribe, heard, back)
        finally:
            self._takers -= 1
            if not self._takers:
                self._nobody_takes.set()

    async def _give_output(
        self, session: str, subscribe: Callable[[], Coroutine[Any, Any, None]], heard: Callable[[], str], back: Back
    ) -> None:
        loop = asyncio.get_running_loop()
        subscribing = asyncio.create_task(subscribe())
        records, after = Records(), delivered.got(self.kernel.id, session).output
        until: float | None = None  # when the agent has heard what came first on the session's own channel
        target: int | None = None  # what it had heard by then, by number
        moved = loop.time()
        try:
            while True:
                if subscribing.done() and not heard() and loop.time() - self._away_at < _PATIENCE:
                    subscribing.result()
                    # Its host was away: nothing could be heard.
                    subscribing, until, target = asyncio.create_task(subscribe()), None, None
                if subscribing.done() and until is None:
                    until = loop.time() + _OVERLAP
                part = await self._take("", records.position, "" if records.position else after)
                try:
                    for number, kept in enumerate(records.take(part)):
                        await back.take(kept, self._limit)
                        if number % _AT_ONCE == 0:
                            await asyncio.sleep(0)  # the loop is everybody's
                    if len(back.ids) > _MOST:
                        raise Malformed(f"more than {_MOST} messages")
                except Malformed as error:
                    log.warning("kernel %s: what was kept of its output is malformed: %s", self.kernel.id, error)
                    back.tell_broken()
                    return
                is_late = until is not None and loop.time() > until
                if is_late and target is None and part.numbered:
                    target = part.numbered
                # A kernel may print faster than this client takes it, so that there is never all that was kept.
                is_over = heard() in back.ids or (target is not None and records.number >= target)
                if part.is_all:
                    is_over = is_over or is_late or not heard()
                if subscribing.done() and until is not None and is_over:
                    subscribing.result()
                    return
                if part.is_all:
                    moved = loop.time()
                    await asyncio.wait({subscribing}, timeout=_AGAIN)
                    if subscribing.done():
                        await asyncio.sleep(_AGAIN / 3)
                elif part.position == part.start:  # the agent does not listen itself yet, or its disk is slow
                    if loop.time() - moved > _PATIENCE:
                        raise HostUnresponsive(
                            f"the agent has not given any of it for {_PATIENCE:g} s", remedy="look into the agent's log"
                        )
                    await asyncio.sleep(_AGAIN)
                else:
                    moved = loop.time()
        finally:
            subscribing.cancel()
            # What it does at its end must not come after what the caller does with the channel next: nobody would read it.
            await asyncio.wait({subscribing})

    async def give_replies(self, session: str, give: Give) -> None:
        """Give *session* the replies of the kernel to what it asked the earlier process for.

        Those that it has got already are known by their ids, but for the first ones where there were many: it got them in their
        order, so that these are before one that is known. What is taken is kept here until it is given: the agent forgets it.
        """
        async with self._locks.setdefault(session, asyncio.Lock()):
            records = self._records.setdefault(session, Records())
            known = delivered.got(self.kernel.id, session).replies
            wanted = self._replies.setdefault(session, deque())
            is_all = False
            while not is_all:
                try:
                    part = await self._take(session, records.position)
                    for kept in records.take(part):
                        header = _header(kept.parts)
                        if header.get("msg_id") in known:
                            if len(known) == known.maxlen:
                                wanted.clear()
                        elif header and header.get("msg_type") != "kernel_info_reply":
                            wanted.append(kept.parts)
                except (DistributedError, Malformed) as error:
                    if not isinstance(error, KernelGone):
                        log.warning("kernel %s: replies that were kept cannot be taken: %s", self.kernel.id, error)
                    return
                is_all = part.is_all
            while wanted:
                await give("shell", wanted[0])
                wanted.popleft()


class Back:
    """One session that is back, and is given what was kept."""

    def __init__(self, give: Give, tell: Tell) -> None:
        self.ids: set[str] = set()
        """The ids of all messages that were taken."""
        self.skipped: set[str] = set()
        """Those of them that it was not given: answers to kernel_info_request, its own on its own channel among them."""
        self.given = 0
        self.state = ""
        """Whether the kernel runs a cell, as far as it has said: busy or idle; empty: nothing was heard."""
        self._give = give
        self._tell = tell
        self._cell: dict[str, Any] = {}  # the header of the request that the last message belonged to

    def unneeded(self) -> set[str]:
        """Return the ids of the messages that its own channel need not bring any more."""
        return self.ids - self.skipped

    def tell_broken(self) -> None:
        """Say that what follows is missing."""
        self._tell("Output may be missing here: what the node kept of it cannot be read.", self._cell)

    async def take(self, kept: Kept, limit: int) -> None:
        """Give the session one message, or say what is missing."""
        parent = header_of(parent_of(kept.parts))
        if kept.lost:
            self._tell(
                f"{kept.lost} messages are missing here: the node could not keep them while the {calls_itself} was away "
                f"(it keeps {limit >> 20} MiB for each kernel, Distributed.kept_output_limit, and what its disk takes).",
                self._cell or parent,
            )
        if kept.unheard is not None:
            self._tell(
                f"Output may be missing here: for up to {kept.unheard:.1f} s neither {calls_itself} nor agent was there to "
                "hear it.",
                self._cell or parent,
            )
        if not kept.parts:
            return
        header = _header(kept.parts)
        name = header.get("msg_id")
        if not isinstance(name, str) or name in self.ids:
            return
        self.ids.add(name)
        # The server's own questions, whose answers would show a kernel as idle that runs a cell.
        if parent.get("msg_type") == "kernel_info_request":
            self.skipped.add(name)
            return
        self._cell = parent or self._cell
        if parent.get("msg_type") == "execute_request":
            # What comes behind the idle of a cell (a thread of its own prints on) does not say that it runs.
            if says(kept.parts, "idle"):
                self.state = "idle"
            elif not self.state or says(kept.parts, "busy"):
                self.state = "busy"
        self.given += 1
        await self._give("iopub", kept.parts)


def _header(parts: list[bytes]) -> dict[str, Any]:
    place = parts.index(DELIM) + 2 if DELIM in parts else len(parts)
    return header_of(parts[place]) if place < len(parts) else {}


def says(parts: list[bytes], state: str) -> bool:
    """Return True if the message is the kernel's word that it is in *state*."""
    content = parts[-1] if parts else b""
    return _header(parts).get("msg_type") == "status" and f'"{state}"'.encode() in content


def id_of(parts: list[bytes]) -> str:
    """Return the id of a kernel's message, empty where it has none."""
    return str(_header(parts).get("msg_id", ""))


def note_there(kernel_id: str, session: str) -> None:
    """Note that *session* is there, whatever it has got: it is waited for if the server should end now."""
    delivered.note(kernel_id, session, "", [])


def note_gone(kernel_id: str, session: str) -> None:
    """Note that *session* has ended: nobody comes back with it."""
    found = _adopted.get(kernel_id)
    if found is not None:
        found.has_come_back(session)
    delivered.forget(kernel_id, session)


def note_delivered(kernel_id: str, session: str, messages: Iterable[tuple[str, list[bytes]]]) -> None:
    """Note that *session* has got *messages*, in their order."""
    if delivered.is_kept:
        output: list[bytes] = []
        replies: list[str] = []
        for channel, parts in messages:
            if channel == "iopub":
                output = parts
            elif channel == "shell":
                replies.append(id_of(parts))
        if output or replies:
            delivered.note(kernel_id, session, id_of(output) if output else "", replies)


class Cells:
    """Whether a kernel runs a cell, for the server's *manager* of it, which is not to take other signs for that.

    The server asks kernels who they are, and gets a busy and an idle of their own for that; on the control channel beside a cell
    that runs. An answer on the shell channel says that none does.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._is_known = False  # since the kernel has said it to this process
        stream = manager._activity_stream
        self._record = stream._recv_callback
        stream.on_recv(self._take)

    def _take(self, parts: list[bytes]) -> None:
        parent = header_of(parent_of(parts))
        is_idle = says(parts, "idle")
        if parent.get("msg_type") == "kernel_info_request":
            channel = _questions.get(str(parent.get("msg_id")), "")
            is_sure = channel == "shell"
            if not is_idle or channel == "control" or (self._manager.execution_state == "busy" and not is_sure):
                return
            self._is_known = self._is_known or is_sure
        elif parent.get("msg_type") == "execute_request" and (is_idle or says(parts, "busy")):
            self._is_known = True
        self._record(parts)

    def note_running(self) -> None:
        """Note that there are signs of a running cell, unless the kernel has said itself what it does."""
        if not self._is_known:
            self._manager.execution_state = "busy"


_questions: dict[str, str] = {}
"""The channel of each kernel_info_request of this process, by its id; the latest alone."""


def note_question(channel: str, request: dict[str, Any] | None) -> str:
    """Note that the server has asked a kernel on *channel* who it is; return the id of that *request*, empty if none was sent."""
    if request is None:
        return ""
    name = str(request["header"]["msg_id"])
    _questions[name] = channel
    while len(_questions) > _QUESTIONS:
        del _questions[next(iter(_questions))]
    return name


_adopted: dict[str, Adopted] = {}


def adopted(kernel_id: str) -> Adopted | None:
    """Return what is known of a kernel that an earlier process had, None for others."""
    return _adopted.get(kernel_id)


def adopt(cluster: Cluster, kernel: RemoteKernel, manager: Any) -> None:
    """Note that *kernel*, the server's *manager* of it, was found again; before the server's loop runs, or on it."""
    delivered.read_again(kernel.id)  # another gateway may have had it, and written them
    found = _adopted[kernel.id] = Adopted(cluster, kernel, cluster.settings.kept_output_limit, manager)
    manager.loop.add_callback(found.begin)


def forget(kernel_id: str) -> None:
    """*kernel_id* has ended, or is about to be started again: what was kept of it is of no more use."""
    found = _adopted.get(kernel_id)
    if found is not None:
        found.end()
    delivered.forget(kernel_id)


def let_go(kernel_id: str) -> None:
    """*kernel_id* is another gateway's now, and so are its sessions, whose notes stay where that one finds them."""
    found = _adopted.get(kernel_id)
    if found is not None:
        found.end()
    delivered.read_again(kernel_id)
