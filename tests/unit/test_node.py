"""One host from the gateway's side: one connection, answers in time, and the way back after a cut."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import pytest
import pytest_asyncio

from eg_distributed import node as node_module
from eg_distributed.errors import (
    AgentUnavailable,
    HostError,
    HostUnreachable,
    HostUnresponsive,
    KernelGone,
    KernelStartFailed,
)
from eg_distributed.node import News, Node
from eg_distributed.protocol import (
    OLDEST_PROTOCOL,
    PROTOCOL,
    Exited,
    Found,
    Missing,
    Ping,
    Ready,
    Request,
    Signal,
    Start,
    Stop,
)
from eg_distributed.settings import Distributed
from eg_distributed.wire import Message, encode, text
from tests.until import until

from .agents import DEADLINE, alive, standin
from .conftest import Hosts
from .malformed_agent import WELCOME, MalformedAgent, honest, lead_to
from .memory_link import MemoryLink
from .node_owner import NodeOwner
from .ssh_server import Sshd

N = TypeVar("N", bound=News)


@dataclass(frozen=True)
class Dance(Request[str]):
    """A request of a release that is yet to come."""

    METHOD: ClassVar[str] = "dance"

    answer = staticmethod(text())


def start(kernel: str, *behaviours: str) -> Start:
    """Return the request for a stand-in kernel."""
    return Start(
        kernel=kernel,
        attempt="a1",
        owner="tests",
        host_set="",
        argv=standin(*behaviours),
        spec_env={},
        env={},
        transport="ipc",
        key="k",
        signature_scheme="hmac-sha256",
        orphan_timeout=0,
    )


class Held(NodeOwner):
    """A node, what it told, and the kernels it is to answer for."""

    def __init__(self, name: str, settings: Distributed) -> None:
        super().__init__(settings)
        self.node = Node(name, settings, ("tests", "1"), self)

    def told(self, kind: type[N]) -> list[N]:
        """Return the news of that kind."""
        return [news for news in self.news if isinstance(news, kind)]

    async def start(self, kernel: str, *behaviours: str) -> int:
        """Start a kernel and return its pid."""
        self.kernels.append(kernel)
        described = await self.node.request(start(kernel, *behaviours))
        await until("it is ready", lambda: any(news.kernel == kernel for news in self.told(Ready)))
        return described.pid


@pytest_asyncio.fixture
async def sshd(hosts: Hosts) -> Sshd:
    """The host."""
    (sshd,) = await hosts("node1")
    return sshd


@pytest_asyncio.fixture
async def held(sshd: Sshd, settings: Distributed) -> AsyncIterator[Held]:
    """The node of `sshd`, not connected yet."""
    settings.request_timeout = settings.connect_timeout = 2.0
    held = Held(sshd.name, settings)
    yield held
    await held.node.close()


async def test_all_who_want_it_share_one_connection(held: Held, sshd: Sshd) -> None:
    """Connecting at the same moment, and again later, makes one connection."""
    await asyncio.gather(*(held.node.connect() for _ in range(5)))
    await held.node.connect()
    assert (held.node.connections, sshd.wire.connections) == (1, 1)


async def test_a_failed_connection_is_told_to_all_and_remembered(held: Held, sshd: Sshd) -> None:
    """Everybody who waits hears the same error; a later attempt may succeed and forgets it."""
    sshd.wire.refuse()
    errors = await asyncio.gather(*(held.node.connect() for _ in range(3)), return_exceptions=True)
    assert {type(error) for error in errors} == {HostUnreachable}
    assert isinstance(held.node.last_error, HostUnreachable)
    await sshd.wire.open()
    await held.node.connect()
    assert held.node.last_error is None


async def test_who_gives_up_waiting_does_not_end_it_for_others(held: Held) -> None:
    """Cancelling one waiter leaves the attempt to the rest."""
    impatient, patient = (asyncio.ensure_future(held.node.connect()) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert impatient.cancelled()
    assert held.node.connected.is_set()


async def test_events_come_by_themselves(held: Held) -> None:
    """A kernel's exit is pushed, and what runs on the host is known without asking."""
    await held.node.connect()
    await held.start("k1")
    assert held.node.running == {"k1"}
    await held.node.request(Signal("k1", 9))
    await until("the exit is told", lambda: held.told(Exited))
    assert held.told(Exited)[0].exit_code == -9
    await until("nothing is counted", lambda: held.node.running == set())


async def test_the_agents_errors_have_their_classes(held: Held) -> None:
    """What the agent refuses becomes an error that names the host."""
    await held.node.connect()
    refused: list[tuple[Request[Any], type[AgentUnavailable | KernelGone]]] = [
        (Signal("k9", 2), KernelGone),
        (Dance(), AgentUnavailable),
        (replace(start("k1"), argv="/no"), AgentUnavailable),  # type: ignore[arg-type]  # malformed on purpose
    ]
    for request, kind in refused:
        with pytest.raises(kind, match=r"^Host node1: ") as failed:
            await held.node.request(request)
        assert failed.value.host == "node1"
    with pytest.raises(KernelStartFailed, match="Cannot execute '/no/python'"):
        await held.node.request(replace(start("k1"), argv=["/no/python"]))


async def test_without_a_connection_a_request_fails_at_once(held: Held) -> None:
    """Nobody waits for a host that is not there."""
    with pytest.raises(HostUnresponsive, match="Not connected"):
        await held.node.request(Ping())
    with pytest.raises(OSError, match="not connected"):
        await held.node.open()


async def test_a_host_that_hangs_is_unresponsive_within_the_deadline(held: Held, sshd: Sshd) -> None:
    """No answer in time is an error that says so, and the connection is not given up for it."""
    await held.node.connect()
    sshd.wire.freeze()
    with pytest.raises(HostUnresponsive, match=r"No answer to 'ping' within 0\.3 s"):
        await held.node.request(Ping(), timeout=0.3)
    sshd.wire.thaw()
    assert (await held.node.request(Ping())).pid
    assert held.node.connections == 1


async def test_who_waits_for_an_answer_hears_of_a_cut_at_once(held: Held, sshd: Sshd) -> None:
    """A cut is no time-out."""
    await held.node.connect()
    await held.start("k1", "ignore:SIGTERM")
    stopping = asyncio.ensure_future(held.node.request(Stop("k1", grace=60), timeout=60))
    await held.node.request(Ping())
    sshd.wire.cut()
    with pytest.raises(HostUnresponsive, match="connection was lost"):
        await asyncio.wait_for(stopping, DEADLINE)


async def test_a_cut_is_healed_and_the_kernels_are_asked_about(held: Held, sshd: Sshd) -> None:
    """After a cut the node comes back by itself, claims its kernels, and says what became of each."""
    await held.node.connect()
    await held.start("lives")
    pid = await held.start("dies")
    held.kernels.append("never was")
    sshd.wire.refuse()
    sshd.wire.cut()
    await until("the cut is seen", lambda: not held.node.connected.is_set())
    os.kill(pid, 9)
    await until("the kernel has ended", lambda: not alive(pid))
    await sshd.wire.open()
    await asyncio.wait_for(held.node.connected.wait(), DEADLINE)
    assert held.node.connections == 2
    found = {news.kernel: news for news in held.told(Found)}
    assert found["lives"].state == "running"
    assert (found["dies"].state, found["dies"].exit_code) == ("exited", -9)
    assert [news.kernel for news in held.told(Missing)] == ["never was"]
    assert held.node.running == {"lives"}


async def test_without_kernels_there_is_no_way_back(held: Held, sshd: Sshd) -> None:
    """A host on which nothing of ours runs is not connected again until somebody wants it."""
    await held.node.connect()
    sshd.wire.cut()
    await until("the cut is seen", lambda: not held.node.connected.is_set())
    with pytest.raises(HostError):
        await held.node.request(Ping())
    assert sshd.wire.connections == 1
    await held.node.connect()
    assert sshd.wire.connections == 2


async def test_what_was_given_up_is_ended_at_the_next_connection(held: Held, sshd: Sshd) -> None:
    """A start that was abandoned does not live on; one of another attempt does."""
    await held.node.connect()
    gone, kept = await held.start("gone"), await held.start("kept")
    held.abandoned.mark(held.node, "gone", "a1")
    held.abandoned.mark(held.node, "kept", "a0")
    sshd.wire.cut()
    await until("it is back", lambda: held.node.connections == 2)
    await asyncio.wait_for(held.node.connected.wait(), DEADLINE)
    await until("the abandoned kernel has ended", lambda: not alive(gone))
    assert alive(kept)
    await until("both are settled", lambda: not held.abandoned.has_any_on(held.node.name))


async def test_repeated_cuts_are_healed_each_time(held: Held, sshd: Sshd) -> None:
    """However often, and wherever in the handshake, the connection breaks: it comes back."""
    await held.node.connect()
    pid = await held.start("k1")
    for count in (1, 700, 4000, 9000, 1):
        sshd.wire.cut_after(count)
        sshd.wire.cut()
        before = held.node.connections
        await until("it is back", lambda: held.node.connections > before and held.node.connected.is_set())  # noqa: B023
    assert alive(pid)
    assert (await held.node.request(Ping())).running == 1


async def test_closing_ends_the_connection_and_no_kernel(held: Held, sshd: Sshd) -> None:
    """A gateway that ends leaves its kernels to the next one."""
    await held.node.connect()
    pid = await held.start("k1")
    await held.node.close()
    await until("the connection is closed", lambda: not sshd.open_connections)
    assert alive(pid)
    assert not held.node.connected.is_set()


@pytest.mark.parametrize("protocol", [OLDEST_PROTOCOL - 1, PROTOCOL + 1])
async def test_an_agent_of_another_protocol_is_said(held: Held, sshd: Sshd, protocol: int) -> None:
    """One that is too old, or too new, is an error that names both versions, and no link stays open."""
    async with speaking(sshd, protocol):
        with pytest.raises(
            AgentUnavailable,
            match=f"Its agent speaks protocol {protocol}, this gateway {OLDEST_PROTOCOL} to {PROTOCOL}",
        ):
            await held.node.connect()
        await until("no link stays", lambda: not sshd.open_connections)
    assert not held.node.connected.is_set()


@pytest.mark.parametrize("protocol", [OLDEST_PROTOCOL, PROTOCOL])
async def test_an_agent_of_a_protocol_that_is_spoken_is_used(held: Held, sshd: Sshd, protocol: int) -> None:
    """The version before ours is good enough, and remembered: what that one would not understand is not asked."""
    async with speaking(sshd, protocol):
        await held.node.connect()
        assert (held.node.connected.is_set(), held.node.protocol) == (True, protocol)
        await held.node.close()


@asynccontextmanager
async def speaking(sshd: Sshd, protocol: int) -> AsyncIterator[None]:
    """Have an agent on *sshd* that greets with this *protocol*."""
    agent = MalformedAgent()
    agent.greeting = encode({**WELCOME, "protocol": protocol})
    lead_to(sshd, sshd.folder / "sock")
    async with agent.listening(sshd.folder / "sock"):
        yield


# -- links of this process, of which every step is the test's own ------------------------------------------------

Links = Callable[..., list[MemoryLink]]


@pytest.fixture
def memory_links(monkeypatch: pytest.MonkeyPatch) -> Links:
    """Has every connection be a link of this process, made by *make*; returns the list of them."""

    def install(make: Callable[[], MemoryLink] = MemoryLink) -> list[MemoryLink]:
        made: list[MemoryLink] = []

        async def connect(*_: Any, **__: Any) -> MemoryLink:
            made.append(make())
            return made[-1]

        monkeypatch.setattr(node_module, "connect", connect)
        return made

    return install


class LostLink(MemoryLink):
    """A link that is lost *rounds* of the loop after the request for our kernels has arrived."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._rounds = rounds

    def take(self, message: Message) -> None:
        """Answer, and begin to count."""
        super().take(message)
        if message.get("method") == "adopt":
            self._losing = asyncio.ensure_future(self._lose())

    async def _lose(self) -> None:
        for _ in range(self._rounds):
            await asyncio.sleep(0)
        self.lose()


async def test_a_loss_right_behind_a_connection_is_made_good(settings: Distributed, memory_links: Links) -> None:
    """However soon after its last answer a new connection is lost, the node comes back again."""
    for rounds in range(25):
        links: list[MemoryLink] = memory_links(lambda: MemoryLink() if links else LostLink(rounds))  # noqa: B023
        held = Held("node1", settings)
        held.kernels.append("k1")
        held.node.come_back()
        try:
            await until(
                f"it is back after a loss {rounds} rounds later",
                lambda: len(links) > 1 and held.node.connected.is_set(),  # noqa: B023
                seconds=5.0,
            )
        finally:
            await held.node.close()


async def test_a_lost_link_takes_its_pinger_with_it(
    settings: Distributed, memory_links: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a link is lost while a ping is under way, the node pings once at a time, and a cancelled request ends."""
    monkeypatch.setattr(node_module, "_PING", 0.001)
    links = memory_links(lambda: MemoryLink(lambda message: [] if message["method"] == "ping" else honest(message)))
    held = Held("node1", settings)
    held.kernels.append("k1")
    held.node.come_back()

    def pingers() -> int:
        return sum("Node._ping" in repr(task) for task in asyncio.all_tasks())

    try:
        for lost in range(3):
            await until("it is connected", lambda: len(links) > lost and held.node.connected.is_set())  # noqa: B023
            held.node.running.add("k1")  # else it is pinged seldom
            await until("a ping is under way", lambda: "ping" in links[-1].asked)
            links[-1].lose()
        await until("it is back", lambda: len(links) > 3 and held.node.connected.is_set())
        assert pingers() == 1
    finally:
        await held.node.close()


async def test_a_link_over_which_no_stream_can_be_opened_is_made_again(
    settings: Distributed, memory_links: Links, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing but failures on a connected node are told once, with host and cause, and then the node is connected again."""
    monkeypatch.setattr(node_module, "STREAMS_PATIENCE", 0.0)
    links = memory_links()
    held = Held("node1", settings)
    held.kernels.append("k1")
    await held.node.connect()

    async def fail() -> None:
        with pytest.raises(ConnectionError) as failed:
            await held.node.open()
        held.node.note_stream(failed.value)

    for _ in range(4):
        await fail()
    held.node.note_stream(None)  # one that was opened: the others' trouble was their own
    for _ in range(4):
        await fail()
    assert held.node.connections == 1
    await fail()
    await until("it is connected again", lambda: len(links) == 2 and held.node.connected.is_set())
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "node1: it is connected, but kernels' channels to its agent cannot be opened (the agent's "
    )
    await held.node.close()


async def test_a_connection_that_never_stood_is_no_contact(settings: Distributed, memory_links: Links) -> None:
    """A node whose connections end before its kernels are taken back has been out of reach since it last was connected."""
    settings.request_timeout = 0.1
    deaf = False
    links = memory_links(lambda: MemoryLink(lambda request: [] if deaf else honest(request)))
    held = Held("node1", settings)
    held.kernels.append("k1")
    await held.node.connect()
    deaf = True
    links[-1].lose()
    await until("the loss is seen", lambda: not held.node.connected.is_set())
    since = held.node.disconnected_at
    await until("it was greeted, and not answered, twice", lambda: len(links) > 3)
    assert held.node.disconnected_at == since
    await held.node.close()
