"""What a command in a container has written, read from the engine without losing its beginning."""

from __future__ import annotations

import struct
from typing import Any, Final

from lab.drivers.docker.engine import post

_HEADER: Final = struct.Struct(">BxxxL")
STDERR: Final = 2


def output_of(api: Any, handle: str) -> tuple[bytes, bytes]:
    """Start the exec *handle* of the low-level client *api*; return its stdout and stderr once it has ended.

    Has no deadline: the caller's thread has. Raises docker's APIError, requests' exceptions, and EOFError if the engine hangs up
    amid a piece. Not by the client's own `exec_start`: it asks for an upgrade of the connection and then reads from the socket
    past its own HTTP reader, which has by then, on a busy machine, taken in the beginning of the output with the headers.
    """
    answer = post(api, f"/exec/{handle}/start", {"Tty": False, "Detach": False}, stream=True)
    try:
        api._raise_for_status(answer)
        api._disable_socket_timeout(api._get_raw_response_socket(answer))
        found = {False: bytearray(), True: bytearray()}
        while header := _exactly(answer.raw, _HEADER.size):
            stream, length = _HEADER.unpack(header)
            piece = _exactly(answer.raw, length)
            if len(piece) < length:
                raise EOFError("the engine hung up in the middle of the output")
            found[stream == STDERR] += piece
        return bytes(found[False]), bytes(found[True])
    finally:
        answer.close()


def _exactly(stream: Any, length: int) -> bytes:
    """Return *length* bytes, fewer only at the end."""
    found = b""
    while len(found) < length:
        part = stream.read(length - len(found))
        if not part:
            break
        found += part
    return found
