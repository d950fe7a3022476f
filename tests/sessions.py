"""A client that says itself when its connections begin and end, at any jupyter_server, and what cells print over each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import uuid
from typing import Any, Protocol
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.until import MACHINE_SECONDS, PROCESS_SECONDS, until

CELL_SECONDS = 90.0
"""How long a test waits for a cell that prints much."""


V1 = "v1.kernel.websocket.jupyter.org"
"""JupyterLab's protocol, where the server knows it; others send JSON."""


def _encoded(channel: str, parts: list[bytes]) -> bytes:
    """Return a message as a frame of V1: how many offsets, these, and what they point to."""
    pieces = [channel.encode(), *parts]
    places = [8 * (len(pieces) + 2)]
    for piece in pieces:
        places.append(places[-1] + len(piece))
    return b"".join([*(number.to_bytes(8, "little") for number in (len(places), *places)), *pieces])


def decoded(frame: str | bytes) -> dict[str, Any]:
    """Return the message in a frame of either protocol; without buffers."""
    message: dict[str, Any]
    if isinstance(frame, str):
        message = json.loads(frame)
        return message
    numbers = [
        int.from_bytes(frame[8 * i : 8 * i + 8], "little") for i in range(int.from_bytes(frame[:8], "little") + 1)
    ]
    parts = [frame[start:end] for start, end in itertools.pairwise(numbers[1:])]
    header, parent, metadata, content = (json.loads(part) for part in parts[1:5])
    channel = parts[0].decode()
    message = {"channel": channel, "header": header, "parent_header": parent, "metadata": metadata, "content": content}
    return {**message, "msg_id": header["msg_id"], "msg_type": header["msg_type"]}


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

    def __init__(self, server: Server, kernel: Kernel, *, v1: bool = False) -> None:
        self.id = uuid.uuid4().hex
        self._subprotocols = [Subprotocol(V1)] if v1 else None
        address = urlsplit(server.url)
        self.host, self.port = address.hostname or "", address.port or 80
        self.path = f"/api/kernels/{kernel.id}/channels?session_id={self.id}"

    def connect(self, port: int | None = None) -> connect:
        """Open a connection, through this machine's *port* if one is named; an async context manager."""
        url = f"ws://{self.host if port is None else '127.0.0.1'}:{port or self.port}{self.path}"
        return connect(
            url,
            open_timeout=PROCESS_SECONDS,
            close_timeout=1,
            max_size=None,
            ping_interval=None,
            proxy=None,
            subprotocols=self._subprotocols,
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
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        if connection.subprotocol == V1:
            await connection.send(_encoded("shell", [json.dumps(part).encode() for part in message.values()]))
        else:
            await connection.send(json.dumps({**message, "buffers": [], "channel": "shell"}))
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
                message = decoded(await connection.recv())
                if message["parent_header"].get("msg_id") == self._request:
                    missing -= {message["msg_type"], message["content"].get("execution_state", "")}
                    if message["msg_type"] == "stream":
                        self.numbers += [int(number) for number in message["content"]["text"].split()]

    async def reached(self, number: int) -> None:
        """Wait until the cell has printed *number*."""
        await until(f"the cell has printed {number}", lambda: self.numbers[-1:] >= [number])

    async def has_some(self, count: int) -> None:
        """Wait until *count* numbers have come over this connection."""
        await until(f"{count} numbers have come", lambda: len(self.numbers) >= count)

    async def ended(self) -> list[int]:
        """Wait for the end of the cell or of the connection, and return what was printed."""
        await asyncio.wait_for(self._reading, PROCESS_SECONDS)
        return self.numbers


class Cell:
    """What came of one cell, over as many connections as it takes."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        """The first words of the lines that it has printed, in the order in which they came."""
        self.replies: list[dict[str, Any]] = []
        self.states: list[str] = []
        self._line = ""  # one that has not ended: a flush may come in the middle

    def break_off(self) -> None:
        """A connection has ended, and the next one may begin with what came at its end."""
        self.hear("stream", {"name": "stdout", "text": "\n"})

    def hear(self, kind: str, content: dict[str, Any]) -> None:
        """Take a message of the cell."""
        if kind == "stream" and content["name"] == "stdout":
            *lines, self._line = (self._line + content["text"]).split("\n")
            self.numbers += [int(line.split()[0]) for line in lines if line]
        elif kind == "execute_reply":
            self.replies.append(content)
        elif kind == "status":
            self.states.append(content["execution_state"])

    async def reached(self, number: int) -> None:
        """Wait until the cell has printed *number*."""
        await until(f"the cell has printed {number}", lambda: self.numbers[-1:] >= [number], CELL_SECONDS)

    async def ended(self) -> None:
        """Wait for the cell's reply, and for the kernel to be idle after it."""
        await until("the cell has its reply", lambda: bool(self.replies), CELL_SECONDS)
        await until("the kernel is idle", lambda: self.states[-1:] == ["idle"], CELL_SECONDS)


class Tab:
    """A client that comes again with its session."""

    def __init__(self, server: Server, kernel: Kernel) -> None:
        self.told = ""
        """What was said on stderr."""
        self._session = Session(server, kernel)
        self._cells: dict[str, Cell] = {}
        self._connection: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, server: Server) -> None:
        """Connect to *server*, which has another port after each start."""
        address = urlsplit(server.url)
        self._session.host, self._session.port = address.hostname or "", address.port or 80
        self._connection = await self._session.connect()
        for cell in self._cells.values():
            cell.break_off()
        self._reading = asyncio.create_task(self._read(self._connection))

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None and self._reading is not None:
            await self._connection.close()
            await self._reading

    async def cut(self) -> None:
        """Lose the connection, without a word to the server."""
        assert self._connection is not None
        self._connection.transport.abort()
        await self.lost_connection()

    async def run(self, code: str) -> Cell:
        """Send a cell."""
        assert self._connection is not None
        cell = Cell()
        self._cells[await self._session.run(self._connection, code)] = cell
        return cell

    async def runs(self) -> None:
        """Assert that a cell runs."""
        cell = await self.run("print(1)")
        await cell.ended()
        assert cell.numbers == [1]

    async def _read(self, connection: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = decoded(await connection.recv())
                kind, content = message["msg_type"], message["content"]
                if kind == "stream" and content["name"] == "stderr":
                    self.told += content["text"]
                cell = self._cells.get(message["parent_header"].get("msg_id", ""))
                if cell is not None:
                    cell.hear(kind, content)

    async def lost_connection(self) -> None:
        """Wait until the connection has ended."""
        assert self._reading is not None
        await asyncio.wait_for(self._reading, MACHINE_SECONDS)
        for cell in self._cells.values():
            cell.break_off()
