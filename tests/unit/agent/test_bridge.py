"""Many connections through one channel, both ends of it."""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eg_distributed.agent import bridge
from eg_distributed.agent.bridge import CHUNK, CLOSE, DATA, HEADER, WINDOW, Bridge
from eg_distributed.link.agent_archive import agent_archive
from eg_distributed.link.bridge import BridgeClient
from eg_distributed.streams import Relay
from tests.unit.agents import DEADLINE, pythons
from tests.until import until


@asynccontextmanager
async def bridged(path: Path) -> AsyncIterator[BridgeClient]:
    """Both ends of a bridge, joined by a pipe, to the server at *path*."""
    one, other = socket.socketpair()
    near, far = await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=other)
    client = BridgeClient(*near)
    running = asyncio.ensure_future(Bridge(str(path), far[1]).run(far[0]))
    yield client
    near[1].close()
    await asyncio.wait_for(running, DEADLINE)
    await asyncio.wait_for(client.wait_closed(), DEADLINE)
    far[1].close()


async def joined() -> tuple[tuple[asyncio.StreamReader, asyncio.StreamWriter], ...]:
    """Return two ends of a connection."""
    one, other = socket.socketpair()
    return await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=other)


@pytest.fixture
async def echo(short: Path) -> AsyncIterator[Path]:
    """A server that echoes, and closes after `bye`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
            if data.endswith(b"bye"):
                break
        writer.close()

    path = short / "echo"
    server = await asyncio.start_unix_server(serve, path)
    yield path
    server.close()


async def test_connections_do_not_mix(echo: Path) -> None:
    """Megabytes on several connections at once arrive each on its own, byte for byte."""
    chance = random.Random(5)

    async def through(client: BridgeClient, data: bytes) -> bytes:
        reader, writer = client.open()

        async def send() -> None:
            position = 0
            while position < len(data):
                size = chance.choice([1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
                writer.write(data[position : position + size])
                await writer.drain()
                position += size

        _, got = await asyncio.gather(send(), reader.readexactly(len(data)))
        writer.close()
        return got

    async with bridged(echo) as client:
        contents = [os.urandom(1 << 20) for _ in range(5)]
        got = await asyncio.wait_for(asyncio.gather(*(through(client, data) for data in contents)), DEADLINE)
    assert got == contents


@pytest.mark.parametrize("python", pythons("3.9", "3.10", "3.13"))
async def test_floods_share_the_channel(echo: Path, short: Path, python: str) -> None:
    """Connections that all wait for a full channel get their turn, whichever Python the node has."""
    archive = short / "agent.zip"
    archive.write_bytes(agent_archive()[1])
    process = await asyncio.create_subprocess_exec(
        python, "-I", archive, "bridge", echo, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    client = BridgeClient(process.stdout, process.stdin)
    connections = [client.open() for _ in range(4)]
    sent = os.urandom(2 << 20)
    for _, writer in connections:
        writer.write(sent)
    got = [await asyncio.wait_for(reader.readexactly(len(sent)), DEADLINE) for reader, _ in connections]
    assert all(each == sent for each in got)
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), DEADLINE) == 0


async def test_an_end_is_passed_on(echo: Path) -> None:
    """When the server closes, the other end reads to the end; other connections stay."""
    async with bridged(echo) as client:
        (reader, writer), (other, other_writer) = client.open(), client.open()
        writer.write(b"bye")
        assert await asyncio.wait_for(reader.read(3), DEADLINE) == b"bye"
        assert await asyncio.wait_for(reader.read(1), DEADLINE) == b""
        other_writer.write(b"still")
        assert await asyncio.wait_for(other.readexactly(5), DEADLINE) == b"still"


async def test_what_cannot_be_reached_is_closed(short: Path) -> None:
    """No server: the connection ends at once, and with it nothing else."""
    async with bridged(short / "nobody") as client:
        reader, writer = client.open()
        writer.write(b"anybody?")
        assert await asyncio.wait_for(reader.read(1), DEADLINE) == b""


async def test_a_lost_channel_ends_all(echo: Path) -> None:
    """When the channel is gone all connections end, and no new one opens."""
    async with bridged(echo) as client:
        reader, _ = client.open()
    assert await asyncio.wait_for(reader.read(1), DEADLINE) == b""
    with pytest.raises(ConnectionError):
        client.open()


async def test_a_connection_closed_at_once_leaves_nothing(echo: Path) -> None:
    """Open and close in one breath: nothing hangs, and the bridge goes on."""
    async with bridged(echo) as client:
        for _ in range(20):
            _, writer = client.open()
            writer.write(b"x")
            writer.close()
        reader, writer = client.open()
        writer.write(b"still")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"still"


async def test_a_node_that_sends_what_nobody_reads_fills_no_memory() -> None:
    """Past its bound a connection is closed, with what it had still readable; the others go on."""
    told = bytearray()

    class Channel:
        """Where the client's frames go."""

        def write(self, data: bytes) -> None:
            told.extend(data)

        async def drain(self) -> None:
            """Nothing waits."""

        def close(self) -> None:
            """Nothing is open."""

    source = asyncio.StreamReader()
    client = BridgeClient(source, Channel())
    (flooded, _), (other, _) = client.open(), client.open()
    told.clear()
    frame = HEADER.pack(1, DATA, CHUNK) + bytes(CHUNK)
    for _ in range(2 * WINDOW // CHUNK):
        source.feed_data(frame)
    source.feed_data(HEADER.pack(2, DATA, 5) + b"still")
    assert await asyncio.wait_for(other.readexactly(5), DEADLINE) == b"still"
    assert bytes(told) == HEADER.pack(1, CLOSE, 0)
    kept = 0
    while data := await asyncio.wait_for(flooded.read(1 << 20), DEADLINE):
        kept += len(data)
    assert WINDOW < kept <= WINDOW + CHUNK
    source.feed_eof()
    await asyncio.wait_for(client.wait_closed(), DEADLINE)


async def test_a_client_that_stands_still_costs_its_stream_nothing(short: Path) -> None:
    """Of a kernel's output a window is sent, and all of it arrives by the same link once it is read."""
    (kernel, agent), (gateway, notebook) = await joined(), await joined()
    far, near = Relay(*agent, limit=1 << 30), Relay(*gateway)
    tasks = [asyncio.ensure_future(relay.run()) for relay in (far, near)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await far.serve(reader, writer, 0)

    async def print_all() -> None:
        for start in range(0, len(output), 50_000):
            kernel[1].write(output[start : start + 50_000])
            await kernel[1].drain()

    output = random.Random(3).randbytes(1 << 16) * (1 << 9)
    server = await asyncio.start_unix_server(serve, short / "agent")
    async with bridged(short / "agent") as client:
        serving = asyncio.ensure_future(near.serve(*client.open(), 0))
        printing = asyncio.ensure_future(print_all())
        await until("its buffer takes all of it", printing.done)
        await until("it stands still", lambda: far.flow.backlog > len(output) - (8 << 20))
        assert far.linked
        for start in range(0, len(output), 1 << 16):
            assert await asyncio.wait_for(notebook[0].readexactly(1 << 16), DEADLINE) == output[: 1 << 16], start
        assert not serving.done()
        for relay in (far, near):
            relay.close()
        await asyncio.wait([*tasks, serving])
    server.close()
    for _, writer in (kernel, notebook):
        writer.close()


# -- windows -----------------------------------------------------------------------------------------------------------


def unread(client: BridgeClient) -> int:
    """Return how much has come for all connections and was not read."""
    return sum(reader.unread for reader, _ in client._open.values())


async def test_what_nobody_reads_is_a_window_for_each_connection(short: Path) -> None:
    """Thirty floods that nobody reads keep a window each; another connection answers, and one that is read again gets all."""
    sent: list[int] = []
    size = 16 * WINDOW

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(5) == b"hello":
            writer.write(b"hello")
            return
        number = len(sent)
        sent.append(0)
        while sent[number] < size:
            writer.write(bytes([sent[number] // CHUNK % 256]) * CHUNK)
            await writer.drain()
            sent[number] += CHUNK
        writer.close()

    server = await asyncio.start_unix_server(serve, short / "agent")
    async with bridged(short / "agent") as client:
        floods = [client.open() for _ in range(30)]
        for _, writer in floods:
            writer.write(b"flood")
        await until("each has its window", lambda: unread(client) == len(floods) * WINDOW)
        reader, writer = client.open()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        assert unread(client) == len(floods) * WINDOW
        assert max(sent) < size / 2
        got = await asyncio.wait_for(floods[0][0].readexactly(size), DEADLINE)
        assert got == b"".join(bytes([number]) * CHUNK for number in range(size // CHUNK))
        assert sum(each == size for each in sent) == 1
        for _, flood in floods:
            flood.close()
    server.close()


async def test_what_the_agent_does_not_take_stays_at_the_gateway(short: Path) -> None:
    """A writer waits once a window is under way; the channel carries others, and all arrives when the agent reads on."""
    reads = asyncio.Event()
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(5) == b"hello":
            writer.write(b"hello")
            return
        await reads.wait()
        while data := await reader.read(1 << 16):
            got.extend(data)
        writer.close()

    server = await asyncio.start_unix_server(serve, short / "agent")
    async with bridged(short / "agent") as client:
        _, slow = client.open()
        sent = random.Random(11).randbytes(8 * WINDOW)
        slow.write(b"slow!")
        slow.write(sent)
        waiting = asyncio.ensure_future(slow.drain())
        reader, writer = client.open()
        writer.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
        assert not waiting.done()
        reads.set()
        await asyncio.wait_for(waiting, DEADLINE)
        slow.close()
        await until("all of it has arrived", lambda: len(got) == len(sent))
        assert bytes(got) == sent
    server.close()


async def test_a_connection_that_ends_lets_its_writer_go(short: Path) -> None:
    """The agent closes a connection that it has never read: a drain that waits for it ends."""
    ends = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ends.wait()
        writer.close()

    server = await asyncio.start_unix_server(serve, short / "agent")
    async with bridged(short / "agent") as client:
        reader, writer = client.open()
        writer.write(bytes(8 * WINDOW))
        waiting = asyncio.ensure_future(writer.drain())
        ends.set()
        await asyncio.wait_for(waiting, DEADLINE)
        assert await asyncio.wait_for(reader.read(1), DEADLINE) == b""
    server.close()


async def test_the_rest_of_a_closed_connection_has_a_deadline(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the gateway sent before it closed is the agent's to take, for a while: then the node's end goes."""
    monkeypatch.setattr(bridge, "CLOSING", 0.1)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short / "agent"))
        server.listen()
        server.setblocking(False)
        async with bridged(short / "agent") as client:
            _, writer = client.open()
            writer.write(bytes(WINDOW))
            with (await asyncio.get_running_loop().sock_accept(server))[0] as agent:
                writer.close()
                poll = select.poll()
                poll.register(agent)
                await until("the node's end is gone", lambda: any(event & select.POLLHUP for _, event in poll.poll(0)))
