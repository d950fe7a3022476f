"""One client's websocket: what we note of it, and what its server has to do for us.

Each adapter has a subclass of `Connection`, which says how its jupyter_server does it. All of it is used on the server's loop.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, Protocol

from .frames import Header
from .kept_messages import Kept, Message, joined
from .slow_clients import Pace

CONFIRM_DELAY: Final = 0.05
"""Seconds between a message and the ping that asks whether it came: one ping for all that is sent meanwhile."""
MARK: Final = b"came:"
"""How our pings begin; the empty ones are jupyter_server's, to find dead peers."""
_LAST_WORD: Final = 0.25
"""Seconds that a client has to confirm what it got from a connection that is about to be replaced; a dead one takes them all."""
_LAST_WORD_OF_THE_LIVING: Final = 3.0
"""The same for one that was heard lately: it is far away, or its machine is busy. What it can't confirm comes twice."""
_LATELY: Final = 5.0
"""Seconds since it was heard within which a client is taken to be there."""
_CLOSE_FRAME: Final = 0x8


class Ends(Protocol):
    """What both jupyter_servers' own objects for a websocket have: the 1.24's handler, and the 2's connection."""

    channels: dict[str, Any]
    """Streams to the kernel, by the names of its channels."""
    log: Any
    session: Any
    """jupyter_client's Session; its `session` is the client's name for itself."""

    @property
    def kernel_id(self) -> str:
        """Return the kernel's id."""
        ...

    @property
    def kernel_info_timeout(self) -> float:
        """Return the seconds for which a kernel is asked who it is."""
        ...

    @property
    def session_key(self) -> str:
        """Return what no other client's session is called."""
        ...

    def write_stderr(self, error_message: str, parent_header: Header) -> None:
        """Show a text in the output of a cell, and log it."""
        ...

    def on_kernel_restarted(self) -> None:
        """Tell the client that its kernel is started again."""
        ...

    def on_restart_failed(self) -> None:
        """Tell the client that its kernel is dead."""
        ...


class Connection(ABC):
    """What we note of one client's websocket, from its arrival to its end."""

    refusals: ClassVar[tuple[type[Exception], ...]] = ()
    """What its server raises for a kernel that is not there."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.arrived = asyncio.get_running_loop().time()
        # One that was open when the adapter came has channels, and is as good as ours.
        self.opened: bool = bool(ends.channels)
        """The kernel counts it among its clients, and it has channels."""
        self.serving: bool = self.opened
        """The kernel answered: what it says goes to the client at once."""
        self.replaced = False
        """A later connection of the session has its channels."""
        self.lost_kernel = False
        """Another gateway has the kernel: nothing more is passed on, since what comes before it may be missing here."""
        self.is_arriving = True
        """Its server still prepares it; not kept by each."""
        self.leaving: asyncio.TimerHandle | None = None
        """When one that was replaced, and may yet be the client's, is closed."""
        self.closed = False
        """Its end was noted."""
        self._goodbye = self._is_sent_away = False
        self.protocol: Any = None
        """tornado's half of the websocket, which the handler forgets before it says that it ended."""
        self.unsent = Kept()
        """What is for the client, and was not written yet."""
        self.unconfirmed = Kept()
        """What was written, and the client has not confirmed."""
        self.is_doubted = False
        """It was replaced, and may yet be the client's."""
        self.doubtful = Kept()
        """What those that came after it have confirmed since, which is for the client then; dropped ones confirm as well."""
        self.doubted: list[Connection] = []
        """The connections that this one has replaced, and those that they had, the earliest first."""
        self.pace = Pace(self)
        self.nudging: asyncio.Task[None] | None = None
        self.asking: asyncio.TimerHandle | None = None
        """The next ping that asks what came."""
        self.heard = -math.inf
        """When the client last confirmed or said something, on the loop's clock."""
        self.said = -math.inf
        """When the client last said something, on the loop's clock; its pings and pongs are not meant."""
        self.first_heard = ""
        """The id of the first message on its iopub channel, while the kernel is asked who it is."""
        self.last_parent = b""
        """What the last message on iopub belonged to: as a rule the cell that runs."""
        self.missed = ""
        """What is to be told in the next cell that is heard of."""
        self.given: set[str] = set()
        """The ids of messages that it has been given already, and that its own channel may still bring."""
        self.replying: set[asyncio.Task[None]] = set()
        """Take the kernel's replies to what was asked over the server's earlier process."""
        self.settled: asyncio.Future[None] | None = None
        """Done when all that was sent is confirmed; the next connection waits for it."""
        self.settling = 0
        """How many connections wait for that: of those that come at once only one will serve."""
        self.renew: Callable[[], None] | None = None
        """Has it hear a kernel that was started again while the client lagged behind."""

    # -- what its server does --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def handler(self) -> Any:
        """Return tornado's WebSocketHandler."""

    @property
    @abstractmethod
    def kernels(self) -> Any:
        """Return the mapping kernel manager, which has all kernels of the server by their ids."""

    @property
    @abstractmethod
    def has_agent(self) -> bool:
        """Whether the kernel's output can wait on its node; another kernel drops what is not taken from it at once."""

    @abstractmethod
    def process(self) -> object:
        """Return what is another object, or value, once the kernel has been started again."""

    @abstractmethod
    def take(self, stream: Any, parts: list[bytes]) -> None:
        """Take a message that came on a channel, and send it to the client, by `service.pass_through`."""

    @abstractmethod
    def write(self, stream: Any, parts: list[bytes]) -> None:
        """Send the client a message that came on a channel, in the form that it understands."""

    @abstractmethod
    def show(self, kind: str, content: dict[str, Any], cell: Header) -> None:
        """Send the client a message of *kind* on iopub as if its kernel had sent it, for the output of *cell*."""

    @abstractmethod
    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the websocket; its end comes later."""

    # -- in the same way with both ---------------------------------------------------------------------------------

    @property
    def kernel_id(self) -> str:
        """Return the kernel's id."""
        return self.ends.kernel_id

    @property
    def session_key(self) -> str:
        """Return what no other client's session is called."""
        return self.ends.session_key

    @property
    def session(self) -> str:
        """Return the client's name for itself, which it keeps when it connects again."""
        name: str = self.ends.session.session
        return name

    @property
    def log(self) -> Any:
        """Return the server's log."""
        return self.ends.log

    @property
    def channels(self) -> dict[str, Any]:
        """The streams to the kernel, by the names of its channels."""
        return self.ends.channels

    @channels.setter
    def channels(self, channels: dict[str, Any]) -> None:
        self.ends.channels = channels

    @property
    def has_kernel(self) -> bool:
        """Whether the server still has the kernel."""
        return self.kernel_id in self.kernels

    @property
    def is_writable(self) -> bool:
        """Whether the client can be sent anything."""
        websocket = self.handler.ws_connection
        return websocket is not None and not websocket.is_closing()

    def say(self, text: str, cell: Header) -> None:
        """Show *text* as the kernel's stderr in the output of *cell*, unless the client is gone."""
        if self.is_writable:
            self.ends.write_stderr(text, cell)

    def miss(self, text: str) -> None:
        """Have *text* told in the next cell that is heard of, once."""
        self.missed = joined(self.missed, text)

    def doubt(self, replaced: Connection) -> None:
        """Keep what is confirmed from now on for *replaced* as well, while it may be the client's after all."""
        replaced.is_doubted = True
        if replaced not in self.doubted:
            self.doubted.append(replaced)

    def note_came(self, messages: list[Message]) -> None:
        """Keep what was confirmed for those of which it is not known yet whether they are the client's."""
        self.doubted = [replaced for replaced in self.doubted if replaced.is_doubted]
        for replaced in self.doubted:
            for message in messages:
                replaced.doubtful.append(message)

    def trust(self) -> None:
        """Doubt this connection no more, whatever it is: what was kept for that goes."""
        self.is_doubted = False
        self.doubtful.clear()

    def take_doubtful(self, others: list[Connection]) -> None:
        """Have what the client did not get while *others* had its place: it is back. They hear of it once more as it comes."""
        count = len(self.doubtful)
        self.unsent.take(self.doubtful)
        self.trust()
        for other in others:
            other.doubtful.drop_newest(count)

    def left(self, left: Kept | None = None) -> Kept:
        """Hand over what the client did not get, as far as is known, in *left* if it is given."""
        left = Kept() if left is None else left
        if self.said_goodbye():
            self.unconfirmed.clear()
        left.take(self.unconfirmed)  # which is numbered on: pongs of before may be on their way
        left.take(self.unsent)
        left.miss(self.missed)
        self.pace.forget()
        return left

    def said_goodbye(self) -> bool:
        """Return True if the client ended the connection in words, and so had read what we sent."""
        return self._goodbye

    def has_left(self) -> bool:
        """Return True if the client said goodbye of its own accord: nobody has sent it away, so that it would come again."""
        return self._goodbye and not self._is_sent_away

    def send_away(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the websocket of a client that is to connect again, and is waited for as one that was cut off."""
        self._is_sent_away = True
        self.close(code, reason)

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

    # -- what came -------------------------------------------------------------------------------------------------

    def ask_what_came_soon(self) -> None:
        """Have the client confirm what is sent within the next moments."""
        if self.asking is None:
            self.asking = asyncio.get_running_loop().call_later(CONFIRM_DELAY, self.ask_what_came)

    def ask_what_came(self) -> None:
        """Send a ping after the newest message: its pong confirms all messages up to there."""
        if self.asking is not None:
            self.asking.cancel()
            self.asking = None
        if self.is_writable:
            self.handler.ping(MARK + str(self.unconfirmed.number).encode())

    async def settle(self) -> None:
        """Send the client no more, and give it a moment to confirm what it has: that need not be sent again.

        What comes meanwhile waits in the channels' sockets. One whose client is there answers within a round trip.
        """
        if not self.serving:
            return
        self.settling += 1
        try:
            self.pace.end()
            for stream in self.channels.values():
                if not stream.closed():
                    stream.on_recv(None)
            if self.unconfirmed:
                loop = asyncio.get_running_loop()
                if self.settled is None:
                    self.settled = loop.create_future()
                self.ask_what_came()
                patience = _LAST_WORD_OF_THE_LIVING if loop.time() - self.heard < _LATELY else _LAST_WORD
                await asyncio.wait({self.settled}, timeout=patience)
        finally:
            self.settling -= 1
            if not self.settling:
                self.settled = None

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
