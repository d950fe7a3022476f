"""The gateway's end of the bridge: numbered connections over one exec channel (see `agent/bridge.py`)."""

from __future__ import annotations

import asyncio
import logging
from itertools import count

from eg_distributed.agent.bridge import CHUNK, CLOSE, DATA, HEADER, OPEN
from eg_distributed.streams import CHUNK as STREAM_CHUNK
from eg_distributed.streams import WINDOW
from eg_distributed.wire import Reader, Writer

log = logging.getLogger(__name__)

UNREAD = (WINDOW + STREAM_CHUNK) * 9 // 8
"""Bytes of one connection that are kept because nothing has read them; one that has more is closed. An honest agent has no more
under way: it sends no more than WINDOW that the gateway has not acknowledged, and the eighth is for the heads of small frames.

Rejected: reading the channel no further, which would have one slow client hold up all kernels of the host.
"""


class BridgeClient:
    """Opens connections to the agent through one pair of reader and writer; owned by a BridgedLink."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._writer = writer
        self._numbers = count(1)
        self._readers: dict[int, _BridgeReader] = {}
        self._running = asyncio.ensure_future(self._run(reader))

    def open(self) -> tuple[Reader, Writer]:
        """Open the next connection; raises ConnectionError if the bridge is gone."""
        if self._running.done():
            raise ConnectionError("the bridge to the agent is closed")
        number = next(self._numbers)
        reader = _BridgeReader()
        self._readers[number] = reader
        self.send(number, OPEN)
        return reader, _BridgeWriter(self, number)

    def send(self, number: int, kind: int, payload: bytes = b"") -> None:
        """Put one frame on the channel."""
        self._writer.write(HEADER.pack(number, kind, len(payload)) + payload)

    async def drain(self) -> None:
        """Wait until the channel takes more; raises ConnectionError if it is gone."""
        if self._running.done():
            raise ConnectionError("the bridge to the agent is closed")
        await self._writer.drain()

    def forget(self, number: int) -> None:
        """Close connection *number* at this end."""
        if self._readers.pop(number, None) is not None and not self._running.done():
            self.send(number, CLOSE)

    async def wait_closed(self) -> None:
        """Wait until the channel is gone."""
        await asyncio.wait({self._running})

    async def _run(self, source: Reader) -> None:
        try:
            while True:
                number, kind, length = HEADER.unpack(await source.readexactly(HEADER.size))
                if length > CHUNK:
                    log.warning(
                        "a frame of %d bytes from a node, at most %d are allowed: its bridge is closed", length, CHUNK
                    )
                    return
                payload = await source.readexactly(length)
                reader = self._readers.get(number)
                if reader is None:
                    continue
                if kind == DATA:
                    reader.take(payload)
                    if reader.unread > UNREAD:
                        self.forget(number)
                        reader.feed_eof()
                elif kind == CLOSE:
                    del self._readers[number]
                    reader.feed_eof()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            for reader in self._readers.values():
                reader.feed_eof()
            self._readers.clear()


class _BridgeReader(asyncio.StreamReader):
    """The reader of one numbered connection; nothing stops what feeds it, so *unread* bytes are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = 0

    def take(self, data: bytes) -> None:
        """Have *data*, which has come for it, to be read."""
        self.unread += len(data)
        self.feed_data(data)

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        if n >= 0:  # else it was read by this method, in parts
            self.unread -= len(data)
        return data

    async def readexactly(self, n: int) -> bytes:
        data = await super().readexactly(n)
        self.unread -= len(data)
        return data


class _BridgeWriter:
    """The writer of one numbered connection."""

    def __init__(self, client: BridgeClient, number: int) -> None:
        self._client = client
        self._number = number

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            self._client.send(self._number, DATA, data[start : start + CHUNK])

    async def drain(self) -> None:
        await self._client.drain()

    def close(self) -> None:
        self._client.forget(self._number)
