"""The agent's half of Enterprise Gateway's launcher contract: a loopback listener for the launcher's answer.

A launcher connects to `{response_address}`, sends one base64 text and closes. What it says is encrypted for the gateway's
public key, so the agent hands it up as it is and the gateway sends the connection information back down. Nothing listens
on the network: stock gateways keep a port open for this, on all addresses, with unauthenticated senders.
"""

from __future__ import annotations

import asyncio
from typing import AbstractSet, Callable, Optional

_MAX_RESPONSE = 64 * 1024
_RESPONSE_DEADLINE = 10.0  # seconds that a connected launcher has to finish its answer


class ResponseListener:
    """Listens on the node's loopback while one kernel starts; owned by that kernel.

    Hears only *users*, by their ids: whoever else is on the node can read the public key from the process list, and would
    otherwise be able to put his own kernel in this one's place.
    """

    def __init__(self, on_response: Callable[[str], None], users: AbstractSet[int]) -> None:
        self._on_response = on_response
        self._users = users
        self._server: Optional[asyncio.base_events.Server] = None

    async def open(self) -> str:
        """Start listening and return the address to be put in place of `{response_address}`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _owner(writer) not in self._users:
                return
            data = bytearray()
            while len(data) <= _MAX_RESPONSE:
                chunk = await asyncio.wait_for(reader.read(4096), _RESPONSE_DEADLINE)
                if not chunk:
                    break
                data += chunk
            if data and len(data) <= _MAX_RESPONSE:
                self._on_response(data.decode("ascii", "replace"))
        except (OSError, asyncio.TimeoutError):
            pass  # an empty or endless answer is no answer; the listener stays for the real one
        finally:
            writer.close()

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            self._server = None


def _owner(writer: asyncio.StreamWriter) -> Optional[int]:
    """Return the user id of the process at the other end of a loopback connection, None if it can't be told."""
    port = writer.get_extra_info("sockname")[1]
    peer = writer.get_extra_info("peername")[1]
    wanted = (f"{peer:04X}", f"{port:04X}")
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as rows:
                for row in rows:
                    fields = row.split()
                    if (fields[1].rpartition(":")[2], fields[2].rpartition(":")[2]) == wanted:
                        return int(fields[7])
        except OSError:
            continue
    return None
