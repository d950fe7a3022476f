"""The agent's half of Enterprise Gateway's launcher contract: a loopback listener for the launcher's answer.

A launcher connects to `{response_address}`, sends one base64 text and closes. What it says is encrypted for the gateway's
public key, so the agent hands it up as it is and the gateway sends the connection information back down. Nothing listens
on the network: stock gateways keep a port open for this, on all addresses, with unauthenticated senders.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
from pathlib import Path
from typing import AbstractSet, Any, Callable, Optional

from ..protocol import CHANNELS
from .endpoints import endpoint
from .sockets import listeners, peer

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
            if peer(writer) not in self._users:
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


def owners(info: dict[str, Any]) -> set[int]:
    """Return the user ids of those who listen where *info*, a kernel's connection information, leads; -1 for nobody."""
    found = set()
    ends = [endpoint(info, channel) for channel in CHANNELS]
    listening = listeners(str(info["ip"]), {port for _, port in ends if port})
    for address, port in ends:
        try:
            found |= (listening[port] if port else {os.stat(address).st_uid}) or {-1}
        except OSError:
            found.add(-1)
    return found


def remove_connection_files(kernel_id: str, folder: str, until: float) -> None:
    """Remove the connection file, with the kernel's key in it, that Enterprise Gateway's Python launcher left in *folder*.

    Not one that was written after *until*, in seconds since 1970. Called in a thread.
    """
    for path in Path(folder).glob(f"kernel-{glob.escape(kernel_id)}_*.json"):
        with contextlib.suppress(OSError):  # another user's, where the launcher ran as such
            if path.stat().st_mtime <= until:
                path.unlink()
