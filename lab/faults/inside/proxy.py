"""A TCP proxy on a node that makes connections slow, narrow or stuck: `proxy.py CONFIG LEVEL`.

CONFIG: `port` to lead to on the node itself; `delay` and `jitter` (seconds, what the node sends), `rate_in` and `rate_out` (bytes
a second, seen from the node), `stall` (bytes of the node's that come through), `seed`. Prints `ready PORT`. After SIGTERM it
does no harm any more and leaves with its last connection: healing must not break what lives through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import sys
from pathlib import Path
from typing import Any

CHUNK = 16 * 1024


class Proxy:
    """All connections of one fault."""

    def __init__(self, config: dict[str, Any], mark: int) -> None:
        self.config = config
        self.mark = mark
        self.healed = asyncio.Event()
        self.open: set[asyncio.Task[None]] = set()
        self.random = random.Random(config.get("seed", 0))

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.ensure_future(self.serve(reader, writer))
        self.open.add(task)
        task.add_done_callback(self.open.discard)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes both ways until both sides have ended."""
        plug = socket.socket()
        plug.setblocking(False)
        with contextlib.suppress(OSError):
            plug.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_MARK", 36), self.mark)
        try:
            await asyncio.get_running_loop().sock_connect(plug, ("127.0.0.1", self.config["port"]))
        except OSError:
            plug.close()
            _reset(writer)
            return
        up_reader, up_writer = await asyncio.open_connection(sock=plug)
        inward = self.carry(reader, up_writer, rate=self.config.get("rate_in", 0))
        outward = self.carry(
            up_reader,
            writer,
            rate=self.config.get("rate_out", 0),
            delay=self.config.get("delay", 0),
            jitter=self.config.get("jitter", 0),
            stall=self.config.get("stall", -1),
        )
        await asyncio.gather(inward, outward, return_exceptions=True)
        for each in (writer, up_writer):
            each.close()

    async def carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        rate: float = 0,
        delay: float = 0,
        jitter: float = 0,
        stall: int = -1,
    ) -> None:
        """Carry one direction: a reader stamps chunks with when they are due, a writer waits for that."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        clock = asyncio.get_running_loop().time

        async def read() -> None:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(CHUNK):
                    late = max(0.0, delay + self.random.uniform(-jitter, jitter)) if jitter else delay
                    await queue.put((clock() + late, data))
            await queue.put((clock() + delay, b""))

        reading = asyncio.ensure_future(read())
        passed = 0
        try:
            while True:
                due, data = await queue.get()
                await self.pause(due - clock())
                if not data:
                    break
                if 0 <= stall < passed + len(data) and not self.healed.is_set():
                    writer.write(data[: stall - passed])
                    await self.healed.wait()
                    data = data[max(0, stall - passed) :]
                passed += len(data)
                writer.write(data)
                await writer.drain()
                if rate:
                    await self.pause(len(data) / rate)
            writer.write_eof()
        except (ConnectionError, OSError, RuntimeError):
            _reset(writer)
        finally:
            reading.cancel()

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the fault is healed."""
        if seconds > 0 and not self.healed.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.healed.wait(), seconds)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as one that broke, not as one that was over."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def main(config: dict[str, Any], mark: int) -> None:
    """Listen until SIGTERM, then serve what is open to its end."""
    proxy = Proxy(config, mark)
    server = await asyncio.start_server(proxy.accept, "0.0.0.0", 0)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, proxy.healed.set)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await proxy.healed.wait()
    # Not `wait_closed`: from Python 3.12 on it waits for the connections, which are waited for below.
    server.close()
    while proxy.open:
        await asyncio.wait(set(proxy.open))


if __name__ == "__main__":
    asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])))
