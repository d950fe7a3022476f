"""The messages between a gateway and an agent; standard library only, since the agent carries this file to its node.

A connection to the agent's socket opens with one *hello* message, which says what the connection is for:

    control   requests, replies and events of one gateway, as messages, until either side closes
    stream    one of a kernel's ZMQ connections, as the frames of `streams.py`, resumable under the stream's id

A message is a JSON object behind its length (4 bytes, big-endian). Requests carry `id`, `method` and `params`;
replies `id` and `result` or `error`; events `event` and their fields.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, Protocol

PROTOCOL = 3
"""Version of everything in this file, in streams.py and of the agent's requests: one more for whatever an older gateway or
agent would not understand. Agents of another version are left alone, and live side by side with ours."""

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
"""A kernel's five channels, in the order of their ports in an `ipc` connection file (1 to 5)."""

SENTINEL = b"\x1e eg-distributed agent \x1e"
"""What precedes the agent's first answer, so that the noise of a login can be told from it."""

MAX_MESSAGE = 64 * 1024 * 1024
"""Upper bound of a message in bytes; more is a broken or hostile peer."""

Message = dict[str, Any]
_LENGTH = struct.Struct(">I")


class Reader(Protocol):
    """What is needed of a reader: asyncio's StreamReader and asyncssh's SSHReader both have it."""

    async def read(self, n: int = -1) -> bytes:
        """Return up to *n* bytes, b"" at the end."""
        ...

    async def readexactly(self, n: int) -> bytes:
        """Return *n* bytes or raise IncompleteReadError."""
        ...


class Writer(Protocol):
    """What is needed of a writer: asyncio's StreamWriter and asyncssh's SSHWriter both have it."""

    def write(self, data: bytes) -> None:
        """Queue *data*."""
        ...

    async def drain(self) -> None:
        """Wait until the queue is short again."""
        ...

    def close(self) -> None:
        """Close after what is queued."""
        ...


def encode(message: Message) -> bytes:
    """Return *message* as it goes over a connection."""
    body = json.dumps(message, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: Reader) -> Message | None:
    """Return the next message, or None when the peer has closed.

    Raises ValueError for a message that is too long or no JSON object.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_MESSAGE:
            raise ValueError(f"a message of {length} bytes")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    message = json.loads(body.decode("utf-8", "surrogatepass"))
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message
