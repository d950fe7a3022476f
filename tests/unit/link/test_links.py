"""Links over SSH: more channels than one connection carries, and what they cost where they are few."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio

from eg_distributed.cluster import Cluster
from eg_distributed.errors import HostUnreachable
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.link import links
from eg_distributed.link.links import SSHLink
from eg_distributed.link.login import log_in
from eg_distributed.settings import Distributed
from eg_distributed.wire import Reader, Writer
from tests.unit.agents import DEADLINE
from tests.unit.clusters import client, start
from tests.unit.conftest import Hosts
from tests.unit.ssh_server import Sshd
from tests.until import until


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small numbers for large ones."""
    monkeypatch.setattr(links, "ENOUGH", 4)
    monkeypatch.setattr(links, "MOST", 8)
    monkeypatch.setattr(links, "_SUSPICIOUS", 3)
    monkeypatch.setattr(links, "AGAIN", 0.05)


@pytest_asyncio.fixture
async def sshd(hosts: Hosts) -> Sshd:
    """The host."""
    (sshd,) = await hosts("node1")
    return sshd


@pytest_asyncio.fixture
async def link(sshd: Sshd, settings: Distributed, short: Path) -> AsyncIterator[SSHLink]:
    """A link to an agent that sends back what it is sent."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    path = short / "agent"
    server = await asyncio.start_unix_server(echo, path)
    first = await log_in("node1", settings)
    link = SSHLink(first, str(path), "node1", lambda: log_in("node1", settings))
    yield link
    link.close()
    server.close()
    await until("all connections are closed", lambda: sshd.open_connections == 0)


async def works(stream: tuple[Reader, Writer]) -> bool:
    """Return True if the agent answers over *stream*."""
    reader, writer = stream
    writer.write(b"hello")
    return await asyncio.wait_for(reader.readexactly(5), DEADLINE) == b"hello"


async def test_few_channels_share_one_connection(link: SSHLink, sshd: Sshd) -> None:
    """Up to so many, one SSH connection is all that there is."""
    for stream in [await link.open() for _ in range(links.ENOUGH)]:
        assert await works(stream)
    assert (link.connections, sshd.wire.connections) == (1, 1)


async def test_further_connections_are_made_as_channels_grow(link: SSHLink, sshd: Sshd) -> None:
    """No channel waits for it where there is room, none is refused, and no connection has more than so many."""
    streams = [await link.open() for _ in range(links.ENOUGH + 1)]
    await until("a further one is made", lambda: link.connections == 2)
    streams += await asyncio.gather(*(link.open() for _ in range(30)))
    assert all(await asyncio.gather(*(works(stream) for stream in streams)))
    assert max(each.channels for each in link._connections) <= links.MOST
    assert sshd.open_connections == link.connections >= 5


async def test_a_connection_that_takes_no_more_is_left_at_that(link: SSHLink, sshd: Sshd) -> None:
    """Where sshd has fewer descriptors than we thought, the channels that it refuses find their way over further connections."""
    sshd.most_channels = 5
    streams = await asyncio.gather(*(link.open() for _ in range(12)))
    assert all(await asyncio.gather(*(works(stream) for stream in streams)))
    assert link._connections[0].most == 5
    asked = sshd.forwarded
    await link.open()
    assert sshd.forwarded == asked + 1, "it was tried in vain first"


async def test_a_refusal_for_a_moment_is_no_limit(link: SSHLink, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the agent takes no connection just now, the same SSH connection is tried again, and keeps its room."""
    monkeypatch.setattr(links, "ENOUGH", 20)
    monkeypatch.setattr(links, "MOST", 30)
    for _ in range(3):
        await link.open()
    sshd.most_channels = 3
    opening = [asyncio.ensure_future(link.open()) for _ in range(4)]
    await until("they were refused", lambda: sshd.forwarded == 7)
    sshd.most_channels = 1 << 20
    assert all([await works(stream) for stream in await asyncio.gather(*opening)])
    assert link._connections[0].most == links.MOST
    assert [each.channels for each in link._connections] == [7]


async def test_what_a_connection_takes_is_believed_for_a_while(
    link: SSHLink, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals by one connection that were not for its number of channels cost its room for a minute, and not for ever."""
    monkeypatch.setattr(links, "LIMITED", 0.1)
    sshd.most_channels = 5
    streams = [await link.open() for _ in range(8)]
    assert link.connections > 1
    sshd.most_channels = 1 << 20
    await until("its room is back", lambda: link._connections[0].most == links.MOST)
    while link._connections[0].channels < links.MOST:
        streams.append(await link.open())
    assert all(await asyncio.gather(*(works(stream) for stream in streams)))


async def test_a_further_connection_is_begun_before_a_low_limit_is_reached(
    link: SSHLink, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where connections take fewer channels than are thought enough, the next one is made before channels have to wait for it."""
    monkeypatch.setattr(links, "ENOUGH", 20)
    monkeypatch.setattr(links, "MOST", 30)
    link._connections[0].limit(5)
    streams = [await link.open() for _ in range(5)]
    await until("a further one is made", lambda: link.connections == 2)
    assert link._connections[0].channels == 5
    assert all(await asyncio.gather(*(works(stream) for stream in streams)))


async def test_a_further_connection_that_is_not_used_is_closed(
    link: SSHLink, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When channels get few again, one connection is left, which new ones take."""
    monkeypatch.setattr(links, "IDLE", 0.1)
    streams = await asyncio.gather(*(link.open() for _ in range(20)))
    assert link.connections > 1
    for _, writer in streams:
        writer.close()
    await until("only the first is left", lambda: sshd.open_connections == link.connections == 1)
    assert await works(await link.open())


async def test_without_further_connections_the_first_takes_what_it_can(
    link: SSHLink, sshd: Sshd, caplog: pytest.LogCaptureFixture
) -> None:
    """A host that lets nobody log in a second time is no worse off than before, and the log says so once."""
    sshd.wire.refuse()
    streams = await asyncio.gather(*(link.open() for _ in range(40)))
    assert all(await asyncio.gather(*(works(stream) for stream in streams)))
    told = [record for record in caplog.records if "no further SSH connection" in record.message]
    assert [record.levelno for record in told] == [logging.WARNING]


async def test_a_refusal_by_full_connections_names_host_cause_and_remedy(link: SSHLink, sshd: Sshd) -> None:
    """What no connection takes is refused with what is wrong with sshd, and not with the agent."""
    sshd.most_channels = 5
    sshd.wire.refuse()
    for _ in range(5):
        await link.open()
    with pytest.raises(ConnectionError, match=r"^Host node1: .* 5 open .* no more open files\. Raise LimitNOFILE"):
        await link.open()


async def test_an_agent_that_is_gone_costs_no_further_login(link: SSHLink, sshd: Sshd, short: Path) -> None:
    """Where few channels are open it is not for want of descriptors that one is refused."""
    (short / "agent").unlink()
    for _ in range(3):
        with pytest.raises(ConnectionError, match=r"^Host node1: .* See that the agent's socket is there"):
            await link.open()
    assert (link.connections, sshd.wire.connections) == (1, 1)


async def test_a_lost_connection_says_so(link: SSHLink, sshd: Sshd) -> None:
    """With the first connection the link is lost, and no further one is made for it."""
    streams = await asyncio.gather(*(link.open() for _ in range(12)))
    await until("a further one is there", lambda: link.connections > 1)
    sshd.wire.refuse()
    sshd.wire.cut()
    await asyncio.wait_for(link.wait_closed(), DEADLINE)
    with pytest.raises(ConnectionError):
        await link.open()
    assert streams


async def test_a_loss_while_a_channel_is_opened_is_said_as_one(link: SSHLink, sshd: Sshd) -> None:
    """Where connections end in that very moment the agent's socket is not what is to be looked for."""
    opening = asyncio.ensure_future(link.open())
    await asyncio.sleep(0)
    for each in link._connections:
        each.ssh.abort()
    with pytest.raises(ConnectionError, match=r"^Host node1: the SSH connection was lost \(.*\)\. Check the network"):
        await link.open()
    with pytest.raises(ConnectionError, match=r"^Host node1: the SSH connection was lost \(.*\)\. Check the network"):
        await opening


async def test_a_login_that_fails_after_a_useless_one_is_told(
    link: SSHLink, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That a further connection was made for nothing says nothing of why the next one cannot be made."""
    monkeypatch.setattr(links, "IDLE", 0.05)
    monkeypatch.setattr(links, "_FIRST_PAUSE", 0.01)
    for _ in range(3):
        await link.open()
    sshd.most_channels = 0
    with pytest.raises(ConnectionError):
        await link.open()
    assert link._pause, "the login was of use"
    await until("the useless one is closed", lambda: link.connections == 1)
    sshd.wire.refuse()
    await until("it may be tried again", lambda: asyncio.get_running_loop().time() > link._not_before)
    with pytest.raises(ConnectionError):
        await link.open()
    told = [record for record in caplog.records if "no further SSH connection" in record.message]
    assert [record.levelno for record in told] == [logging.WARNING]


async def test_useless_logins_get_fewer(link: SSHLink, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each further connection that takes no channel either doubles the pause before the next one; one of use ends that."""
    monkeypatch.setattr(links, "IDLE", 0.05)
    monkeypatch.setattr(links, "_FIRST_PAUSE", 0.01)
    for _ in range(3):
        await link.open()
    sshd.most_channels = 0
    for pause in (0.01, 0.02, 0.04):
        await until("it may be tried again", lambda: asyncio.get_running_loop().time() > link._not_before)
        with pytest.raises(ConnectionError):
            await link.open()
        assert link._pause == pause
        await until("the useless one is closed", lambda: link.connections == 1)
    sshd.most_channels = 5
    await until("it may be tried again", lambda: asyncio.get_running_loop().time() > link._not_before)
    for _ in range(6):
        await link.open()
    assert link.connections > 1
    assert link._pause == 0.0


async def test_who_gives_up_opening_takes_no_room(link: SSHLink, sshd: Sshd) -> None:
    """A channel that nobody waits for any more is closed as soon as it is open, and counts no longer."""
    opening = [asyncio.ensure_future(link.open()) for _ in range(6)]
    await asyncio.sleep(0)
    for each in opening:
        each.cancel()
    await asyncio.wait(opening)
    assert sum(each.channels for each in link._connections) == 6, "sshd has them still"
    await until("none counts", lambda: not any(each.channels for each in link._connections))
    await until("none is open", lambda: not any(each.ssh._channels for each in link._connections))


async def test_one_machine_may_have_an_address_of_each_family(
    link: SSHLink, settings: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further connection by IPv6 where the first is by IPv4 is used, if its host key is the first one's."""

    async def by_ipv6() -> asyncssh.SSHClientConnection:
        made = await log_in("node1", settings)
        made.set_extra_info(peername=("2001:db8::7", 22, 0, 0))
        return made

    monkeypatch.setattr(link, "_further", by_ipv6)
    streams = [await link.open() for _ in range(20)]
    await until("it carries some", lambda: link.connections > 1)
    for _, writer in streams:
        writer.close()


@pytest.mark.parametrize("by", ["host key", "address"])
async def test_a_further_connection_to_another_machine_is_not_used(
    link: SSHLink,
    hosts: Hosts,
    settings: Distributed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    by: str,
) -> None:
    """Where a name leads to several machines the channels stay on the first, the other is left, and the log says so once."""
    monkeypatch.setattr(links, "_FIRST_PAUSE", 0.01)
    sshd, other = await hosts("node2")
    made: list[asyncssh.SSHClientConnection] = []

    async def stray() -> asyncssh.SSHClientConnection:
        made.append(await log_in("node2" if by == "host key" else "node1", settings))
        if by == "address":
            made[-1].set_extra_info(peername=("192.0.2.7", 22))
        return made[-1]

    monkeypatch.setattr(link, "_further", stray)
    streams = [await link.open() for _ in range(20)]

    async def is_tried_again() -> bool:
        streams.append(await link.open())
        return len(made) > 1

    await until("it is tried again", is_tried_again)
    assert all(await asyncio.gather(*(works(stream) for stream in streams)))
    assert link.connections == 1
    await until("they are closed", lambda: (sshd.open_connections, other.open_connections) == (1, 0))
    told = [each.getMessage() for each in caplog.records if "no further SSH connection" in each.getMessage()]
    warned = [
        each for each in caplog.records if "another machine" in each.getMessage() and each.levelno == logging.WARNING
    ]
    assert len(warned) == 1
    assert f"A further login led to another machine by its {by}" in told[0]


# -- with kernels ------------------------------------------------------------------------------------------------


async def clients(kernel: RemoteKernel, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Return connections of so many clients, each of which works."""
    found = [await client(kernel) for _ in range(count)]
    assert all(await asyncio.gather(*(works(each) for each in found)))
    return found


async def test_all_connections_come_back_after_a_cut(cluster: Cluster, sshd: Sshd) -> None:
    """More channels than a connection carries are there again after a cut, over several connections, and lose nothing."""
    kernel = await start(cluster, "k1", "node1")
    streams = await clients(kernel, 20)
    assert sshd.open_connections > 1
    sshd.wire.refuse()
    sshd.wire.cut()
    await until("the cut is seen", lambda: kernel.state is State.UNKNOWN)
    await until("all are gone", lambda: sshd.open_connections == 0)
    await sshd.wire.open()
    assert all(await asyncio.gather(*(works(each) for each in streams)))
    assert sshd.open_connections > 1
    assert len(streams) == 20


async def test_the_loss_of_a_further_connection_is_nobodys(cluster: Cluster, sshd: Sshd) -> None:
    """What it carried goes on over the others, without the host being lost."""
    kernel = await start(cluster, "k1", "node1")
    streams = await clients(kernel, 20)
    assert kernel.node is not None
    made = kernel.node.connections
    for further in sshd.open_links[1:]:
        further.abort()
    assert all(await asyncio.gather(*(works(each) for each in streams)))
    assert kernel.state is State.ALIVE
    assert kernel.node.connections == made


async def test_a_node_closes_all_of_its_connections(cluster: Cluster, sshd: Sshd) -> None:
    """A gateway that ends leaves no further connection behind."""
    await clients(await start(cluster, "k1", "node1"), 20)
    assert sshd.open_connections > 1
    await asyncio.to_thread(cluster.close)
    await until("all are closed", lambda: sshd.open_connections == 0)


async def test_further_connections_go_through_the_jump_host_too(
    cluster: Cluster, hosts: Hosts, settings: Distributed
) -> None:
    """They take the way that the first one takes."""
    jump, target = await hosts("jump", "node1")
    config = Path(settings.ssh_config)
    config.write_text(config.read_text() + "  ProxyJump jump\n")
    await clients(await start(cluster, "k1", "node1"), 20)
    assert jump.jumped == target.open_connections > 1


@pytest.mark.parametrize(
    "error", [HostUnreachable("it is full", host="node1", remedy="wait"), RuntimeError("a bug")], ids=["full", "bug"]
)
async def test_a_further_login_that_fails_is_told_once(
    link: SSHLink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """It is tried again later only, and costs no channel that the others can take."""

    async def refuse() -> None:
        raise error

    monkeypatch.setattr(link, "_further", refuse)
    for stream in [await link.open() for _ in range(20)]:
        assert await works(stream)
    assert caplog.text.count("no further SSH connection") == 1
