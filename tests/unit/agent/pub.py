"""A PUB socket of tests, and messages as kernels write them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from pathlib import Path

from eg_distributed.agent.kernels import RUNNING
from eg_distributed.agent.zmtp import DELIM

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04XPUB"


def encoded(bodies: list[bytes]) -> bytes:
    """Return a message as ZMTP has it."""
    frames = []
    for number, body in enumerate(bodies):
        more = int(number < len(bodies) - 1)
        if len(body) > 255:
            frames.append(bytes((more | 2,)) + struct.pack(">Q", len(body)) + body)
        else:
            frames.append(bytes((more, len(body))) + body)
    return b"".join(frames)


def message(name: str, content: bytes = b"{}", parent: bytes = b"{}") -> list[bytes]:
    """Return the parts of the message with the id *name*."""
    return [DELIM, b"signature", json.dumps({"msg_id": name}).encode(), parent, b"{}", content]


class Publishing:
    """A kernel, as far as its output goes: what it publishes comes to all who have subscribed."""

    def __init__(self, folder: Path, name: str = "k1") -> None:
        self.id, self.attempt, self.state = name, "a1", RUNNING
        self.connection = {"transport": "ipc"}
        self.directory = folder / name
        self.directory.mkdir(exist_ok=True)
        self.subscribers: list[asyncio.StreamWriter] = []
        self._greeting: set[asyncio.Task[None]] = set()

    async def connect(self, channel: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the visitor's end of a connection."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        task = asyncio.ensure_future(self._greet(reader, writer))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)
        return await asyncio.open_connection(sock=ours)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.readexactly(64)
        writer.write(READY)
        while await reader.readexactly(1) != b"\x01":  # the body of SUBSCRIBE: all
            pass
        self.subscribers.append(writer)

    def publish(self, name: str, content: bytes = b"{}") -> None:
        """Send a message to all who have subscribed."""
        for writer in self.subscribers:
            writer.write(encoded([b"topic", *message(name, content)]))

    def end(self) -> None:
        """Close all connections."""
        for writer in self.subscribers:
            writer.transport.abort()
        self.subscribers.clear()
