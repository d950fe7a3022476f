"""A TCP proxy that falls silent: its connections stay open and pass nothing on, as those of a laptop that sleeps."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Silencer:
    """Passes connections to a port of this machine on to *host* and *port*, until `sleep`; an async context manager.

    With *lag*, what a client sends arrives that many seconds later, or up to twice as many, as from one that is far away.
    """

    def __init__(self, host: str, port: int, lag: float = 0.0) -> None:
        self.lag = lag
        self.swallowed = 0
        """Bytes that came while it slept, or on connections of before, and were not passed on."""
        self.target = (host, port)
        """Where new connections lead."""
        self._pairs: set[_Pair] = set()
        self._awake = asyncio.Event()
        self._awake.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pair in self._pairs:
            pair.end()
        await asyncio.gather(*(task for pair in self._pairs for task in pair.tasks), return_exceptions=True)

    async def sleep(self) -> None:
        """Pass nothing on from now on, in either direction; new connections have to wait for `wake`."""
        self._awake.clear()
        for pair in self._pairs:
            pair.silent = True

    async def wake(self) -> None:
        """Reset the client's side of each connection of before, and serve new ones; the server hears nothing of it."""
        self._awake.set()
        for pair in self._pairs:
            if pair.silent:
                pair.client.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._awake.wait()
        try:
            there, back = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        pair = _Pair(writer, back)
        pair.tasks = (
            asyncio.create_task(self._pass(pair, reader, back, self.lag)),
            asyncio.create_task(self._pass(pair, there, writer, 0.0)),
        )
        self._pairs.add(pair)

    async def _pass(self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lag: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(lag)
                if pair.silent:
                    self.swallowed += len(data)
                else:
                    writer.write(data)
        if not pair.silent:
            writer.close()


class _Pair:
    """A client's connection, and the one to the server behind it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.silent = False
        self.tasks: tuple[asyncio.Task[None], ...] = ()

    def end(self) -> None:
        """Reset both connections."""
        self.client.transport.abort()
        self.server.transport.abort()
        for task in self.tasks:
            task.cancel()
