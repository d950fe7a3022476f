"""A kernel's channels at the gateway: what a client sends and gets, over cuts, restarts and crashes."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import stat
from pathlib import Path
from typing import Any, NoReturn

import pytest

from eg_distributed import channels, node
from eg_distributed.channels import Endpoints
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError
from eg_distributed.kernel import State
from eg_distributed.link.links import LocalLink
from eg_distributed.protocol import CHANNELS
from eg_distributed.settings import Distributed
from eg_distributed.wire import encode, read_message
from tests.until import until

from .agents import DEADLINE, Visitor
from .clusters import answers, client, start
from .conftest import Hosts


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send *data* piecewise."""
    for position in range(0, len(data), 50_000):
        writer.write(data[position : position + 50_000])
        await writer.drain()


async def test_all_five_channels_reach_the_kernel(cluster: Cluster, hosts: Hosts) -> None:
    """Each channel has its own socket, for its user alone."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    for number, channel in enumerate(CHANNELS, 1):
        path = Path(f"{kernel.connection_info['ip']}-{number}")
        assert stat.S_ISSOCK(path.stat().st_mode)
        reader, writer = await client(kernel, channel)
        writer.write(channel.encode())
        assert await asyncio.wait_for(reader.readexactly(len(channel)), DEADLINE) == channel.encode()
        writer.close()


@pytest.mark.parametrize("forwarding", [True, False])
async def test_a_channel_survives_cuts(
    cluster: Cluster, hosts: Hosts, monkeypatch: pytest.MonkeyPatch, *, forwarding: bool
) -> None:
    """The connection is cut again and again while megabytes pass; every byte comes back once and in order."""
    # It would wait ever longer before the next login, as it does for hosts that come and go.
    monkeypatch.setattr(node, "_LAST_BACKOFF", node._FIRST_BACKOFF)
    (sshd,) = await hosts("node1")
    sshd.forwarding = forwarding
    kernel = await start(cluster, "k1", "node1")
    chance = random.Random(1)
    data = chance.randbytes(2_500_000)
    reader, writer = await client(kernel)
    traffic = asyncio.gather(send(writer, data), reader.readexactly(len(data)))
    cuts = 0
    while not traffic.done():
        before = sshd.wire.connections
        sshd.wire.cut_after(chance.randrange(200_000, 1_500_000))
        await until("it is cut and back", lambda: traffic.done() or sshd.wire.connections > before)  # noqa: B023
        cuts += 1
    _, back = await traffic
    assert back == data
    assert cuts > 2
    assert kernel.state is not State.DEAD
    writer.close()


async def test_a_network_that_hangs_loses_nothing(cluster: Cluster, hosts: Hosts, settings: Distributed) -> None:
    """Packets that are dropped for a while, until keep-alives give the connection up, cost time and no byte."""
    settings.keepalive_interval, settings.keepalive_count = 0.1, 2
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    data = os.urandom(3_000_000)
    reader, writer = await client(kernel)
    traffic = asyncio.gather(send(writer, data), reader.readexactly(len(data)))
    await until("it is under way", lambda: sshd.wire.passed > 500_000)
    sshd.wire.freeze()
    await until("the connection is given up", lambda: kernel.state is State.UNKNOWN)
    sshd.wire.thaw()
    _, back = await asyncio.wait_for(traffic, DEADLINE)
    assert back == data
    writer.close()


async def test_channels_wait_for_a_host_that_is_away(cluster: Cluster, hosts: Hosts) -> None:
    """A client that connects during a cut gets its answer afterwards."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    sshd.wire.refuse()
    sshd.wire.cut()
    await until("the cut is seen", lambda: kernel.state is State.UNKNOWN)
    asking = asyncio.ensure_future(answers(kernel))
    await asyncio.sleep(0)
    await sshd.wire.open()
    assert await asking


async def test_streams_that_cannot_be_opened_are_tried_ever_more_seldom(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel on a node that is connected and takes no stream costs less and less, and each failure is told to the node."""
    pauses: list[float] = []
    told: list[Exception | None] = []

    async def pause(seconds: float, relay: object) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def usable(resuming: bool) -> None:
        pass

    async def open_link() -> NoReturn:
        raise ConnectionRefusedError("no socket")

    monkeypatch.setattr(channels, "_pause", pause)
    endpoints = Endpoints(short / "k" / "c", "k1", ("tests", "1"), usable, open_link, told.append, 1 << 20, "ipc")
    await endpoints.open()
    _, writer = await asyncio.open_unix_connection(f"{endpoints.prefix}-1")
    await until("it was tried often", lambda: len(pauses) >= 10)
    writer.close()
    await endpoints.close()
    bounds = (0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0)
    assert all(bound <= seconds <= 1.5 * bound for bound, seconds in zip(bounds, pauses[:7], strict=True))
    assert {str(error) for error in told} == {"no socket"}


async def test_requests_wait_for_subscribers(short: Path) -> None:
    """A channel that was connected first is opened after the output that is connected here as well, but not for ever."""
    opened: list[str] = []
    held = asyncio.Event()
    ready = asyncio.Event()

    async def usable(resuming: bool) -> None:
        await ready.wait()

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await read_message(reader)
        channel = hello["channel"] if hello is not None else ""
        if channel == "iopub":
            await held.wait()
        opened.append(channel)
        writer.write(encode({"ok": True}))
        await reader.read()
        writer.close()

    async def open_link() -> Any:
        return await asyncio.open_unix_connection(str(short / "agent"))

    server = await asyncio.start_unix_server(agent, str(short / "agent"))
    endpoints = Endpoints(short / "k" / "c", "k1", ("tests", "1"), usable, open_link, lambda _: None, 1 << 20, "ipc")
    await endpoints.open()
    writers = [(await asyncio.open_unix_connection(f"{endpoints.prefix}-{number}"))[1] for number in (1, 2)]
    await until("both are taken", lambda: len(endpoints._relays) == 2)
    ready.set()
    await until("the other one waits", lambda: bool(endpoints._opening) and not endpoints._are_open.is_set())
    held.set()
    await until("both are open", lambda: len(opened) == 2)
    assert opened == ["iopub", "shell"]
    for writer in writers:
        writer.close()
    await endpoints.close()
    server.close()


async def test_a_flood_does_not_delay_another_channel(cluster: Cluster, hosts: Hosts) -> None:
    """A client that does not read its flood holds up nobody else, not even on the same kernel."""
    await hosts("node1")
    kernel, other = await start(cluster, "k1", "node1"), await start(cluster, "k2", "node1")
    _, writer = await client(kernel, "iopub")
    flooding = asyncio.ensure_future(send(writer, bytes(60_000_000)))
    assert await answers(kernel)
    assert await answers(other)
    assert not flooding.done()
    flooding.cancel()
    await asyncio.wait({flooding})
    writer.transport.abort()


async def test_a_clients_end_reaches_the_kernel_and_back(cluster: Cluster, hosts: Hosts) -> None:
    """A client that closes leaves no stream on the node."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    descriptors = Path(f"/proc/{kernel.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        assert await answers(kernel)
    await until("all connections of the kernel are closed", lambda: len(list(descriptors.iterdir())) <= before)


async def test_the_end_of_a_kernel_ends_its_connections(cluster: Cluster, hosts: Hosts) -> None:
    """A client sees the end of a kernel as the end of its connection, after the last byte; the sockets stay."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    reader, writer = await client(kernel)
    writer.write(b"bye")
    assert await asyncio.wait_for(reader.read(), DEADLINE) == b"bye"
    assert Path(f"{kernel.connection_info['ip']}-1").exists()
    writer.close()


async def test_a_client_that_came_too_early_is_served_by_the_restarted_kernel(cluster: Cluster, hosts: Hosts) -> None:
    """While a kernel is dead its sockets accept, and the next start answers, even if the names were removed meanwhile."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    await cluster.run(kernel.stop())
    asking = asyncio.ensure_future(answers(kernel))
    reader, writer = await client(kernel)
    writer.close()
    await cluster.run(cluster.list_kernels("node1"))  # a round trip, in which the cluster accepts both
    for number in range(1, 6):
        Path(f"{kernel.connection_info['ip']}-{number}").unlink()
    await start(cluster, "k1", "node1")
    assert await asking
    assert await answers(kernel)
    assert await asyncio.wait_for(reader.read(), DEADLINE) == b""


async def test_a_loss_is_reported(
    cluster: Cluster, settings: Distributed, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that crashed has lost what was under way: the client's connection ends, and the log says so."""
    kernel = await start(cluster, "k1", "localhost")
    reader, writer = await client(kernel)
    writer.write(b"hello")
    assert await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"
    (path,) = home.glob("eg-distributed/*/*.sock")
    visitor = await Visitor.at(LocalLink(str(path)), "operator", "o")
    with caplog.at_level(logging.ERROR):
        os.kill((await visitor.request("ping"))["pid"], signal.SIGKILL)
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
    visitor.close()
    assert "the shell channel was interrupted for good" in caplog.text
    await until("the kernel is known again", lambda: kernel.state is State.ALIVE)
    assert await answers(kernel)


async def test_nothing_is_reported_when_nothing_was_lost(
    cluster: Cluster, hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    """Cuts and clients that come and go are no news for the log."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    with caplog.at_level(logging.ERROR):
        for count in (200, 1500, 4000):
            sshd.wire.cut_after(count)
            assert await answers(kernel, os.urandom(5000))
            await until("the kernel is known again", lambda: kernel.state is State.ALIVE)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_path_that_is_too_long_is_said(cluster: Cluster, settings: Distributed, home: Path) -> None:
    """A runtime folder in which no socket has room, where nothing else is wanted, is an error that names the setting."""
    settings.runtime_dir, settings.endpoints = str(home / ("x" * 90)), "ipc"
    with pytest.raises(DistributedError, match=r"too long for a UNIX socket; set Distributed\.runtime_dir"):
        await start(cluster, "k1", "localhost")
    assert not cluster.kernels


async def test_loopback_ports_stand_in_for_sockets(
    cluster: Cluster, settings: Distributed, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no UNIX socket has room the channels are loopback ports, which survive cuts and are gone with the kernel."""
    settings.runtime_dir = str(home / ("x" * 90))
    kernel = await start(cluster, "k1", "localhost")
    assert "too long for a UNIX socket" in caplog.text
    info = kernel.connection_info
    assert (info["transport"], info["ip"]) == ("tcp", "127.0.0.1")
    for channel in CHANNELS:
        reader, writer = await client(kernel, channel)
        writer.write(channel.encode())
        assert await asyncio.wait_for(reader.readexactly(len(channel)), DEADLINE) == channel.encode()
        writer.close()
    await cluster.run(cluster.release("k1"))
    for channel in CHANNELS:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(info["ip"], info[f"{channel}_port"])


async def test_ports_are_for_the_gateways_user_alone(
    cluster: Cluster, settings: Distributed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else's connection to a loopback port is closed before the kernel hears of it, and the log says so."""
    settings.endpoints = "tcp"
    kernel = await start(cluster, "k1", "localhost")
    assert await answers(kernel)
    with monkeypatch.context() as patched:  # the gateway as another user than this process: two users need root
        patched.setattr(os, "getuid", lambda: -1)
        reader, writer = await client(kernel)
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
        writer.close()
    assert "another user of this machine may not use its shell channel" in caplog.text
