"""A client that connects to its kernel again finds what it left: jupyter_server's websocket handler, with other ends.

A client names its session in the websocket's address. When it comes again with the same session, the connection before may be
open still: JupyterLab's server opens one, drops it and opens the next within a second; a laptop wakes up, and nothing has
told the gateway that the old connection is dead. jupyter_server 1.x then closes the old connection and waits for its end:
five seconds for a peer that is gone, or for ever if it was not open yet. At its end the old connection leaves its channels to
the next, but goes on using them: its first handshake with the kernel takes the next one's callbacks away, and messages end in
a closed websocket. A connection that was never open leaves no channels at all (`KeyError: 'iopub'`). Channels that are made
instead have the session for their ZMQ identity, as the old ones had, and a kernel's ROUTER ignores the second of one name.
In each case the first cell of a notebook waits for ever.

    arrives   ──►  asks the kernel  ──►  opens             ──►  serves                   ──►  ends
    is now the     (pre_get, up to       takes what is left     keeps each message until     leaves its channels and what
    latest of      a minute)             of its session, or     the client's pong says       was not delivered to the next
    its session                          makes channels         that it came                 of its session, or closes them

Here the connection before serves until the next one opens. Then the next takes over, in one step of the loop:

- its channels, so what is in them or on its way to them stays in order, and a reply finds the way that its request came;
- what was sent to it, and the client did not confirm. A connection that is cut without a word swallows all that is sent for
  minutes, and only the client's answers to our pings tell what came. A client that is still there is asked once more before;
  what one that was cut off got in its last 50 ms, and could not confirm any more, comes twice.

The first connection of a session after a restart of the gateway gets what the agent kept meanwhile (`kept_output`).

A connection that ends before the next one comes leaves both behind: if the kernel has no other client in jupyter_server's own
buffer, which gets a bound here, and otherwise, if it was cut off, in one of ours (`_Away`).

The order of arrival counts: a connection that was slower than a later one of its session does not serve. But of two that come
within seconds of each other (twins) the second may have overtaken the first, on its way or in a thread that resolves names; and
one that JupyterLab's server has dropped stays open, and answers pings like any other. So a twin that was replaced stays open
for a moment. If it says something it is the client's, and gets everything back: a dropped one says nothing. Channels are used
as long as none is closed and the kernel has the ports that they were made for.

Rejected: new channels for each connection, which lose the answer to whatever was asked over the old ones; waiting for the end
of the old connection, with whatever deadline, which is waiting for a peer that is gone.

All of it replaces methods of a class of jupyter_server 1.24, the last release that Enterprise Gateway 3.x accepts. `install`
compares the text of each with the one that we know, and leaves the class as it is where one differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import math
import uuid
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakValueDictionary

from enterprise_gateway.services.kernels import handlers
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler
from traitlets import log

from eg_distributed.errors import DistributedError

from . import kept_output, notebooks
from .frames import header_of, parent_of
from .kept_messages import KEPT_BYTES, Kept, Message, joined, size_of
from .notebooks import clients
from .slow_clients import Pace, lose_nothing_by_flush, with_short_queue

KNOWN: Final = {
    "_on_zmq_reply": "3db0af7871f78ab87593e4dbb3114d99ba12407e66a083ce49b2c4eeadbd78e5",
    "_register_session": "f74620e4a220f0fb9735a07d820bcf7bede836dac7084165526790b6cf0d74a8",
    "create_stream": "c5ad658b20bf05a074afcdae12703acfaf5f1fde3f2df60df3b1c52f3556375b",
    "get": "38c7fda94fa31272bdbef357fabaa6c42ba010eebf80415be4369d8b870aa1f3",
    "on_close": "17beefe9ce92a2d61dc62a86b7cb285cf7f45f1242702ec40f13c69a260377bb",
    "on_message": "608fa71766c406853fd297a7fb572ff9f294477768db23703b7f9cf9e8b8657d",
    "open": "a0c530414ade4f55a0f5b9994f58d803ff419021a688452bc8410b03f93b1e73",
    "request_kernel_info": "b4edbc7038bd64d7cbc4e999c226ec605111ea5218d79b7b7ccbe734fce06a18",
}
"""The methods that are replaced or wrapped, and the sha256 of each one's text in jupyter_server 1.24.0."""
_NUDGE_AGAIN: Final = 0.5
"""Seconds without an answer after which a kernel is asked again: its sockets may have been connected after the question."""
_CONFIRM_DELAY: Final = 0.05
"""Seconds between a message and the ping that asks whether it came: one ping for all that is sent meanwhile."""
_MARK: Final = b"came:"
"""How our pings begin; the empty ones are jupyter_server's, to find dead peers."""
_TWINS: Final = 5.0
"""Seconds between two arrivals of one session up to which their order says nothing, and for which the one that was replaced
stays open."""
_LAST_WORD: Final = 0.25
"""Seconds that a client has to confirm what it got from a connection that is about to be replaced; a dead one takes them all."""
_LAST_WORD_OF_THE_LIVING: Final = 3.0
"""The same for one that was heard lately: it is far away, or its machine is busy. What it can't confirm comes twice."""
_LATELY: Final = 5.0
"""Seconds since it was heard within which a client is taken to be there."""
_AWAY_SECONDS: Final = 600.0
"""How long channels wait for a session that was cut off while other clients of the kernel stay."""
_RETURN_SECONDS: Final = 10.0
"""The same for a session that ended its connection itself: a front end that connects anew closes the old connection first."""
_LOOK_AGAIN: Final = 5.0
"""Seconds between two looks whether the kernel of such channels is still there."""
_LAST_NUDGE: Final = 5.0
"""Seconds between two questions, at most, to a kernel that is asked patiently."""
_SHELL_LATE: Final = 1.0
"""Seconds after an answer on the control channel within which a kernel that runs no cell answers on the shell channel."""
_GIVEN_SECONDS: Final = 30.0
"""How long a session's own channel may bring what it was given already."""
_CLOSE_FRAME: Final = 0x8
_GOODBYE: Final = "said_goodbye"
"""The key, in jupyter_server's buffer for a kernel without clients, of whether its last one ended the connection itself."""


class _Connection:
    """What we note of one websocket's handler, from its arrival to its end."""

    def __init__(self, handler: Any) -> None:
        self.arrived = asyncio.get_running_loop().time()
        # A handler that was open when the patch came has channels, and is as good as ours.
        self.opened: bool = bool(handler.channels)
        """The kernel counts it among its clients, and it has channels."""
        self.serving: bool = self.opened
        """The kernel answered: what it says goes to the client at once."""
        self.replaced = False
        """A later connection of the session has its channels."""
        self.lost_kernel = False
        """Another gateway has the kernel: nothing more is passed on, since what comes before it may be missing here."""
        self.leaving: asyncio.TimerHandle | None = None
        """When one that was replaced, and may yet be the client's, is closed."""
        self.closed = False
        """Its end was noted."""
        self._goodbye = False
        self.protocol: Any = None
        """tornado's half of the websocket, which the handler forgets before it says that it ended."""
        self.unsent = Kept()
        """What is for the client, and was not written yet."""
        self.unconfirmed = Kept()
        """What was written, and the client has not confirmed."""
        self.pace = Pace(handler, self, lambda: _ask_what_came(handler, self), lambda: _renew_output(handler, self))
        self.nudging: asyncio.Task[None] | None = None
        self.asking: asyncio.TimerHandle | None = None
        """The next ping that asks what came."""
        self.heard = -math.inf
        """When the client last confirmed or said something, on the loop's clock."""
        self.first_heard = ""
        """The id of the first message on its iopub channel, while the kernel is asked who it is."""
        self.missed = ""
        """What is to be told in the next cell that is heard of."""
        self.given: set[str] = set()
        """The ids of messages that it has been given already, and that its own channel may still bring."""
        self.replying: set[asyncio.Task[None]] = set()
        """Take the kernel's replies to what was asked over the gateway's earlier process."""
        self.settled: asyncio.Future[None] | None = None
        """Done when all that was sent is confirmed; the next connection waits for it."""

    def left(self) -> Kept:
        """Hand over what the client did not get, as far as is known."""
        left = Kept()
        if self.said_goodbye():
            self.unconfirmed.clear()
        left.take(self.unconfirmed)  # which is numbered on: pongs of before may be on their way
        left.take(self.unsent)
        left.miss(self.missed)
        self.pace.forget()
        return left

    def said_goodbye(self) -> bool:
        """Return True if the client ended the connection itself, and so had read what we sent."""
        return self._goodbye

    def listen_for_goodbye(self, protocol: Any) -> None:
        """Note the client's close frame, of tornado's half of the websocket.

        tornado sets client_terminated for cuts as well, its close_code is None for a close without one, and the attribute that
        had the last frame is never set by its newer releases. One without this method says no goodbye: nothing is lost by that.
        """
        self.protocol = protocol
        handle = getattr(protocol, "_handle_message", None)
        if handle is None:
            return

        def noting_goodbye(opcode: int, data: bytes) -> Any:
            self._goodbye = self._goodbye or opcode == _CLOSE_FRAME
            return handle(opcode, data)

        protocol._handle_message = noting_goodbye

    def stop(self) -> None:
        """End what goes on for this connection."""
        self.serving = False
        self.pace.end()
        if self.nudging is not None:
            self.nudging.cancel()
        for task in self.replying:
            task.cancel()
        if self.asking is not None:
            self.asking.cancel()
            self.asking = None
        if self.leaving is not None:
            self.leaving.cancel()
            self.leaving = None
        if self.settled is not None and not self.settled.done():
            self.settled.set_result(None)


class _Away:
    """The channels of a session whose connection ended, and what comes on them, until it is back or for so many seconds."""

    def __init__(self, session_key: str, handler: Any, channels: dict[str, Any], kept: Kept, seconds: float) -> None:
        self.channels = channels
        self.kept = kept
        self._session_key = session_key
        self.kernel_id, self._manager = handler.kernel_id, handler.kernel_manager
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + seconds
        self._timer = self._loop.call_later(_LOOK_AGAIN, self._look)
        for channel, stream in channels.items():
            stream.on_recv(functools.partial(self._keep, channel))

    def _keep(self, channel: str, parts: list[bytes]) -> None:
        self.kept.append((channel, parts))

    def _look(self) -> None:
        if self.kernel_id in self._manager and self._loop.time() < self._until:
            self._timer = self._loop.call_later(_LOOK_AGAIN, self._look)
        else:
            _close_channels(self.channels)
            _away.pop(self._session_key, None)

    def taken(self) -> dict[str, Any]:
        """Return the channels, whose callbacks are the caller's from now on."""
        self._timer.cancel()
        return self.channels


_latest: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""The handler that arrived last, by session; the one that serves is in jupyter_server's `_open_sessions`."""


_away: dict[str, _Away] = {}
"""What waits for sessions that were cut off, by session; jupyter_server's own buffer is for a kernel without any client."""


def _of(handler: Any) -> _Connection:
    """Return what is noted of *handler*."""
    noted = vars(handler).get("_distributed")
    if not isinstance(noted, _Connection):
        noted = handler._distributed = _Connection(handler)
    return noted


def install() -> None:
    """Replace the ends of jupyter_server's websocket handler; called when our process proxy is imported, before other patches.

    Where a method's text is not the one that we know, nothing is replaced, and the log says so.
    """
    other = sorted(name for name, digest in KNOWN.items() if _digest(name) != digest)
    other += sorted((KNOWN.keys() | {"on_pong"}) & vars(handlers.ZMQChannelsHandler).keys() - {"get"})
    if other:
        log.get_logger().warning(
            "The websocket handler of this Enterprise Gateway or jupyter_server is not the one we know (%s differs), so it stays"
            " as it is: the first cell of a notebook in JupyterLab may wait for ever. Remedy: Enterprise Gateway 3.3.0 with"
            " jupyter_server 1.24.0.",
            ", ".join(other),
        )
        return
    ZMQChannelsHandler.get = _forgetting_at_its_end(ZMQChannelsHandler.get)
    ZMQChannelsHandler._register_session = _register_session
    ZMQChannelsHandler.request_kernel_info = _asking_on_control_too(ZMQChannelsHandler.request_kernel_info)
    ZMQChannelsHandler.create_stream = _create_stream
    ZMQChannelsHandler.open = _open
    ZMQChannelsHandler._on_zmq_reply = _keeping_until_confirmed(ZMQChannelsHandler._on_zmq_reply)
    ZMQChannelsHandler.on_message = _while_channels_are_open(ZMQChannelsHandler.on_message)
    ZMQChannelsHandler.on_pong = _on_pong
    ZMQChannelsHandler.on_close = _on_close


def _digest(name: str) -> str:
    """Return the sha256 of a method's text, empty where there is none to read."""
    try:
        return hashlib.sha256(inspect.getsource(getattr(ZMQChannelsHandler, name)).encode()).hexdigest()
    except (AttributeError, OSError, TypeError):
        return ""


# --- arrival


def _forgetting_at_its_end(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `get`, which lasts as long as the connection: one that fails before it is open has no other end."""

    @functools.wraps(original)
    async def get(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            await original(self, *args, **kwargs)
        finally:
            _forget(self)

    return get


def _forget(handler: Any) -> None:
    """Let an earlier connection of the session open, if *handler* was the latest."""
    session_key: str = handler.session_key
    if _latest.get(session_key) is handler:
        del _latest[session_key]


async def _register_session(self: Any) -> None:
    """Note that this connection is the latest of its session; the one before serves until this one opens."""
    self.session_key = f"{self.kernel_id}:{self.session.session}"
    _of(self)  # notes when it arrived
    _latest[self.session_key] = self


def _asking_on_control_too(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `request_kernel_info`: a kernel that runs a cell answers on its control channel only.

    A gateway that was started again knows of no answer, and would have a client wait a minute for the cell's end.
    """

    @functools.wraps(original)
    def request_kernel_info(self: Any) -> Any:
        answered = original(self)
        if self.kernel_info_channel is not None and not answered.done():
            control = self.kernel_manager.connect_control(self.kernel_id)
            control.on_recv(self._handle_kernel_info_reply)
            kept_output.note_question("control", self.session.send(control, "kernel_info_request"))
            answered.add_done_callback(lambda _: control.close())
        return answered

    return request_kernel_info


# --- opening


def _create_stream(self: Any) -> None:
    """Make the four channels, under a name that no other connection has.

    jupyter_server names them by the session. A kernel may learn of the end of a connection later than of the next one's
    beginning, and ignores the second of one name.
    """
    identity = uuid.uuid4().hex.encode()  # of shell and stdin alike: the kernel asks for input where the cell came from
    for channel in ("iopub", "shell", "control", "stdin"):
        _connect(self, channel, identity)


def _connect(handler: Any, channel: str, identity: bytes) -> None:
    """Give *handler* a channel to the kernel as it is now."""
    kernel = handler.kernel_manager.get_kernel(handler.kernel_id)
    connect = getattr(handler.kernel_manager, f"connect_{channel}")
    if channel == "iopub":
        with with_short_queue(kernel.context):
            stream = connect(handler.kernel_id, identity=identity)
        lose_nothing_by_flush(stream)
    else:
        stream = connect(handler.kernel_id, identity=identity)
    stream.channel = channel
    stream.ports, stream.process = kernel.ports, kernel.kernel
    handler.channels[channel] = stream


async def _open(self: Any, kernel_id: str) -> None:
    """Take over what is left of the session, or make channels; then serve, as soon as the kernel answers on them."""
    super(ZMQChannelsHandler, self).open()  # starts the pings that find dead peers
    connection = _of(self)
    connection.listen_for_goodbye(self.ws_connection)
    await _begin(self, connection)


async def _begin(handler: Any, connection: _Connection) -> None:
    """Have *handler* serve, unless a later one of its session has come meanwhile."""
    manager, kernel_id = handler.kernel_manager, handler.kernel_id
    predecessor = handler._open_sessions.get(handler.session_key)
    if predecessor is not None:
        await settle(predecessor)
    latest = _latest.get(handler.session_key, handler)
    if connection.closed or latest is not handler:
        # Its client has gone already, or has come again since.
        handler.log.info("Not opening a connection that a later one has replaced: %s", handler.session_key)
        if predecessor is not None and _of(predecessor).serving:
            _serve(predecessor, _of(predecessor))
        _dismiss(handler, latest)
        return
    try:
        serving = _take_over(handler, connection)
    except HTTPError as error:
        # The kernel ended meanwhile. Websockets know no such answer, so the connection ends as well.
        handler.log.warning("Error opening stream: %s", error)
        handler.close()
        return
    manager.add_restart_callback(kernel_id, handler.on_kernel_restarted)
    manager.add_restart_callback(kernel_id, handler.on_restart_failed, "dead")
    if not serving:
        adopted = kept_output.adopted(kernel_id)
        if adopted is not None and adopted.waits_for(handler.session.session):
            preparing = _give_kept(handler, connection, adopted)
        else:
            preparing = _nudge(handler, connection)
        connection.nudging = asyncio.create_task(preparing)
        await asyncio.wait({connection.nudging})
        if not connection.nudging.cancelled():
            connection.nudging.result()
        connection.nudging = None
    now = _of(handler)  # much may have happened meanwhile
    if not (now.closed or now.replaced or now.lost_kernel):
        if (adopted := kept_output.adopted(kernel_id)) is not None:
            _add_missed(connection, adopted.missed(handler.session.session))
        _serve(handler, connection)


def _take_over(self: Any, connection: _Connection) -> bool:
    """Give *self* channels, and what its session did not get so far; return True if the kernel has answered on them.

    Raise tornado's HTTPError if the kernel has ended.
    """
    manager, kernel_id = self.kernel_manager, self.kernel_id
    kernel = manager.get_kernel(kernel_id)
    self.session.key = kernel.session.key  # a restart while this connection was on its way may have changed it
    manager.notify_connect(kernel_id)
    connection.opened = True
    predecessor = self._open_sessions.get(self.session_key)
    self._open_sessions[self.session_key] = self
    serving = False
    _note_if_replaced(manager, kernel_id, self.session_key)
    buffered = manager.get_buffer(kernel_id, self.session_key)  # drops what is there of another session
    if buffered:
        self.log.info("Restoring connection for %s", self.session_key)
        self.channels = buffered["channels"]
        _keep_buffered(connection.unsent, buffered["buffer"])
        serving = True
    away = _away.pop(self.session_key, None)
    if away:
        self.log.info("Restoring connection for %s", self.session_key)
        _close_channels(self.channels)
        self.channels, serving = away.taken(), True
        connection.unsent.take(away.kept)
    if predecessor is not None and predecessor is not self and _of(predecessor).opened:
        self.log.info("Replacing connection: %s", self.session_key)
        serving = _of(predecessor).serving
        _close_channels(self.channels)
        self.channels = _hand_over(predecessor, self, connection.unsent)
    if not _usable(self.channels, kernel.ports):
        _close_channels(self.channels)
        self.channels = {}
        self.create_stream()
        return False
    adopted = kept_output.adopted(kernel_id)
    if adopted is not None and adopted.waits_for(self.session.session):
        serving = False  # a connection before this one may have ended while it was given what was kept
    # ZMQ connects to a kernel that was started again on the same ports, but not at once.
    iopub = self.channels["iopub"]
    serving = serving and getattr(iopub, "process", None) is kernel.kernel
    iopub.process = kernel.kernel
    return serving


def _note_if_replaced(manager: Any, kernel_id: str, session_key: str) -> None:
    """Note the end of a session that said goodbye, and is followed by another one: a page was loaded anew."""
    waiting = manager._kernel_buffers.get(kernel_id, {})
    if waiting.get(_GOODBYE) and waiting["session_key"] != session_key:
        kept_output.note_gone(kernel_id, waiting["session_key"].partition(":")[2])


def _keep_buffered(kept: Kept, buffered: Any) -> None:
    """Keep what came while no client was there: ours, or jupyter_server's list from before the patch."""
    if isinstance(buffered, Kept):
        kept.take(buffered)
    else:
        for message in buffered:
            kept.append(message)


def _usable(channels: dict[str, Any], ports: list[int]) -> bool:
    """Return True if all channels are there, open, and lead to the kernel's *ports* of today."""
    return len(channels) == 4 and all(
        not stream.closed() and getattr(stream, "ports", ports) == ports for stream in channels.values()
    )


async def settle(handler: Any) -> None:
    """Send no more to *handler*'s client, and give it a moment to confirm what it has: that need not be sent again.

    What comes meanwhile waits in the channels' sockets. One whose client is there answers within a round trip.
    """
    connection = _of(handler)
    if not connection.serving:
        return
    connection.pace.end()
    for stream in handler.channels.values():
        if not stream.closed():
            stream.on_recv(None)
    if connection.unconfirmed:
        loop = asyncio.get_running_loop()
        connection.settled = loop.create_future()
        _ask_what_came(handler, connection)
        patience = _LAST_WORD_OF_THE_LIVING if loop.time() - connection.heard < _LATELY else _LAST_WORD
        await asyncio.wait({connection.settled}, timeout=patience)
        connection.settled = None


def _hand_over(handler: Any, successor: Any, unsent: Kept) -> dict[str, Any]:
    """Return the channels of *handler*, which serves no more, and add to *unsent* what its client did not get.

    What its client had sent already is still passed on: the closing handshake comes after it, and both use the same channels.
    """
    connection = _of(handler)
    connection.stop()
    connection.opened = False
    for stream in handler.channels.values():
        if not stream.closed():
            stream.on_recv(None)
    unsent.take(connection.left())
    _of(successor).given, _of(successor).missed = connection.given, connection.missed
    _sign_off(handler)
    _dismiss(handler, successor)
    channels: dict[str, Any] = handler.channels
    return channels


def _dismiss(handler: Any, successor: Any) -> None:
    """Close *handler*'s connection, since *successor* serves; if they are twins, after a moment in which it may say something."""
    connection = _of(handler)
    connection.replaced = True
    apart = abs(_of(successor).arrived - connection.arrived)
    if connection.closed or apart > _TWINS:
        handler.close()  # tornado cuts it after five seconds without an answer; no one waits for that
    else:
        connection.leaving = asyncio.get_running_loop().call_later(_TWINS, _end_twin, handler, connection)


def _end_twin(handler: Any, connection: _Connection) -> None:
    """Close a connection that had its moment, and said nothing."""
    connection.leaving = None
    handler.close()


async def _come_back(handler: Any, connection: _Connection) -> None:
    """Have *handler* serve again, which was replaced and is the client's after all."""
    handler.log.info("A connection that was replaced is the client's after all: %s", handler.session_key)
    connection.stop()
    connection.replaced = False
    _latest[handler.session_key] = handler
    handler.channels = {}  # they are its successor's now
    await _begin(handler, connection)


def _sign_off(handler: Any) -> None:
    """Have the kernel count *handler* among its clients no more."""
    manager, kernel_id = handler.kernel_manager, handler.kernel_id
    if kernel_id in manager:
        manager.notify_disconnect(kernel_id)
        manager.remove_restart_callback(kernel_id, handler.on_kernel_restarted)
        manager.remove_restart_callback(kernel_id, handler.on_restart_failed, "dead")


def _close_channels(channels: dict[str, Any]) -> None:
    """Close each channel that is open."""
    for stream in channels.values():
        if not stream.closed():
            stream.on_recv(None)
            stream.close()


async def _give_kept(handler: Any, connection: _Connection, adopted: kept_output.Adopted) -> None:
    """Give a session of the gateway's earlier process what the agent kept, until its own channels bring what follows."""
    session = handler.session.session
    # The agent has heard that as well, and what comes first is to be given first.
    connection.unsent = connection.unsent.without(lambda message: message[0] == "iopub")

    async def give(channel: str, parts: list[bytes]) -> None:
        _pass_on(handler, channel, parts)
        await connection.pace.catch_up()  # faster than it takes them, what it may need again would give way

    def tell(text: str, cell: dict[str, Any]) -> None:
        if not cell:
            _add_missed(connection, text)
            return
        with contextlib.suppress(WebSocketClosedError):
            handler.write_stderr(text, cell)

    back = kept_output.Back(give, tell)
    nudge = functools.partial(_nudge, handler, connection, patiently=True)
    is_given = True
    try:
        await adopted.give_output(session, nudge, lambda: connection.first_heard, back)
    except DistributedError as error:
        if adopted.kernel.taken_by:
            connection.lost_kernel = True
            return
        handler.log.warning("Kernel %s: what was kept of its output cannot be taken: %s", handler.kernel_id, error)
        tell(f"What the kernel printed while the gateway was away cannot be shown: {error}", {})
        is_given = False
    if back.given:
        handler.log.info("Gave %s kept messages to %s", back.given, handler.session_key)
    if connection.closed or connection.replaced:
        return  # what it did not confirm, the next one is given again
    given = back.unneeded()
    connection.unsent = connection.unsent.without(lambda each: kept_output.id_of(each[1]) in given)
    connection.given = given
    asyncio.get_running_loop().call_later(_GIVEN_SECONDS, _forget_given, connection)
    if back.state == "busy":
        adopted.note_running()  # what said so came before this process
    if is_given:
        adopted.has_come_back(session)


def _forget_given(connection: _Connection) -> None:
    """Forget what a session was given, once its own channel has brought what was under way then."""
    if connection.pace.lags:
        asyncio.get_running_loop().call_later(_GIVEN_SECONDS, _forget_given, connection)
    else:
        connection.given.clear()


async def _nudge(handler: Any, connection: _Connection, *, patiently: bool = False) -> None:
    """Ask the kernel who it is until it answers and its output comes: then the subscription is there, and no output is missed.

    Unlike jupyter_server's, this ends for good when the channels go to another connection, and keeps output that is not about
    its own questions. After `kernel_info_timeout` the client is served all the same: cut off, it would come again for the same.
    *patiently*: also while it runs a cell, and less often, since somebody else sees to the client meanwhile.
    """
    manager, kernel_id, iopub = handler.kernel_manager, handler.kernel_id, handler.channels["iopub"]
    kernel, loop = manager.get_kernel(kernel_id), asyncio.get_running_loop()
    if getattr(kernel, "execution_state", None) == "busy" and not patiently:
        return  # it would answer at the end of the cell
    on_shell, answered, heard = loop.create_future(), loop.create_future(), loop.create_future()
    questions: set[str] = set()

    def settle(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def on_shell_reply(_: object) -> None:
        settle(on_shell)
        settle(answered)

    def on_iopub(parts: list[bytes]) -> None:
        settle(heard)
        connection.first_heard = connection.first_heard or kept_output.id_of(parts)
        if header_of(parent_of(parts)).get("msg_id") not in questions:
            connection.unsent.append(("iopub", parts))
        elif not connection.unsent and not patiently:
            # What was there before is none of its business: should the gateway end now, it is given what comes from here on.
            _note_delivered(handler, [("iopub", parts)])

    # Channels of its own: the client is not to see the answers.
    asked = {"shell": kernel.connect_shell(), "control": kernel.connect_control()}
    deadline = loop.time() + handler.kernel_info_timeout
    again = _NUDGE_AGAIN
    try:
        iopub.on_recv(on_iopub)
        asked["shell"].on_recv(on_shell_reply)
        asked["control"].on_recv(lambda _: settle(answered))
        while not (answered.done() and heard.done()):
            gone = connection.closed or connection.protocol.is_closing() or kernel_id not in manager
            if gone or any(stream.closed() for stream in (*asked.values(), iopub)):
                return
            if loop.time() > deadline:
                handler.log.warning("Kernel %s does not answer; serving its client all the same", kernel_id)
                return
            for channel, stream in asked.items():
                request = handler.session.send(stream, "kernel_info_request")
                questions.add(kept_output.note_question(channel, request))
            await asyncio.wait({answered, heard}, timeout=again)
            again = min(2 * again, _LAST_NUDGE) if patiently else again
    finally:
        adopted = kept_output.adopted(kernel_id)
        if adopted is not None and answered.done() and not on_shell.done():
            loop.call_later(_SHELL_LATE, _end_questions, asked, on_shell, adopted)
        else:
            _end_questions(asked)
        if not (connection.replaced or connection.closed or iopub.closed()):
            iopub.stop_on_recv()  # what comes now waits in the socket until `_serve`


def _end_questions(
    asked: dict[str, Any], on_shell: asyncio.Future[None] | None = None, adopted: kept_output.Adopted | None = None
) -> None:
    """Close channels that were for questions alone; a kernel of before that has answered on one of two by now runs a cell."""
    for stream in asked.values():
        if not stream.closed():
            stream.close()
    if adopted is not None and on_shell is not None and not on_shell.done():
        adopted.note_running()


# --- service


def _serve(handler: Any, connection: _Connection) -> None:
    """Send what is kept for the client, then all that comes."""
    connection.serving = True
    if handler.kernel_id in handler.kernel_manager:
        kept_output.note_there(handler.kernel_id, handler.session.session)
    kept, connection.unsent = connection.unsent, Kept()
    _add_missed(connection, kept.missed)
    if kept:
        handler.log.info("Replaying %s kept messages for %s", len(kept), handler.session_key)
    if kept.lost:
        _tell_loss(handler, connection, kept)
    for stream in handler.channels.values():
        stream.on_recv_stream(handler._on_zmq_reply)  # comes into force when the loop goes on
    for channel, parts in kept:
        _pass_on(handler, channel, parts)
    give_replies(handler)


def _renew_output(handler: Any, connection: _Connection) -> None:
    """Have *handler* hear the kernel that was started again; what the one before had printed last waits for a slow client."""
    if not connection.serving or handler.kernel_id not in handler.kernel_manager:
        return
    connection.serving = False
    _add_missed(
        connection, "Output may be missing here: what came before the kernel was started again was not taken in time."
    )
    _close_channels({"iopub": handler.channels["iopub"]})
    _connect(handler, "iopub", uuid.uuid4().hex.encode())
    connection.nudging = asyncio.create_task(_nudge(handler, connection))
    connection.nudging.add_done_callback(lambda nudging: _serve_renewed(handler, connection, nudging))


def _serve_renewed(handler: Any, connection: _Connection, nudging: asyncio.Task[None]) -> None:
    """Serve again what comes of the kernel, unless the connection has ended meanwhile, or another one has its channels."""
    if nudging.cancelled() or connection.closed or connection.replaced:
        return
    connection.nudging = None
    if nudging.exception() is not None:
        handler.log.warning("Kernel %s: its client hears it no more", handler.kernel_id, exc_info=nudging.exception())
        handler.close()  # it comes again
        return
    _serve(handler, connection)


def note_dropped(kernel_id: str) -> None:
    """Have those clients told that lag behind: their kernel may have dropped output. Called on the gateway's loop."""
    for handler in clients(kernel_id):
        connection = _of(handler)
        if connection.pace.lags:
            _add_missed(
                connection,
                "Output may be missing here: it came faster than this client took it, for longer than its node could keep it.",
            )


def _add_missed(connection: _Connection, text: str) -> None:
    """Have *text* told in the next cell that is heard of, once."""
    connection.missed = joined(connection.missed, text)


def _pass_on(handler: Any, channel: str, parts: list[bytes]) -> None:
    """Send a client a message that was kept for it."""
    try:
        handler._on_zmq_reply(handler.channels[channel], parts)
    except Exception:
        # Whatever is wrong with one message (of before a restart that changed the key, say) is an error of that one.
        handler.log.warning("A message on %s cannot be passed on", channel, exc_info=True)


def give_replies(handler: Any) -> None:
    """Give a client that is served the replies to what it asked the gateway's earlier process for, if there are any."""
    connection, adopted = _of(handler), kept_output.adopted(handler.kernel_id)
    if adopted is None or not connection.serving:
        return

    async def give(channel: str, parts: list[bytes]) -> None:
        _pass_on(handler, channel, parts)

    task = asyncio.create_task(adopted.give_replies(handler.session.session, give))
    connection.replying.add(task)
    task.add_done_callback(connection.replying.discard)


def _tell_loss(handler: Any, connection: _Connection, kept: Kept) -> None:
    """Say in the cell's own output how many messages are missing."""
    if handler.ws_connection is None or handler.ws_connection.is_closing():
        connection.unsent.lost += kept.lost  # for the next connection to tell
        return
    parents = (header_of(parent_of(parts)) for channel, parts in kept if channel == "iopub")
    text = f"{kept.lost} messages are missing here: more than {KEPT_BYTES >> 20} MiB came while the client was away."
    handler.write_stderr(text, next(parents, {}))


def tell_loss(manager: Any, kernel_id: str, text: str) -> None:
    """Say in each notebook of the kernel that output is missing; *manager* has the kernels. Called on the gateway's loop.

    It goes the way of the kernel's own output, so that a client that is cut off just now is told as well. One whose connection
    has ended, or has just begun, is told in the next cell that it hears of.
    """
    for handler in notebooks.clients(kernel_id):
        connection, cell = _of(handler), notebooks.last_cell(handler)
        iopub = handler.channels.get("iopub")
        if (
            connection.serving
            and cell.get("msg_type") == "execute_request"
            and iopub is not None
            and not iopub.closed()
        ):
            iopub.flush()  # what the kernel itself had said comes first
            said = handler.session.msg("stream", {"name": "stderr", "text": f"{text}\n"}, parent=cell)
            _pass_on(handler, "iopub", handler.session.serialize(said, ident=b"stream.stderr"))
        else:
            _add_missed(connection, text)
    for away in _away.values():
        if away.kernel_id == kernel_id:
            away.kept.miss(text)
    buffered = manager._kernel_buffers.get(kernel_id, {}).get("buffer")
    if isinstance(buffered, Kept):
        buffered.miss(text)


def _tell_missed(handler: Any, connection: _Connection, parent: dict[str, Any]) -> None:
    """Say what is missing as soon as a cell is heard of: nobody sees what belongs to none."""
    if parent.get("msg_type") == "execute_request":
        text, connection.missed = connection.missed, ""
        with contextlib.suppress(WebSocketClosedError):
            handler.write_stderr(text, parent)


def _keeping_until_confirmed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `_on_zmq_reply`: what is written to a client is kept until it says that it came."""

    @functools.wraps(original)
    def _on_zmq_reply(self: Any, stream: Any, msg_list: list[bytes]) -> None:
        connection = _of(self)
        message = (stream.channel, msg_list)
        if connection.closed or self.ws_connection is None or self.ws_connection.is_closing():
            connection.unsent.append(message)  # its end is on its way
            return
        if connection.given and stream.channel == "iopub" and kept_output.id_of(msg_list) in connection.given:
            return  # the agent's copy has come before
        if connection.missed and stream.channel == "iopub":
            _tell_missed(self, connection, header_of(parent_of(msg_list)))
        connection.unconfirmed.append(message)
        size = size_of(msg_list)
        original(self, stream, msg_list)
        if connection.asking is None:
            loop = asyncio.get_running_loop()
            connection.asking = loop.call_later(_CONFIRM_DELAY, _ask_what_came, self, connection)
        connection.pace.note_written(size)

    return _on_zmq_reply


def _ask_what_came(handler: Any, connection: _Connection) -> None:
    """Send a ping after the newest message: its pong confirms all messages up to there."""
    if connection.asking is not None:
        connection.asking.cancel()
        connection.asking = None
    if handler.ws_connection is not None and not handler.ws_connection.is_closing():
        handler.ping(_MARK + str(connection.unconfirmed.number).encode())


def _note_delivered(handler: Any, came: list[Message]) -> None:
    """Note that the client has got *came*, unless the kernel has ended, with which all such notes go."""
    if handler.kernel_id in handler.kernel_manager:
        kept_output.note_delivered(handler.kernel_id, handler.session.session, came)


def _on_pong(self: Any, data: bytes) -> None:
    """Drop what the client has confirmed; any pong is a sign of life."""
    super(ZMQChannelsHandler, self).on_pong(data)
    if data.startswith(_MARK) and data[len(_MARK) :].isdigit():
        connection = _of(self)
        connection.heard = asyncio.get_running_loop().time()
        came = connection.unconfirmed.drop_to(int(data[len(_MARK) :]))
        _note_delivered(self, came)
        connection.pace.note_confirmed(int(data[len(_MARK) :]))
        if connection.settled is not None and not connection.settled.done() and not connection.unconfirmed:
            connection.settled.set_result(None)


def _while_channels_are_open(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `on_message`: a connection that was replaced uses its successor's channels, which may be closed by now."""

    @functools.wraps(original)
    def on_message(self: Any, ws_msg: Any) -> Any:
        connection = _of(self)
        connection.heard = asyncio.get_running_loop().time()
        if connection.leaving is not None:
            return _after_all(self, connection, ws_msg)  # tornado waits for it before it takes the next message
        if any(stream.closed() for stream in self.channels.values()):
            self.log.debug("Received message on closed channels %r", self)
            return None
        return original(self, ws_msg)

    async def _after_all(handler: Any, connection: _Connection, ws_msg: Any) -> None:
        await _come_back(handler, connection)
        if (
            not connection.opened
        ):  # yet another connection of the session serves by now, and what was said is still said
            successor = handler._open_sessions.get(handler.session_key)
            handler.channels = successor.channels if successor is not None else {}
        original(handler, ws_msg)

    return on_message


# --- the end


def _on_close(self: Any) -> None:
    """Leave the channels to the session's next connection if no client is left, else close them; may be called twice."""
    connection = _of(self)
    self.log.debug("Websocket closed %s", self.session_key)
    connection.closed = True
    connection.stop()
    _forget(self)
    if connection.opened:
        connection.opened = False
        _leave(self, connection)
    for kept in (connection.unsent, connection.unconfirmed):
        kept.clear()  # its room is somebody else's now, not when Python finds the time
    if not self._close_future.done():
        self._close_future.set_result(None)


def _leave(handler: Any, connection: _Connection) -> None:
    """Do what the end of an open connection that was not replaced takes."""
    manager, kernel_id = handler.kernel_manager, handler.kernel_id
    if handler._open_sessions.get(handler.session_key) is handler:
        del handler._open_sessions[handler.session_key]
    _sign_off(handler)
    channels, handler.channels = handler.channels, {}
    if kernel_id not in manager or not _usable(channels, manager.get_kernel(kernel_id).ports):
        _close_channels(channels)
    elif manager._kernel_connections.get(kernel_id, 0) <= 0:
        manager.start_buffering(kernel_id, handler.session_key, channels)
        manager._kernel_buffers[kernel_id][_GOODBYE] = connection.said_goodbye()
        if manager.buffer_offline_messages:
            manager._kernel_buffers[kernel_id]["buffer"] = connection.left()
    else:
        # It was cut off, or the next one of its session is on its way.
        is_awaited = not connection.said_goodbye() or handler.session_key in _latest
        if manager.buffer_offline_messages:
            seconds = _AWAY_SECONDS if is_awaited else _RETURN_SECONDS
            _away[handler.session_key] = _Away(handler.session_key, handler, channels, connection.left(), seconds)
        else:
            _close_channels(channels)
        if not is_awaited:
            kept_output.note_gone(kernel_id, handler.session.session)


def let_go(kernel_id: str, code: int, reason: str) -> int:
    """End all connections of a kernel that is another gateway's now, and leave nothing for the next ones; return how many.

    At once: a client that comes back before it has confirmed the end of its connection may have the kernel here again, to which
    that end must not count.
    """
    ended = 0
    for session_key, handler in list(ZMQChannelsHandler._open_sessions.items()):
        if handler.kernel_id != kernel_id:
            continue
        connection = _of(handler)
        connection.stop()
        connection.opened, connection.lost_kernel = False, True
        del ZMQChannelsHandler._open_sessions[session_key]
        channels, handler.channels = handler.channels, {}
        _close_channels(channels)
        WebSocketHandler.close(handler, code, reason)  # jupyter_server's own takes no code
        ended += 1
    for session_key in [key for key in _away if key.partition(":")[0] == kernel_id]:
        _close_channels(_away.pop(session_key).taken())
    return ended
