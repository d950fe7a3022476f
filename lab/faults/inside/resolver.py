"""A DNS responder on a node that is late, knows nothing, or lies: `resolver.py CONFIG MARK`. Prints `ready PORT`.

CONFIG: `names` that are met (none: all); `delay` in seconds; `missing`: they don't exist; `address`: where they lead. All other
questions go to the node's own resolver, from sockets with MARK, so that they aren't sent back here.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

SECONDS = 5.0
A, NXDOMAIN, ANSWER = 1, 0x8183, 0x8180


def question(packet: bytes) -> tuple[str, int, int]:
    """Return the first question's name, its type, and where the question ends."""
    labels, place = [], 12
    while size := packet[place]:
        labels.append(packet[place + 1 : place + 1 + size].decode("ascii", "replace"))
        place += size + 1
    return ".".join(labels).lower(), struct.unpack("!H", packet[place + 1 : place + 3])[0], place + 5


def reply(packet: bytes, flags: int, address: str = "") -> bytes:
    """Return an answer to *packet*: none, or one address that may be kept for no time."""
    end = question(packet)[2]
    head = packet[:2] + struct.pack("!HHHHH", flags, 1, 1 if address else 0, 0, 0)
    tail = struct.pack("!HHHIH", 0xC00C, A, 1, 0, 4) + socket.inet_aton(address) if address else b""
    return head + packet[12:end] + tail


def nameserver() -> str:
    """Return the resolver that the node is told to ask."""
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        words = line.split()
        if words[:1] == ["nameserver"]:
            return words[1]
    return "127.0.0.11"


class Resolver(asyncio.DatagramProtocol):
    """Answers what comes in."""

    def __init__(self, config: dict[str, Any], mark: int) -> None:
        self.config = config
        self.mark = mark
        self.server = nameserver()
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer one question."""
        task = asyncio.ensure_future(self.answer(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, packet: bytes, sender: Any) -> None:
        """Do what the fault is, or ask on."""
        try:
            name, kind, _ = question(packet)
        except (IndexError, struct.error):
            return
        names = self.config.get("names")
        # With a search domain behind it as well: that is what a client asks for next when a name is missing.
        if not names or any(name == one or name.startswith(f"{one}.") for one in names):
            await asyncio.sleep(self.config.get("delay", 0))
            if self.config.get("missing"):
                self.transport.sendto(reply(packet, NXDOMAIN), sender)
                return
            if self.config.get("address"):
                said = reply(packet, ANSWER, self.config["address"] if kind == A else "")
                self.transport.sendto(said, sender)
                return
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plug:
            plug.setblocking(False)
            plug.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_MARK", 36), self.mark)
            plug.connect((self.server, 53))
            await loop.sock_sendall(plug, packet)
            try:
                self.transport.sendto(await asyncio.wait_for(loop.sock_recv(plug, 65535), SECONDS), sender)
            except (OSError, asyncio.TimeoutError):
                return


async def main(config: dict[str, Any], mark: int) -> None:
    """Answer until SIGTERM."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    transport, _ = await loop.create_datagram_endpoint(lambda: Resolver(config, mark), ("127.0.0.1", 0))
    print("ready", transport.get_extra_info("sockname")[1], flush=True)
    await over.wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
