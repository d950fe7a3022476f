"""Many connections to the agent through one exec channel, for nodes whose sshd forbids forwarding.

Runs on the node with the exec's stdin and stdout. Frames carry a connection number, a kind and a payload. There is no flow
control for each connection: what a stream has under way is bounded by its replay buffer, at both ends.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Optional

from .processes import raise_file_limit

OPEN, DATA, CLOSE = 0, 1, 2
HEADER = struct.Struct(">IBI")
"""Connection number, kind, length of the payload."""
CHUNK = 128 * 1024


class Bridge:
    """The node's end: opens a connection to the agent's socket for each number that the gateway opens."""

    def __init__(self, path: str, output: asyncio.StreamWriter) -> None:
        self._path = path
        self._output = output
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._pending: dict[int, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Before Python 3.10 only one may wait for a writer at a time.
        self._draining = asyncio.Lock()

    async def run(self, source: asyncio.StreamReader) -> None:
        """Serve until the gateway closes its end."""
        while True:
            try:
                number, kind, length = HEADER.unpack(await source.readexactly(HEADER.size))
                if length > CHUNK:  # where the next frame begins is unknown
                    return
                payload = await source.readexactly(length)
            except (asyncio.IncompleteReadError, OSError):
                return
            if kind == OPEN:
                self._pending[number] = []
                task = asyncio.ensure_future(self._carry(number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif kind == DATA:
                writer = self._writers.get(number)
                if writer is not None:
                    writer.write(payload)
                elif number in self._pending:
                    self._pending[number].append(payload)
            elif kind == CLOSE:
                self._pending.pop(number, None)
                closing = self._writers.pop(number, None)
                if closing is not None:
                    closing.close()

    async def _carry(self, number: int) -> None:
        writer: Optional[asyncio.StreamWriter] = None
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
            if number not in self._pending:
                return
            for payload in self._pending.pop(number):
                writer.write(payload)
            self._writers[number] = writer
            while True:
                data = await reader.read(CHUNK)
                if not data:
                    return
                self._output.write(HEADER.pack(number, DATA, len(data)) + data)
                async with self._draining:
                    await self._output.drain()
        except OSError:
            return
        finally:
            self._pending.pop(number, None)
            self._writers.pop(number, None)
            if writer is not None:
                writer.close()
            self._output.write(HEADER.pack(number, CLOSE, 0))


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
