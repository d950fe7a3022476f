"""Links: open ways to one host's agent, over SSH, through a bridge, or on this machine.

Over SSH each connection to the agent's socket is a direct-streamlocal channel, which sshd's MaxSessions does not count; where
sshd forbids those, all connections share one exec channel (see `agent/bridge.py`); on the gateway's own machine they are
plain UNIX connections.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

import asyncssh

from eg_distributed.wire import Reader, Writer

from .bridge import BridgeClient


class Link(ABC):
    """An open way to one host's agent; made by `connect`, owned by a Node."""

    @abstractmethod
    async def open(self) -> tuple[Reader, Writer]:
        """Open a byte connection to the agent's socket; raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Close the link and all that was opened through it."""

    @abstractmethod
    async def wait_closed(self) -> None:
        """Wait until the link is gone, for whatever reason."""


class SSHLink(Link):
    """Each connection to the agent is an SSH channel of its own: SSH's windows keep one's flood from delaying another."""

    def __init__(self, connection: asyncssh.SSHClientConnection, path: str) -> None:
        self._connection = connection
        self._path = path

    async def open(self) -> tuple[Reader, Writer]:
        """Open a direct-streamlocal channel to the agent's socket."""
        try:
            reader, writer = await self._connection.open_unix_connection(self._path)
        except asyncssh.Error as error:
            raise ConnectionError(error.reason) from error
        return Shielded(reader), ShieldedWriter(writer)

    def close(self) -> None:
        """Close the SSH connection."""
        self._connection.abort()

    async def wait_closed(self) -> None:
        """Wait until SSH says that the connection is gone."""
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


class LocalLink(Link):
    """Plain UNIX connections to an agent on this machine."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._closed = asyncio.Event()

    async def open(self) -> tuple[Reader, Writer]:
        """Connect to the agent's socket."""
        return await asyncio.open_unix_connection(self._path)

    def close(self) -> None:
        """Nothing is held; only those who wait are told."""
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait for `close`: the machine itself does not go away."""
        await self._closed.wait()


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
