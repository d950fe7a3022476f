"""Links: open ways to one host's agent, over SSH, or through a bridge; `way` has the one on this machine.

Over SSH each connection to the agent's socket is a direct-streamlocal channel, which sshd's MaxSessions does not count; where
sshd forbids those, all connections share one exec channel (see `agent/bridge.py`).

Each channel is a descriptor of the session's sshd, of which systemd gives it 1024. So channels are spread over as many SSH
connections as it takes: a further one is begun when all have enough, in the background; one is full with MOST, or where sshd
refuses a channel twice that it takes on another connection, and that counts for a minute; and one that has had none for a while
is closed. That a channel is refused for want of descriptors is never said: it may be that the agent takes none for a moment, or
that descriptors of channels that were just closed are not free yet.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable

import asyncssh

from eg_distributed.connections import Incoming, Outgoing
from eg_distributed.errors import HostError, HostUnreachable
from eg_distributed.wire import Reader, Writer

from .bridge import BridgeClient
from .packets import log_no_packets
from .way import Link, LocalLink

__all__ = ["BridgedLink", "Link", "LocalLink", "SSHLink", "Shielded", "ShieldedWriter"]

log = logging.getLogger(__name__)
_Opened = tuple[asyncssh.SSHUNIXChannel[bytes], asyncssh.SSHUNIXSession[bytes]]

ENOUGH, MOST = 250, 900
"""Channels of a connection from which on a further one is begun, and that one has at most while there is another with room."""
_CLOSED = "SSH connection closed"
"""What asyncssh gives as the reason for which a channel was refused where its connection has ended."""
CONNECTIONS = 64
"""SSH connections to one host, at most."""
_SUSPICIOUS = 32
"""Channels of a connection from which on one that is refused may be for want of descriptors, and not for the agent's sake."""
AGAIN = 0.2
"""Seconds after which such a channel is tried on the same connection once more, before another one is taken for it."""
LIMITED = 60.0
"""Seconds for which a connection counts as full with what it had when it refused a channel."""
IDLE = 60.0
"""Seconds after which a further connection without a channel is closed."""
_PATIENCE = 5.0
"""Seconds that a channel waits for a further connection before it is tried on one that is full."""
_FIRST_PAUSE, _LAST_PAUSE = 5.0, 300.0
"""Seconds before a further login that failed, or was of no use, is tried again: twice as many each time."""


class _Connection:
    """One SSH connection of a link, and how many channels it has; those that are being opened count."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self.ssh = connection
        self.channels = 0
        self._limit = MOST
        self._limited_until = 0.0  # in the loop's time
        self.idle: asyncio.TimerHandle | None = None
        """Closes it."""

    @property
    def most(self) -> int:
        """How many channels it takes, as far as is known."""
        return min(self._limit, MOST) if asyncio.get_running_loop().time() < self._limited_until else MOST

    def limit(self, most: int) -> None:
        """Take *most* as what it takes, for a minute: then it may turn out to be more."""
        self._limit = min(self.most, most)
        self._limited_until = asyncio.get_running_loop().time() + LIMITED

    @property
    def has_room(self) -> bool:
        return self.channels < self.most

    @property
    def has_enough(self) -> bool:
        """Whether a further connection is to be begun, while this one still has room for those who come until that is there."""
        return self.channels >= min(ENOUGH, self.most - self.most // 5)


def _whose(connection: asyncssh.SSHClientConnection) -> tuple[bytes, str]:
    """Return the host key of the other end (none where Kerberos told the host), and its address, if it is known."""
    key, peer = connection.get_server_host_key(), connection.get_extra_info("peername")
    return key.public_data if key is not None else b"", str(peer[0]) if peer else ""


class SSHLink(Link):
    """Each connection to the agent is an SSH channel of its own: SSH's windows keep one's flood from delaying another.

    *further* logs in to *host* once more, the same way as the first *connection*; None: there is but that one. The link is lost
    with the first; what another one carried finds its way over those that are left.
    """

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        path: str,
        host: str = "",
        further: Callable[[], Awaitable[asyncssh.SSHClientConnection]] | None = None,
    ) -> None:
        self._connection = connection
        self._path = path
        self._host = host
        self._further = further
        self._connections = [_Connection(connection)]
        self._widening: asyncio.Task[None] | None = None
        self._watching: set[asyncio.Task[None]] = set()
        self._given_up: set[asyncio.Task[_Opened]] = set()  # openings; each ends with its connection at the latest
        self._pause = 0.0
        self._told = False  # that none could be made
        self._not_before = 0.0  # when a further login may be tried again, in the loop's time
        self._closed = False

    @property
    def connections(self) -> int:
        """How many SSH connections there are now."""
        return len(self._connections)

    async def open(self) -> tuple[Reader, Writer]:
        """Open a direct-streamlocal channel to the agent's socket; raises ConnectionError with host, cause and remedy."""
        refused: dict[_Connection, int] = {}  # with the channels that each had
        doubtful: set[_Connection] = set()  # those that refused it once
        lost: set[_Connection] = set()
        reason = ""
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while not self._closed:
            for_files = all(most >= _SUSPICIOUS for most in refused.values())
            while (chosen := self._choose(refused)) is None and for_files and self._may_widen():
                self._begin_to_widen()
                if not await self._is_wider_by(deadline):
                    break
            if chosen is None:  # better than none
                left = [each for each in self._connections if each not in refused]
                chosen = min(left, key=lambda each: each.channels, default=None)
            if chosen is None:
                break
            if all(each.has_enough for each in self._connections):
                self._begin_to_widen()
            had, had_room = chosen.channels, chosen.has_room
            try:
                opened = await self._open_over(chosen)
            except asyncssh.Error as error:
                # What is lost is no refusal: another connection may take it, but no further one is needed for that.
                is_lost = (
                    chosen.ssh.is_closed()
                    or not isinstance(error, asyncssh.ChannelOpenError)
                    or error.reason == _CLOSED
                )
                is_news = had >= _SUSPICIOUS and had_room and not is_lost
                if is_news and chosen not in doubtful:
                    doubtful.add(chosen)
                    await asyncio.sleep(AGAIN)
                    continue
                if self._connection.is_closed() or (is_lost and chosen.ssh is self._connection):
                    raise self._loss(error.reason) from error
                refused[chosen], reason = 0 if is_lost else had, error.reason
                if is_lost:
                    lost.add(chosen)
                continue
            if chosen.ssh is not self._connection:
                self._pause = 0.0  # a further connection was of use
            for full, most in refused.items():
                if most >= _SUSPICIOUS:
                    full.limit(most)
            return opened
        if not reason:
            raise ConnectionError("the link is closed")
        if self.connections > 1 and self._connections[-1].channels == 0:
            self._be_patient()  # it was made for nothing
        if lost == set(refused):
            raise self._loss(reason)
        raise self._refusal(reason, max(refused.values()))

    def _loss(self, reason: str) -> ConnectionError:
        return ConnectionError(
            f"Host {self._host}: the SSH connection was lost ({reason}). Check the network to the host"
        )

    def _refusal(self, reason: str, channels: int) -> ConnectionError:
        where = f"Host {self._host}: sshd opened no channel to the agent ({reason})"
        if channels < _SUSPICIOUS:
            return ConnectionError(f"{where}. See that the agent's socket is there, below ~/.cache/eg-distributed")
        return ConnectionError(
            f"{where}, with {channels} open on a connection of {self.connections}: it may have no more open files. "
            "Raise LimitNOFILE of its unit there (`systemctl edit ssh`)"
        )

    def _choose(self, refused: dict[_Connection, int]) -> _Connection | None:
        """Return the first connection with few channels, so that the last ones get idle; else the one with fewest, or None."""
        left = [each for each in self._connections if each not in refused and each.has_room]
        few = next((each for each in left if not each.has_enough), None)
        return few or min(left, key=lambda each: each.channels, default=None)

    async def _open_over(self, chosen: _Connection) -> tuple[Reader, Writer]:
        chosen.channels += 1
        if chosen.idle is not None:
            chosen.idle.cancel()
            chosen.idle = None
        channel = Channel(lambda: self._let_go(chosen))
        opening = asyncio.ensure_future(chosen.ssh.create_unix_connection(lambda: channel, self._path))
        try:
            # Shielded: asyncssh leaves a channel whose opening is cancelled open at both ends until the connection ends.
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._given_up.add(opening)
            opening.add_done_callback(functools.partial(self._close_given_up, chosen))
            raise
        except BaseException:  # whatever it is, the channel is none
            self._let_go(chosen)
            raise
        return channel, channel

    def _close_given_up(self, chosen: _Connection, opening: asyncio.Task[_Opened]) -> None:
        """Close a channel that nobody waits for any more, now that it is open; until then it has a descriptor of sshd's."""
        self._given_up.discard(opening)
        if not opening.cancelled() and opening.exception() is None:
            opening.result()[0].close()
        self._let_go(chosen)

    def _let_go(self, used: _Connection) -> None:
        used.channels -= 1
        if used.channels == 0 and used is not self._connections[0] and not self._closed:
            used.idle = asyncio.get_running_loop().call_later(IDLE, self._drop, used)

    # -- further connections -------------------------------------------------------------------------------------

    def _may_widen(self) -> bool:
        if self._closed or self._further is None or len(self._connections) >= CONNECTIONS:
            return False
        return self._widening is not None or asyncio.get_running_loop().time() >= self._not_before

    def _begin_to_widen(self) -> None:
        if self._widening is None and self._may_widen():
            self._widening = asyncio.ensure_future(self._widen())

    async def _is_wider_by(self, deadline: float) -> bool:
        """Wait for the login that is under way; return False if it takes longer than until *deadline*, in the loop's time."""
        if self._widening is not None:
            await asyncio.wait({self._widening}, timeout=max(deadline - asyncio.get_running_loop().time(), 0.0))
        return asyncio.get_running_loop().time() < deadline

    async def _widen(self) -> None:
        """Make a further connection; where that fails the log says so, once, and those that are there are used beyond MOST."""
        assert self._further is not None
        try:
            async with self.turn():
                connection = await self._further()
            self._see_that_it_is_the_same(connection)
        except HostError as error:
            level = logging.DEBUG if self._told else logging.WARNING
            self._told = True
            log.log(level, "%s: no further SSH connection for its channels could be made: %s", self._host, error)
            self._be_patient()
        except Exception:  # whatever it is, logging in again and again would not mend it
            log.exception("%s: no further SSH connection for its channels could be made", self._host)
            self._be_patient()
        else:
            made = _Connection(connection)
            self._connections.append(made)
            self._told = False
            made.idle = asyncio.get_running_loop().call_later(IDLE, self._drop, made)
            self._watching.add(task := asyncio.ensure_future(self._watch(made)))
            task.add_done_callback(self._watching.discard)
            log.info("%s: %d SSH connections carry its channels", self._host, self.connections)
        finally:
            self._widening = None

    def _see_that_it_is_the_same(self, connection: asyncssh.SSHClientConnection) -> None:
        """Abort a further *connection* that leads to another machine than the first, and raise HostUnreachable.

        A name may have several addresses. Where the gateway itself connects, those of one family have to be equal, since machines
        that were made of one image share their host key; one machine may have an address of each family. Behind a jump host or a
        command asyncssh knows none.
        """
        (key, address), (other_key, other_address) = _whose(self._connection), _whose(connection)
        if key == other_key and (address == other_address or (":" in address) != (":" in other_address)):
            return
        connection.abort()
        what = f"by its address ({other_address} instead of {address})" if key == other_key else "by its host key"
        raise HostUnreachable(
            f"a further login led to another machine {what}",
            host=self._host,
            remedy="name each machine by itself in remote_hosts, or give it one HostName in ssh_config",
        )

    def _be_patient(self) -> None:
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LAST_PAUSE)
        self._not_before = asyncio.get_running_loop().time() + self._pause

    async def _watch(self, further: _Connection) -> None:
        await further.ssh.wait_closed()
        self._drop(further)

    def _drop(self, further: _Connection) -> None:
        """Close a further connection: it is idle, or lost already."""
        if further.idle is not None:
            further.idle.cancel()
            further.idle = None
        if further in self._connections:
            self._connections.remove(further)
        further.ssh.abort()

    def close(self) -> None:
        """Close all SSH connections."""
        self._closed = True
        if self._widening is not None:
            self._widening.cancel()
        for further in self._connections[1:]:
            self._drop(further)
        self._connection.abort()

    async def wait_closed(self) -> None:
        """Wait until SSH says that the first connection is gone."""
        await self._connection.wait_closed()


class BridgedLink(SSHLink):
    """All connections to the agent share one exec channel, for nodes whose sshd forbids forwarding."""

    def __init__(self, connection: asyncssh.SSHClientConnection, client: BridgeClient) -> None:
        super().__init__(connection, "")
        self._client = client

    async def open(self) -> tuple[Reader, Writer]:
        """Open a numbered connection through the bridge."""
        return self._client.open()

    async def wait_closed(self) -> None:
        """Wait until the exec channel or the connection under it ends."""
        await self._client.wait_closed()
        self._connection.abort()


class Channel(Incoming, Outgoing, asyncssh.SSHUNIXSession[bytes]):
    """A channel to a UNIX socket on the host; its reader and its writer in one, whose errors are OSErrors.

    *closed* is called once, when it is closed. Not asyncssh's own reader: a task has to wait for that one, which costs another
    turn of the loop for each message.
    """

    _channel: asyncssh.SSHUNIXChannel[bytes]

    def __init__(self, closed: Callable[[], None]) -> None:
        Incoming.__init__(self)
        Outgoing.__init__(self)
        self._on_close: Callable[[], None] | None = closed

    # -- asyncssh's calls ----------------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        """Begin."""
        self._channel = chan
        log_no_packets(chan)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Take what has come."""
        self._came(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that nothing can be sent any more either."""
        self._ended(ConnectionResetError(getattr(exc, "reason", str(exc))) if exc else None)
        self._is_lost()

    def _pause(self) -> None:
        self._channel.pause_reading()

    def _resume(self) -> None:
        self._channel.resume_reading()

    # -- the writer ----------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue *data*; raises OSError where the channel is closed."""
        self._channel.write(data)

    def close(self) -> None:
        """Close after what is queued."""
        self._channel.close()
        closed, self._on_close = self._on_close, None
        if closed is not None:
            closed()


class Shielded:
    """An asyncssh reader whose errors are OSErrors, as those of every other reader."""

    def __init__(self, reader: asyncssh.SSHReader[bytes]) -> None:
        self._reader = reader

    async def read(self, n: int = -1) -> bytes:
        """Return up to *n* bytes, b"" at the end."""
        try:
            return await self._reader.read(n)
        except asyncssh.Error as error:
            raise ConnectionResetError(error.reason) from error

    async def readexactly(self, n: int) -> bytes:
        """Return *n* bytes or raise IncompleteReadError."""
        try:
            return await self._reader.readexactly(n)
        except asyncssh.Error as error:
            raise ConnectionResetError(error.reason) from error


class ShieldedWriter:
    """An asyncssh writer whose errors are OSErrors, as those of every other writer."""

    def __init__(self, writer: asyncssh.SSHWriter[bytes]) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        """Queue *data*."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the queue is short again."""
        try:
            await self._writer.drain()
        except asyncssh.Error as error:
            raise ConnectionResetError(error.reason) from error

    def close(self) -> None:
        """Close after what is queued."""
        self._writer.close()
