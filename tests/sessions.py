"""A client that says itself when its connections begin and end, at any jupyter_server, and what cells print over each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import uuid
from typing import Any, Protocol
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.until import PROCESS_SECONDS, until


class Server(Protocol):
    """What is needed of a server."""

    @property
    def url(self) -> str:
        """Its address."""
        ...


class Kernel(Protocol):
    """What is needed of a kernel."""

    @property
    def id(self) -> str:
        """Its id."""
        ...


class Session:
    """One session of a client: as many connections to one kernel as it likes."""

    def __init__(self, server: Server, kernel: Kernel) -> None:
        self.id = uuid.uuid4().hex
        address = urlsplit(server.url)
        self.host, self.port = address.hostname or "", address.port or 80
        self.path = f"/api/kernels/{kernel.id}/channels?session_id={self.id}"

    def connect(self, port: int | None = None) -> connect:
        """Open a connection, through this machine's *port* if one is named; an async context manager."""
        url = f"ws://{self.host if port is None else '127.0.0.1'}:{port or self.port}{self.path}"
        return connect(
            url, open_timeout=PROCESS_SECONDS, close_timeout=1, max_size=None, ping_interval=None, proxy=None
        )

    async def dropped(self, *, opened: bool) -> socket.socket:
        """Return a connection that is never read, nor closed; with *opened*, after the server has opened it."""
        loop = asyncio.get_running_loop()
        dropped = await asyncio.to_thread(socket.create_connection, (self.host, self.port), PROCESS_SECONDS)
        dropped.setblocking(False)
        lines = (
            f"GET {self.path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        await loop.sock_sendall(dropped, "".join(f"{line}\r\n" for line in (*lines, "")).encode())
        if opened:
            assert b" 101 " in await asyncio.wait_for(loop.sock_recv(dropped, 64), PROCESS_SECONDS)
        return dropped

    async def run(self, connection: ClientConnection, code: str) -> str:
        """Send a cell; return its request's id."""
        request = uuid.uuid4().hex
        header = {
            "msg_id": request,
            "msg_type": "execute_request",
            "username": "test",
            "session": self.id,
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
        await connection.send(json.dumps({**message, "channel": "shell"}))
        return request


class Reader:
    """Reads a connection until the cell *request* has ended, or the connection has."""

    def __init__(self, connection: ClientConnection, request: str) -> None:
        self.numbers: list[int] = []
        """What the cell has printed over this connection, in the order in which it came."""
        self._request = request
        self._reading = asyncio.create_task(self._read(connection))

    async def _read(self, connection: ClientConnection) -> None:
        missing = {"execute_reply", "idle"}
        with contextlib.suppress(ConnectionClosed):
            while missing:
                message: dict[str, Any] = json.loads(await connection.recv())
                if message["parent_header"].get("msg_id") == self._request:
                    missing -= {message["msg_type"], message["content"].get("execution_state", "")}
                    if message["msg_type"] == "stream":
                        self.numbers += [int(number) for number in message["content"]["text"].split()]

    async def reached(self, number: int) -> None:
        """Wait until the cell has printed *number*."""
        await until(f"the cell has printed {number}", lambda: self.numbers[-1:] >= [number])

    async def ended(self) -> list[int]:
        """Wait for the end of the cell or of the connection, and return what was printed."""
        await asyncio.wait_for(self._reading, PROCESS_SECONDS)
        return self.numbers
