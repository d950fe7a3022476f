"""Many connections to the agent through one exec channel, for nodes whose sshd forbids forwarding.

Runs on the node with the exec's stdin and stdout. Frames carry a connection number, a kind and a payload. Each connection has a
window of its own, each way: an end sends at most WINDOW bytes that the other has not taken, and goes on with the CREDIT that
it is given for what was taken. So a reader that stands still stops its own sender, through to the kernel's socket, and keeps
WINDOW in memory; the channel stays free for the others. Without, the window of each stream (16 MiB) would be all that bounds
what piles up at an end: gigabytes for a host with hundreds of streams.

Both ends are always of one release: the gateway brings the archive that this runs from, whichever agent it leads to.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections import deque
from typing import Optional

from .processes import raise_file_limit

OPEN, DATA, CLOSE, CREDIT = 0, 1, 2, 3
HEADER = struct.Struct(">IBI")
"""Connection number, kind, length of the payload."""
CREDITED = struct.Struct(">I")
"""A CREDIT's payload: how many bytes more may be sent."""
CHUNK = 128 * 1024
WINDOW = 256 * 1024
"""Bytes of a connection that its receiver has not taken, at most: enough for 2.5 MB/s where an answer takes 100 ms."""
RENEW = WINDOW // 4
"""Bytes that were taken, from which on they are worth a CREDIT."""
CLOSING = 30.0
"""Seconds that the agent has to take the rest of a connection that the gateway has closed."""


class Credit:
    """How many bytes one end may send now; made within a running event loop."""

    def __init__(self) -> None:
        self.left = WINDOW
        self._more = asyncio.Event()

    def add(self, count: int) -> None:
        """The other end has taken *count* bytes."""
        self.left += count
        self._more.set()

    async def wait(self) -> int:
        """Wait until something may be sent; return how much."""
        while self.left <= 0:
            self._more.clear()
            await self._more.wait()
        return self.left


class _Connection:
    """One connection at the node: what came for the agent, and how much may be sent to the gateway."""

    def __init__(self) -> None:
        self.credit = Credit()
        self.task: Optional[asyncio.Future[None]] = None  # carries it; owned by the Bridge
        self.closed = False  # by either end
        self._arrived: deque[bytes] = deque()
        self._news = asyncio.Event()

    def take(self, payload: bytes) -> None:
        """Have *payload* to be written; the gateway sends no more than WINDOW of it."""
        self._arrived.append(payload)
        self._news.set()

    def close(self) -> None:
        """One end has closed it: what has come before is written, in CLOSING seconds at most, and nothing else."""
        self.closed = True
        self._news.set()
        if self.task is not None:
            late = asyncio.get_event_loop().call_later(CLOSING, self.task.cancel)
            self.task.add_done_callback(lambda _: late.cancel())

    async def next(self) -> bytes:
        """Return what is to be written next, b"" behind all if the gateway has closed it."""
        while not self._arrived:
            if self.closed:
                return b""
            self._news.clear()
            await self._news.wait()
        return self._arrived.popleft()


class Bridge:
    """The node's end: opens a connection to the agent's socket for each number that the gateway opens."""

    def __init__(self, path: str, output: asyncio.StreamWriter) -> None:
        self._path = path
        self._output = output
        self._connections: dict[int, _Connection] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        # Before Python 3.10 only one may wait for a writer at a time.
        self._draining = asyncio.Lock()

    async def run(self, source: asyncio.StreamReader) -> None:
        """Serve until the gateway closes its end."""
        try:
            while True:
                number, kind, length = HEADER.unpack(await source.readexactly(HEADER.size))
                if length > CHUNK:  # where the next frame begins is unknown
                    return
                self._take(number, kind, await source.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            for task in self._tasks:
                task.cancel()

    def _take(self, number: int, kind: int, payload: bytes) -> None:
        if kind == OPEN:
            opened = self._connections[number] = _Connection()
            opened.task = asyncio.ensure_future(self._carry(number, opened))
            self._tasks.add(opened.task)
            opened.task.add_done_callback(self._tasks.discard)
            return
        connection = self._connections.get(number)
        if connection is None:
            return
        if kind == DATA:
            connection.take(payload)
        elif kind == CREDIT:
            connection.credit.add(CREDITED.unpack(payload)[0])
        elif kind == CLOSE:
            del self._connections[number]
            connection.close()

    async def _carry(self, number: int, connection: _Connection) -> None:
        writer: Optional[asyncio.StreamWriter] = None
        ways: set[asyncio.Future[None]] = set()
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
            inward = asyncio.ensure_future(self._write(number, connection, writer))
            outward = asyncio.ensure_future(self._read(number, connection, reader))
            ways = {inward, outward}
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            self._end(number, connection)
            writer.close()
            await writer.wait_closed()
        except OSError:
            return
        finally:
            for way in ways:
                way.cancel()
            if writer is not None:
                writer.transport.abort()  # it is closed already, or the agent took too long
            self._end(number, connection)

    def _end(self, number: int, connection: _Connection) -> None:
        """Tell the gateway that the agent has closed a connection, unless the gateway has."""
        if self._connections.get(number) is connection:
            del self._connections[number]
            connection.close()
            self._output.write(HEADER.pack(number, CLOSE, 0))

    async def _read(self, number: int, connection: _Connection, reader: asyncio.StreamReader) -> None:
        """Pass on what the agent says, as far as the gateway takes it, until the agent's end."""
        while True:
            try:
                data = await reader.read(min(await connection.credit.wait(), CHUNK))
            except OSError:
                return
            if not data:
                return
            connection.credit.left -= len(data)
            if not connection.closed:
                self._output.write(HEADER.pack(number, DATA, len(data)) + data)
            async with self._draining:
                await self._output.drain()

    async def _write(self, number: int, connection: _Connection, writer: asyncio.StreamWriter) -> None:
        """Pass on what the gateway says, and tell it what the agent has taken, until the gateway's end."""
        taken = 0
        while payload := await connection.next():
            try:
                writer.write(payload)
                await writer.drain()
            except OSError:
                return
            taken += len(payload)
            if taken >= RENEW and not connection.closed:
                self._output.write(HEADER.pack(number, CREDIT, CREDITED.size) + CREDITED.pack(taken))
                taken = 0


def main(path: str) -> None:
    """Bridge stdin and stdout to the agent's socket at *path*; called by the archive's `__main__`."""

    raise_file_limit()  # each connection is a descriptor of ours

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        source = asyncio.StreamReader(limit=1 << 20)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin.buffer)
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout.buffer)
        await Bridge(path, asyncio.StreamWriter(transport, protocol, None, loop)).run(source)

    asyncio.run(serve())
