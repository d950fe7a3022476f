"""The gateway's end of the bridge: numbered connections over one exec channel (see `agent/bridge.py`)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import count

from eg_distributed.agent.bridge import (
    CHUNK,
    CLOSE,
    CREDIT,
    CREDITED,
    DATA,
    HEADER,
    OPEN,
    RENEW,
    WINDOW,
    Credit,
)
from eg_distributed.wire import Reader, Writer

log = logging.getLogger(__name__)


class BridgeClient:
    """Opens connections to the agent through one pair of reader and writer; owned by a BridgedLink."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._writer = writer
        self._numbers = count(1)
        self._open: dict[int, tuple[_BridgeReader, _BridgeWriter]] = {}
        self._running = asyncio.ensure_future(self._run(reader))

    def open(self) -> tuple[Reader, Writer]:
        """Open the next connection; raises ConnectionError if the bridge is gone."""
        if self._running.done():
            raise ConnectionError("the bridge to the agent is closed")
        number = next(self._numbers)
        reader, writer = self._open[number] = _BridgeReader(self, number), _BridgeWriter(self, number)
        self.send(number, OPEN)
        return reader, writer

    def send(self, number: int, kind: int, payload: bytes = b"") -> None:
        """Put one frame on the channel."""
        self._writer.write(HEADER.pack(number, kind, len(payload)) + payload)

    def credit(self, number: int, taken: int) -> None:
        """Tell the node that *taken* bytes of connection *number* were read, if it is open."""
        if number in self._open and not self._running.done():
            self.send(number, CREDIT, CREDITED.pack(taken))

    async def drain(self) -> None:
        """Wait until the channel takes more; raises ConnectionError if it is gone."""
        if self._running.done():
            raise ConnectionError("the bridge to the agent is closed")
        await self._writer.drain()

    def forget(self, number: int) -> None:
        """Close connection *number* at this end."""
        if self._open.pop(number, None) is not None and not self._running.done():
            self.send(number, CLOSE)

    async def wait_closed(self) -> None:
        """Wait until the channel is gone."""
        await asyncio.wait({self._running})

    async def _run(self, source: Reader) -> None:
        try:
            while True:
                number, kind, length = HEADER.unpack(await source.readexactly(HEADER.size))
                if length > CHUNK or (kind == CREDIT and length != CREDITED.size):
                    log.warning("a frame of %d bytes and kind %d from a node: its bridge is closed", length, kind)
                    return
                payload = await source.readexactly(length)
                if number not in self._open:
                    continue
                reader, writer = self._open[number]
                if kind == DATA:
                    reader.take(payload)
                    if reader.unread > WINDOW:  # an honest node sends no more than it has credit for
                        self.forget(number)
                        self._end(reader, writer)
                elif kind == CREDIT:
                    writer.add_credit(CREDITED.unpack(payload)[0])
                elif kind == CLOSE:
                    del self._open[number]
                    self._end(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            for reader, writer in self._open.values():
                self._end(reader, writer)
            self._open.clear()

    @staticmethod
    def _end(reader: _BridgeReader, writer: _BridgeWriter) -> None:
        reader.feed_eof()
        writer.end()


class _BridgeReader(asyncio.StreamReader):
    """The reader of one numbered connection. *unread* bytes have come and were not asked for yet: WINDOW at most."""

    def __init__(self, client: BridgeClient, number: int) -> None:
        super().__init__()
        self.unread = 0
        self._client = client
        self._number = number
        self._uncredited = 0

    def take(self, data: bytes) -> None:
        """Have *data*, which has come for it, to be read."""
        self.unread += len(data)
        self.feed_data(data)

    def _taken(self, count: int) -> None:
        self.unread -= count
        self._uncredited += count
        if self._uncredited >= RENEW:
            self._client.credit(self._number, self._uncredited)
            self._uncredited = 0

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        if n >= 0:  # else it was read by this method, in parts
            self._taken(len(data))
        return data

    async def readexactly(self, n: int) -> bytes:
        # Before they have come: a message may be larger than the window, and none of it is read before all is there.
        self._taken(n)
        return await super().readexactly(n)


class _BridgeWriter:
    """The writer of one numbered connection. What the node gives no credit for waits here, and `drain` with it."""

    def __init__(self, client: BridgeClient, number: int) -> None:
        self._client = client
        self._number = number
        self._credit = Credit()
        self._waiting: deque[bytes] = deque()
        self._ended = False

    def write(self, data: bytes) -> None:
        if self._ended:
            return  # as every writer does; the reader tells that it is over
        self._waiting.extend(data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
        self._send()

    def _send(self) -> None:
        while self._waiting and self._credit.left > 0:
            part = self._waiting.popleft()
            if len(part) > self._credit.left:
                self._waiting.appendleft(part[self._credit.left :])
                part = part[: self._credit.left]
            self._credit.left -= len(part)
            self._client.send(self._number, DATA, part)

    def add_credit(self, count: int) -> None:
        """The agent has taken *count* bytes."""
        self._credit.add(count)
        self._send()

    async def drain(self) -> None:
        while self._waiting:
            await self._credit.wait()
        await self._client.drain()

    def end(self) -> None:
        """The connection is gone: what had no credit is dropped, and who waits for that goes on.

        A stream sends it again by its next link, and a request has its deadline.
        """
        self._ended = True
        self._waiting.clear()
        self._credit.add(1)

    def close(self) -> None:
        self._client.forget(self._number)
        self.end()
