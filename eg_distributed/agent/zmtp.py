"""As much of ZMTP 3, ZMQ's protocol, as it takes to listen to a kernel's output and to find messages in what a stream kept.

A kernel's PUB socket greets whoever connects, without a secret (the NULL mechanism), and sends all that is subscribed to. A
message is its frames in a row: flags (1 byte), length (1 byte, or 8 with the flag LARGE), body; the last lacks the flag MORE.
"""

from __future__ import annotations

import struct
from typing import Iterator, Optional

from ..wire import Reader, Writer

DELIM = b"<IDS|MSG>"
"""What stands between the addresses and the message proper."""
_START = b"\x01\x09" + DELIM  # as a frame, with which what can be told for a message begins
_HEADER = 2  # frames behind the delimiter's: signature, header, parent, metadata, content
_PARENT = 3
_LEAST = 6  # frames of a message, from the delimiter on
_MORE, _LARGE, _COMMAND = 1, 2, 4
_LENGTH = struct.Struct(">Q")
_GREETING_SIZE = 64
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
_SUBSCRIBE_TO_ALL = b"\x00\x01\x01"
_MOST_OF_A_COMMAND = 64 * 1024


class NotZmtp(ValueError):
    """The peer doesn't speak ZMTP 3, or not without a secret."""


async def subscribe(reader: Reader, writer: Writer) -> None:
    """Greet a PUB socket and subscribe to all that it sends; raises NotZmtp, OSError."""
    try:
        writer.write(_GREETING)
        greeting = await reader.readexactly(_GREETING_SIZE)
        if greeting[0] != 0xFF or not greeting[9] & 1 or greeting[10] < 3 or greeting[12:32].rstrip(b"\0") != b"NULL":
            raise NotZmtp(f"a greeting of another protocol: {greeting[:16]!r}")
        writer.write(bytes((_COMMAND, len(_READY))) + _READY)
        flags = (await reader.readexactly(1))[0]
        if flags & _LARGE:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        else:
            length = (await reader.readexactly(1))[0]
        if length > _MOST_OF_A_COMMAND:
            raise NotZmtp(f"a command of {length} bytes")
        command = await reader.readexactly(length)
        if not flags & _COMMAND or not command.startswith(b"\x05READY"):
            raise NotZmtp(f"{command[:16]!r} instead of READY")
        writer.write(_SUBSCRIBE_TO_ALL)
        await writer.drain()
    except EOFError:  # asyncio.IncompleteReadError
        raise NotZmtp("it closed the connection instead of greeting") from None


def _frame(data: bytes | bytearray, at: int) -> Optional[tuple[int, int, int]]:
    """Return flags, start and end of the body of the frame at *at*, None where its header is incomplete; raises NotZmtp."""
    if len(data) < at + 2:
        return None
    flags = data[at]
    if flags > (_MORE | _LARGE | _COMMAND):
        raise NotZmtp(f"a frame with the flags {flags}")
    if not flags & _LARGE:
        return flags, at + 2, at + 2 + data[at + 1]
    start = at + 1 + _LENGTH.size
    if len(data) < start:
        return None
    (length,) = _LENGTH.unpack_from(data, at + 1)
    if length >> 63:
        raise NotZmtp("a frame of more than any frame may have")
    return flags, start, start + length


class Framer:
    """Finds the messages in what a peer sends, piece by piece; keeps no more than *limit* bytes of one that is incomplete."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0  # where the next frame begins
        self._skip = 0  # bytes still to come of a frame that is passed over
        self._is_passed_over = False  # the message
        self._has_more = False  # more frames follow the one that is passed over

    def feed(self, data: bytes) -> list[Optional[bytes]]:
        """Return the messages that *data* completes, each as its frames in a row; None for one that was too large.

        Raises NotZmtp.
        """
        self._buffer += data
        found: list[Optional[bytes]] = []
        begin = 0  # of the message
        while True:
            if self._skip:
                passed = min(self._skip, len(self._buffer) - self._at)
                self._skip -= passed
                self._at += passed
                if self._skip:
                    break
                begin = self._at
                if not self._has_more:
                    found.append(None)
                    self._is_passed_over = False
            frame = _frame(self._buffer, self._at)
            if frame is None:
                break
            flags, _, end = frame
            if self._is_passed_over or end - begin > self._limit:
                self._is_passed_over, self._has_more = True, bool(flags & _MORE)
                self._skip = end - self._at
                continue
            if len(self._buffer) < end:
                break
            self._at = end
            if flags & _COMMAND:
                begin = end
            elif not flags & _MORE:
                found.append(bytes(self._buffer[begin:end]))
                begin = end
        if self._is_passed_over:
            begin = self._at
        del self._buffer[:begin]
        self._at -= begin
        return found


def split(message: bytes) -> list[bytes]:
    """Return the bodies of the frames of one *message*; raises NotZmtp for what is none."""
    bodies: list[bytes] = []
    at = 0
    while at < len(message):
        frame = _frame(message, at)
        if frame is None or frame[2] > len(message):
            raise NotZmtp("a message that is cut off")
        bodies.append(message[frame[1] : frame[2]])
        at = frame[2]
    return bodies


def _proper(message: bytes, number: int) -> bytes:
    try:
        bodies = split(message)
        return bodies[bodies.index(DELIM) + number]
    except (ValueError, IndexError):
        return b""


def header(message: bytes) -> bytes:
    """Return the header of *message* as the kernel wrote it, empty where there is none."""
    return _proper(message, _HEADER)


def parent(message: bytes) -> bytes:
    """Return the same of the request that it belongs to."""
    return _proper(message, _PARENT)


def find_messages(data: bytes, at: int = 0) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each whole message in *data* from *at* on, which may begin anywhere; without their addresses.

    For what was kept of a stream, of which whatever lies before is gone.
    """
    while (begin := data.find(_START, at)) >= 0:
        end, frames = begin, 0
        while True:
            try:
                frame = _frame(data, end)
            except NotZmtp:
                frame = None
            if frame is None or frame[2] > len(data) or frame[0] & _COMMAND:
                break
            frames += 1
            end = frame[2]
            if not frame[0] & _MORE:
                break
        if frame is not None and frame[2] == end and not frame[0] & _MORE and frames >= _LEAST:
            yield begin, end
            at = end
        else:  # cut off, or bytes in a message that look like a beginning
            at = begin + 1
