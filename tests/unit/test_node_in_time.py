"""What a node does after seconds, minutes and hours, in virtual time: nothing here is waited for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from eg_distributed.errors import (
    AgentUnavailable,
    DistributedError,
    HostUnreachable,
    HostUnresponsive,
    KernelGone,
    KernelStartFailed,
    KernelTaken,
)
from eg_distributed.link.links import Link, LocalLink
from eg_distributed.link.login import Progress
from eg_distributed.node import TAKEN_REMEDY, FolderMissing, HostBusier, Node, QueueFull
from eg_distributed.protocol import OLDEST_PROTOCOL, TAKEN_OVER, Adopt, Load, Ping, write_event
from eg_distributed.settings import Distributed
from eg_distributed.turns import Turns
from eg_distributed.wire import Message, encode
from tests.simulation.loop import VirtualLoop

from .malformed_agent import WELCOME, described, honest, reply
from .memory_link import Answers, MemoryLink
from .node_owner import NodeOwner


class Held(NodeOwner):
    """A node whose links are made here, and the virtual time of each attempt to connect."""

    def __init__(self, turns: Turns | None = None) -> None:
        settings = Distributed(gateway_id="tests", ssh_config="")
        super().__init__(settings)
        self.links: list[MemoryLink] = []
        self.tried: list[float] = []
        self.refuses = False
        self.is_deaf = False
        self.greeting = WELCOME
        self.kind = MemoryLink
        self.logging_in: Callable[[Progress], Awaitable[None]] | None = None
        self.kept: list[bool] = []  # whether an agent of an older release was to be left as it is, for each attempt
        self.requests: list[Message] = []
        self.answers: Answers = honest
        self.node = Node("node1", settings, ("tests", "1"), self, turns, self._connect)

    async def _connect(self, host: str, settings: Distributed, *, keep: bool, progress: Progress) -> Link:
        self.tried.append(asyncio.get_running_loop().time())
        self.kept.append(keep)
        if self.refuses:
            raise HostUnreachable("no answer", host=host)
        if self.logging_in is not None:
            await self.logging_in(progress)
        self.links.append(self.kind(self._answer, self.greeting))
        return self.links[-1]

    def _answer(self, request: Message) -> list[bytes]:
        self.requests.append(request)
        return [] if self.is_deaf and request["method"] == "ping" else self.answers(request)

    def asked(self, method: str) -> int:
        """Return how often that was asked for, over all links."""
        return sum(link.asked.count(method) for link in self.links)

    def say(self) -> None:
        """Have the agent say something unasked."""
        self.links[-1].reader.feed_data(encode(write_event(Load(["k1"]))))


class LocalMemoryLink(MemoryLink, LocalLink):
    """A link to the agent of the gateway's own machine."""


def in_time(story: Callable[[Held], Coroutine[Any, Any, None]]) -> None:
    """Run *story* of a node in virtual time."""

    async def live() -> None:
        held = Held()
        try:
            await story(held)
        finally:
            await held.node.close()

    random.seed(1)  # jitter
    loop = VirtualLoop()
    try:
        loop.run_until_complete(live())
    finally:
        loop.close()


def test_an_agent_that_says_nothing_for_a_minute_is_connected_to_again() -> None:
    """Its host's sshd still answers SSH's keep-alives; so the agent's own silence counts, and none that is shorter."""

    async def story(held: Held) -> None:
        held.kernels.append("k1")
        await held.node.connect()
        held.node.running = {"k1"}
        held.is_deaf = True
        await asyncio.sleep(59)
        assert len(held.links) == 1
        await asyncio.sleep(20)
        assert len(held.links) == 2
        assert held.node.connected.is_set()

    in_time(story)


def test_a_silent_host_is_told_after_seconds() -> None:
    """Who was never asked is not silent; an agent that owes an answer is, from its last word on, until it says one again."""

    async def story(held: Held) -> None:
        assert held.node.silent_since is None
        await held.node.connect()
        held.node.running = {"k1"}
        held.is_deaf = True
        await asyncio.sleep(3.5)
        assert held.node.silent_since is None
        await asyncio.sleep(1)
        assert held.node.silent_since is not None
        held.say()
        await asyncio.sleep(0.1)
        assert held.node.silent_since is None

    in_time(story)


@pytest.mark.parametrize(("running", "seconds"), [({"k1"}, 4.0), (set(), 20.0)], ids=["with kernels", "idle"])
def test_a_host_with_a_connection_is_unreachable_when_it_owes_a_word(running: set[str], seconds: float) -> None:
    """Where kernels run it says something every two seconds; else an answer is due when it has been pinged."""

    async def story(held: Held) -> None:
        assert held.node.is_unreachable is None
        held.is_deaf = True
        await held.node.connect()
        held.node.running = running
        await asyncio.sleep(seconds - 0.5)
        assert held.node.is_unreachable is False
        await asyncio.sleep(1)
        assert held.node.is_unreachable is True

    in_time(story)


def test_a_host_without_a_connection_is_unreachable_where_a_kernel_needs_it() -> None:
    """It is after seconds of silence while an attempt goes on, and no more when it is back."""

    async def story(held: Held) -> None:
        may_go_on = asyncio.Event()

        async def log_in(progress: Progress) -> None:
            await may_go_on.wait()

        held.kernels.append("k1")
        held.node.users["k1"] = None
        await held.node.connect()
        held.logging_in = log_in
        held.links[-1].lose()
        await asyncio.sleep(3.5)
        assert held.node.is_unreachable is False
        await asyncio.sleep(1)
        assert held.node.is_unreachable is True
        may_go_on.set()
        await asyncio.sleep(0.1)
        assert held.node.is_unreachable is False

    in_time(story)


def test_a_host_that_nothing_needs_is_unreachable_for_a_while_after_a_failure() -> None:
    """Nobody tries it again, so that a minute later nothing is known of it."""

    async def story(held: Held) -> None:
        held.refuses = True
        with pytest.raises(HostUnreachable):
            await held.node.connect()
        await asyncio.sleep(0.1)
        assert held.node.is_unreachable is True
        await asyncio.sleep(max(Distributed(ssh_config="").retry_after, 60.0) - 1)
        assert held.node.is_unreachable is True
        await asyncio.sleep(2)
        assert held.node.is_unreachable is None
        held.node.users["k1"] = None
        assert held.node.is_unreachable is True

    in_time(story)


@pytest.mark.parametrize(
    ("running", "is_talking", "least", "most"),
    [({"k1"}, False, 28, 31), (set(), False, 3, 4), ({"k1"}, True, 3, 4)],
    ids=["with kernels", "idle", "talking"],
)
def test_signs_of_life(running: set[str], is_talking: bool, least: int, most: int) -> None:
    """A quiet agent with kernels is asked each other second, an idle one four times a minute, and one that talks is told as often
    that we live: it gives up a gateway from which it has not heard for a minute."""

    async def story(held: Held) -> None:
        await held.node.connect()
        held.node.running = running
        for _ in range(60):
            await asyncio.sleep(1)
            if is_talking:
                held.say()
        assert least <= held.asked("ping") <= most

    in_time(story)


@pytest.mark.parametrize(("is_wanted", "longest"), [(True, 7.5), (False, 90.0)], ids=["kernels", "errands"])
def test_a_host_that_stays_away_is_tried_more_and_more_seldom(is_wanted: bool, longest: float) -> None:
    """Within seconds at first; at last every five, plus jitter, or every minute where only what was given up waits for it."""

    async def story(held: Held) -> None:
        if is_wanted:
            held.kernels.append("k1")
        else:
            held.abandoned.mark(held.node, "k1", "a1", 0)
        held.refuses = True
        held.node.come_back()
        await asyncio.sleep(3600)
        pauses = [later - before for before, later in zip(held.tried, held.tried[1:], strict=False)]
        assert 0.2 <= pauses[0] <= 0.3
        assert longest / 1.5 <= min(pauses[-10:]) <= max(pauses) <= longest
        held.refuses = False
        await asyncio.sleep(longest)
        assert held.node.connected.is_set()

    in_time(story)


def test_connections_that_are_lost_at_once_are_made_more_and_more_seldom() -> None:
    """What cuts each of them off would do so five times a second for ever; one that has stood is made again at once."""

    async def story(held: Held) -> None:
        loop = asyncio.get_running_loop()
        held.kernels.append("k1")
        held.node.come_back()
        until = loop.time() + 60
        while loop.time() < until:
            await held.node.connected.wait()
            held.links[-1].lose()
            await asyncio.sleep(0.01)
        assert 8 <= len(held.links) <= 20
        await held.node.connected.wait()
        await asyncio.sleep(2.5)
        lost_at = loop.time()
        held.links[-1].lose()
        await asyncio.sleep(0.01)
        await held.node.connected.wait()
        assert loop.time() - lost_at < 0.1

    in_time(story)


def test_a_link_without_streams_is_made_again_less_and_less_often() -> None:
    """Nothing but failures end it after ten seconds, then twenty, at most five minutes; after ten quiet minutes ten again."""

    async def story(held: Held) -> None:
        loop = asyncio.get_running_loop()
        held.kernels.append("k1")
        await held.node.connect()

        async def fail(seconds: float) -> list[float]:
            """Have streams fail for so long; return after how many seconds each link was given up."""
            began, links, given_up = loop.time(), len(held.links), []
            until = began + seconds
            while loop.time() < until:
                await held.node.connected.wait()
                held.node.note_stream(ConnectionError("refused"))
                await asyncio.sleep(0.25)
                if len(held.links) > links:
                    given_up.append(loop.time() - began)
                    began, links = loop.time(), len(held.links)
            return given_up

        assert await fail(1300) == pytest.approx([10, 20, 40, 80, 160, 300, 300, 300], abs=1.0)
        held.node.note_stream(None)
        await asyncio.sleep(601)
        assert await fail(15) == pytest.approx([10], abs=1.0)

    in_time(story)


def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    """A request has its deadline, and what is answered after it does no harm to the connection."""

    async def story(held: Held) -> None:
        await held.node.connect()
        held.node.running = {"k1"}
        held.is_deaf = True
        await asyncio.sleep(8)  # two pings have begun
        for number in range(10):
            held.links[-1].reader.feed_data(encode({"id": number, "result": {"pid": 7}}))
        held.is_deaf = False
        await asyncio.sleep(120)
        assert len(held.links) == 1
        assert held.node.connected.is_set()

    in_time(story)


@pytest.mark.parametrize(("given", "seconds"), [(None, 5.0), (0.5, 0.5)])
def test_each_request_has_its_own_deadline(given: float | None, seconds: float) -> None:
    """The setting's, unless who asks has another one; the error says what was asked, and for how long."""

    async def story(held: Held) -> None:
        loop = asyncio.get_running_loop()
        await held.node.connect()
        held.is_deaf = True
        began = loop.time()
        with pytest.raises(HostUnresponsive, match=f"^Host node1: No answer to 'ping' within {seconds:g} s"):
            await held.node.request(Ping(), given)
        assert loop.time() - began == pytest.approx(seconds, abs=0.01)
        held.is_deaf = False
        assert (await held.node.request(Ping(), given)).pid == 7
        assert held.node.connected.is_set()

    in_time(story)


@pytest.mark.parametrize(
    ("kind", "text", "error", "told"),
    [
        ("start", "no such program", KernelStartFailed, "check argv, PATH and the files"),
        ("host", "no space left", AgentUnavailable, "free disk, memory, processes or ports"),
        ("folder", "it is not here", FolderMissing, "free disk space"),
        ("gone", "no kernel 'k1' is there", KernelGone, "start the kernel again"),
        ("taken", "it is another's", KernelTaken, TAKEN_REMEDY),
        ("busier", "2 kernels are there, and not 1", HostBusier, "start the kernel again"),
        ("full", "1000 starts wait", QueueFull, "start the kernel again later"),
        ("log", "it cannot be read", AgentUnavailable, "check that file and its disk"),
        ("malformed", "no method 'ping'", AgentUnavailable, "it makes room for the new one"),
        ("malformed", "Ping: no object", AgentUnavailable, "see agent.log"),
        ("internal", "KeyError('k1')", AgentUnavailable, "see agent.log"),
    ],
)
def test_an_agents_refusal_is_an_error_of_its_kind(
    kind: str, text: str, error: type[DistributedError], told: str
) -> None:
    """By its kind it is the kernel's fault, the host's, or nobody's; what an agent has as a remedy itself goes before ours."""

    async def story(held: Held) -> None:
        own = ""
        held.answers = lambda request: [
            encode({"id": request["id"], "error": text, "kind": kind, "remedy": own, "owner": "two", "lease": 4})
        ]
        await held.node.connect()
        with pytest.raises(error) as refused:
            await held.node.request(Ping())
        assert type(refused.value) is error
        assert told in refused.value.remedy
        assert refused.value.host == "node1"
        if isinstance(refused.value, KernelTaken):
            assert (refused.value.owner, refused.value.lease) == ("two", 4)
        own = "do something else"
        with pytest.raises(error) as refused:
            await held.node.request(Ping())
        assert (refused.value.remedy == own) == (kind in ("start", "host", "full"))

    in_time(story)


def test_what_fails_again_and_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A host that stays away for hours fills no log, and neither do channels that cannot be opened, until one could."""

    def warnings(beginning: str) -> int:
        return sum(each.levelname == "WARNING" and each.getMessage().startswith(beginning) for each in caplog.records)

    async def story(held: Held) -> None:
        held.kernels.append("k1")
        held.refuses = True
        held.node.come_back()
        await asyncio.sleep(3600)
        assert len(held.tried) > 100
        assert warnings("cannot reconnect: Host node1: No answer.") == 1
        held.refuses = False
        await held.node.connected.wait()
        for told in (1, 2):
            for _ in range(12):
                held.node.note_stream(ConnectionError("refused"))
                await asyncio.sleep(0.3)
            assert warnings("node1: it is connected, but kernels' channels") == told
            held.node.note_stream(None)

    in_time(story)


def test_a_start_that_connected_meanwhile_makes_coming_back_quick_again() -> None:
    """A connection that a user's start made, and that is lost after it stood, is made again at once, however long the host was
    away before it."""

    async def story(held: Held) -> None:
        loop = asyncio.get_running_loop()
        held.kernels.append("k1")
        held.refuses = True
        held.node.come_back()
        await asyncio.sleep(600)
        failed = len(held.tried)
        while len(held.tried) == failed:
            await asyncio.sleep(0.01)
        held.refuses = False
        await held.node.connect()
        await asyncio.sleep(2.1)
        lost_at = loop.time()
        held.links[-1].lose()
        await asyncio.sleep(0.01)
        await held.node.connected.wait()
        assert loop.time() - lost_at < 0.5

    in_time(story)


def test_hosts_that_are_lost_together_come_back_one_after_the_other() -> None:
    """Two hundred hosts that are lost in the same moment are not logged in to in the same moment, but all are within seconds."""

    async def story(_: Held) -> None:
        turns = Turns()
        lost = [Held(turns) for _ in range(200)]
        for held in lost:
            held.kernels.append("k1")
            await held.node.connect()
        await asyncio.sleep(10)
        began = asyncio.get_running_loop().time()
        for held in lost:
            held.links[-1].lose()
        await asyncio.sleep(10)
        again = [held.tried[1] - began for held in lost]
        assert all(held.node.connected.is_set() for held in lost)
        assert max(again) <= 2.1
        assert max(again) - min(again) > 1.0
        for held in lost:
            await held.node.close()

    in_time(story)


def test_kernels_are_claimed_by_tens_with_the_numbers_that_are_held() -> None:
    """An answer has the ends of their logs, so no more are asked for at once; what is not held is not said."""

    async def story(held: Held) -> None:
        held.kernels += [f"k{number}" for number in range(25)]
        held.leases = {"k3": 7}
        await held.node.connect()
        claims = [request["params"] for request in held.requests if request["method"] == "adopt"]
        assert [len(claim["kernels"]) for claim in claims] == [Adopt.MOST, Adopt.MOST, 5]
        assert [claim["leases"] for claim in claims] == [{"k3": 7}, {}, {}]

    in_time(story)


def test_what_is_not_wanted_any_more_is_no_news() -> None:
    """A kernel that was released, or started elsewhere, while its host was asked for it is neither missing nor taken."""

    def answers(held: Held, gone: Message) -> Answers:
        def answer(request: Message) -> list[bytes]:
            if request["method"] == "adopt":
                held.kernels.clear()
                return [reply(request, gone)]
            return honest(request)

        return answer

    async def story(held: Held) -> None:
        for gone in ({}, {"k1": described("k1", state=TAKEN_OVER)}):
            held.kernels.append("k1")
            held.answers = answers(held, gone)
            await held.node.connect()
            held.links[-1].lose()
            await asyncio.sleep(1)
        assert len(held.links) == 2
        assert held.news == []

    in_time(story)


def test_what_was_asked_for_another_handle_is_no_news() -> None:
    """A kernel that was taken over while its host was asked for it, and then back, is asked for anew: that answer is old."""

    def taken_back(held: Held, gone: Message) -> Answers:
        def answer(request: Message) -> list[bytes]:
            if request["method"] == "adopt":
                held.handles["k1"] = object()
                return [reply(request, gone)]
            return honest(request)

        return answer

    async def story(held: Held) -> None:
        held.kernels.append("k1")
        for gone in ({}, {"k1": described("k1", state=TAKEN_OVER)}, {"k1": described("k1")}):
            held.answers = taken_back(held, gone)
            await held.node.connect()
            held.links[-1].lose()
            await asyncio.sleep(1)
        assert held.news == []

    in_time(story)


def test_what_the_greeting_says() -> None:
    """Kernels that have ended count for nothing, and an agent of the protocol before is left as it is at the next connection."""

    async def story(held: Held) -> None:
        kernels = [{"kernel": "k1", "state": "running"}, {"kernel": "k2", "state": "exited"}]
        held.greeting = {**WELCOME, "kernels": kernels, "protocol": OLDEST_PROTOCOL}
        await held.node.connect()
        assert held.node.running == {"k1"}
        held.links[-1].lose()
        await asyncio.sleep(1)
        await held.node.connect()
        assert held.kept == [False, True]

    in_time(story)


@pytest.mark.parametrize("has_answered", [True, False])
def test_a_login_is_slow_where_a_dead_host_would_have_failed(has_answered: bool) -> None:
    """A host that has answered is slow from then on, and another one is taken; one that said nothing is not slow but away."""

    async def log_in(progress: Progress) -> None:
        progress.answered = has_answered
        await asyncio.sleep(3600)

    async def story(held: Held) -> None:
        held.logging_in = log_in
        seconds = Distributed(ssh_config="").connect_seconds()
        connecting = asyncio.ensure_future(held.node.connect())
        await asyncio.sleep(seconds - 0.5)
        assert not held.node.is_slow()
        await asyncio.sleep(1)
        assert held.node.is_slow() == has_answered
        connecting.cancel()

    in_time(story)


@pytest.mark.parametrize(("kind", "is_reached"), [(MemoryLink, True), (LocalMemoryLink, False)])
def test_the_gateways_own_machine_says_nothing_of_its_network(kind: type[MemoryLink], is_reached: bool) -> None:
    """It is connected to whatever becomes of the network; so kernels of other hosts are not given up for its sake."""

    async def story(held: Held) -> None:
        held.kind = kind
        assert not held.node.is_reached_by_network()
        await held.node.connect()
        assert held.node.is_reached_by_network() == is_reached

    in_time(story)
