"""The virtual network: pipes of bytes with a latency, ways that can be cut, and links as nodes hold them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from eg_distributed.link.links import Link
from eg_distributed.wire import Reader, Writer

TO_HOST, TO_GATEWAY = 0, 1
HIGH_WATER = 256 * 1024
"""Bytes under way in one pipe from which on a writer waits."""


class Path:
    """The network between one gateway and one host.

    What is sent over a way that is cut is held, as TCP sends it again, and arrives after `heal`. A gateway that has heard nothing
    for *patience* seconds gives its link up, as SSH's keep-alives do; the host learns of that when it is reached again.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, latency: float, patience: float) -> None:
        self.loop = loop
        self.latency = latency
        self.links: set[SimLink] = set()
        self._patience = patience
        self._cut = [False, False]
        self._held: list[Callable[[], None]] = []
        self._healed: asyncio.Event | None = None
        self._giving_up: asyncio.TimerHandle | None = None

    @property
    def is_cut(self) -> bool:
        return self._cut[0] or self._cut[1]

    def holds(self, way: int) -> bool:
        return self._cut[way]

    def hold(self, arrival: Callable[[], None]) -> None:
        """Have *arrival* called when the way is whole again."""
        self._held.append(arrival)

    def cut(self, ways: Iterable[int] = (TO_HOST, TO_GATEWAY)) -> None:
        for way in ways:
            self._cut[way] = True
        if self._giving_up is None:
            self._giving_up = self.loop.call_later(self._patience, self._give_up)

    def heal(self) -> None:
        self._cut = [False, False]
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        held, self._held = self._held, []
        for arrival in held:
            self.loop.call_later(self.latency, arrival)
        if self._healed is not None:
            self._healed.set()
            self._healed = None

    def reset(self) -> None:
        """Lose all connections at once, as with a firewall that forgets, or a machine that ends its sessions."""
        for link in list(self.links):
            link.close()

    async def whole(self) -> None:
        """Wait until both ways are whole."""
        while self.is_cut:
            if self._healed is None:
                self._healed = asyncio.Event()
            await self._healed.wait()

    def _give_up(self) -> None:
        self._giving_up = None
        if self.is_cut:
            self.reset()


class Pipe:
    """One direction of a connection; over a *path*, or within one machine."""

    __slots__ = ("_arrives", "_is_shut", "_latency", "_loop", "_path", "_queue", "_room", "_way", "pending", "reader")

    def __init__(self, loop: asyncio.AbstractEventLoop, latency: float, path: Path | None = None, way: int = 0) -> None:
        self.reader = asyncio.StreamReader(loop=loop)
        self.pending = 0
        self._loop = loop
        self._latency = latency
        self._path = path
        self._way = way
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._arrives = False  # an arrival is due, or held
        self._is_shut = False
        self._room: asyncio.Future[None] | None = None

    def send(self, data: bytes | None) -> None:
        """Send *data*, or the end."""
        if self._is_shut:
            return
        self._queue.append((self._loop.time() + self._latency, data))
        if data is not None:
            self.pending += len(data)
        if not self._arrives:
            self._arrives = True
            self._loop.call_later(self._latency, self._arrive)

    def _arrive(self) -> None:
        if self._is_shut:
            return
        if self._path is not None and self._path.holds(self._way):
            self._path.hold(self._arrive)
            return
        now = self._loop.time() + 1e-9
        while self._queue and self._queue[0][0] <= now:
            _, data = self._queue.popleft()
            if data is None:
                self.shut()
                return
            self.pending -= len(data)
            self.reader.feed_data(data)
        if self._room is not None and self.pending < HIGH_WATER:
            self._make_room()
        self._arrives = bool(self._queue)
        if self._queue:
            self._loop.call_at(self._queue[0][0], self._arrive)

    def shut(self) -> None:
        """Be at an end for its reader, whatever is still under way."""
        if not self._is_shut:
            self._is_shut = True
            self._queue.clear()
            self.pending = 0
            self.reader.feed_eof()
            self._make_room()

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    async def drain(self) -> None:
        if self._is_shut:
            raise ConnectionResetError("the connection is closed")
        if self.pending >= HIGH_WATER:
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)


class End:
    """A writer: one end of a connection, which is also what asyncio calls its transport."""

    __slots__ = ("_closing", "_incoming", "_loop", "_outgoing")

    def __init__(self, loop: asyncio.AbstractEventLoop, outgoing: Pipe, incoming: Pipe) -> None:
        self._loop = loop
        self._outgoing = outgoing
        self._incoming = incoming
        self._closing = False

    def write(self, data: bytes) -> None:
        if not self._closing:
            self._outgoing.send(bytes(data))

    async def drain(self) -> None:
        await self._outgoing.drain()

    def close(self) -> None:
        """Close after what is queued; nothing is read any more."""
        if not self._closing:
            self._closing = True
            self._outgoing.send(None)
            self._loop.call_soon(self._incoming.shut)

    def is_closing(self) -> bool:
        return self._closing

    async def wait_closed(self) -> None:
        """It is."""

    @property
    def transport(self) -> End:
        return self

    def abort(self) -> None:
        self.close()

    def get_write_buffer_size(self) -> int:
        return self._outgoing.pending


def connection(
    loop: asyncio.AbstractEventLoop, latency: float, path: Path | None = None
) -> tuple[tuple[asyncio.StreamReader, End], tuple[asyncio.StreamReader, End]]:
    """Return both ends of a new connection: who opened it, and who accepts it."""
    there, back = Pipe(loop, latency, path, TO_HOST), Pipe(loop, latency, path, TO_GATEWAY)
    return (back.reader, End(loop, there, back)), (there.reader, End(loop, back, there))


Accept = Callable[[asyncio.StreamReader, End], None]


class SimLink(Link):
    """A link over a path; *accept* takes the other end of each connection, and raises ConnectionError where nothing listens."""

    def __init__(self, path: Path, accept: Accept) -> None:
        self._path = path
        self._accept = accept
        self._ends: set[End] = set()  # this side's, of connections that are open
        self._closed = asyncio.Event()
        path.links.add(self)

    async def open(self) -> tuple[Reader, Writer]:
        """Open a connection: a round trip."""
        loop = self._path.loop
        await asyncio.sleep(2 * self._path.latency)
        if self._path.is_cut:
            await self._path.whole()
        if self._closed.is_set():
            raise ConnectionError("the link is closed")
        (reader, near), (far_reader, far) = connection(loop, self._path.latency, self._path)
        self._accept(far_reader, far)
        if len(self._ends) > 32:
            self._ends = {end for end in self._ends if not end.is_closing()}
        self._ends.add(near)
        return reader, near

    def close(self) -> None:
        """Close the link at this end; the other one hears of it over the path."""
        if not self._closed.is_set():
            self._closed.set()
            self._path.links.discard(self)
            ends, self._ends = self._ends, set()
            for end in ends:
                end.close()

    async def wait_closed(self) -> None:
        """Wait for the end."""
        await self._closed.wait()
