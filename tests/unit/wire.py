"""A network that can be cut, frozen and closed: a TCP relay in front of a real server."""

from __future__ import annotations

import asyncio
import contextlib


class Wire:
    """Listens on a loopback port and joins each connection to *target*'s port; made and used on one loop."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        self.passed = 0  # bytes, both ways
        self._cut_at: int | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen, at the same port as before if there was one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            back, there = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers.add(there)
            pumps = [asyncio.ensure_future(pump) for pump in (self._pump(reader, there), self._pump(back, writer))]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        except OSError:
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    self._writers.discard(end)
                    end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                if self._cut_at is not None and self.passed + len(data) >= self._cut_at:
                    data = data[: self._cut_at - self.passed]
                    self._cut_at = None
                    writer.write(data)
                    self.cut()
                    return
                self.passed += len(data)
                writer.write(data)
                await writer.drain()

    def cut(self) -> None:
        """Lose all connections, with what is under way on them; new ones are taken."""
        for writer in list(self._writers):
            writer.transport.abort()

    def cut_after(self, count: int) -> None:
        """Cut as soon as *count* more bytes have passed."""
        self._cut_at = self.passed + count

    def freeze(self) -> None:
        """Hang: accept, but pass nothing on."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass on again, beginning with what was held up."""
        self._flowing.set()

    def refuse(self) -> None:
        """Listen no more; connections that are open stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        """End."""
        self.refuse()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
