"""A malformed message is an error of that message and of nothing else: a hello, a reply, an event and a request each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from eg_distributed.agent.server import socket_path
from eg_distributed.cluster import Cluster
from eg_distributed.errors import AgentUnavailable, HostError
from eg_distributed.node import Node
from eg_distributed.protocol import FindLogs, Found, Missing, Ping, Ready
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed
from eg_distributed.wire import MAX_ANSWER, encode
from tests.until import until

from .agents import DEADLINE, Refusal, Visitor, own_agent, standin
from .conftest import Hosts
from .malformed_agent import WELCOME, MalformedAgent, described, honest, lead_to, reply
from .node_owner import NodeOwner
from .ssh_server import Sshd


def framed(body: bytes) -> bytes:
    """Return *body* as a message, whatever it is."""
    return struct.pack(">I", len(body)) + body


DEEP = framed(b"[" * 5000 + b"]" * 5000)
NOT_MESSAGES = [framed(b"[]"), framed(b"{"), framed(b"\xff"), framed(b""), DEEP]


@pytest_asyncio.fixture
async def sshd(hosts: Hosts) -> Sshd:
    """The host whose agent misbehaves."""
    (sshd,) = await hosts("node1")
    return sshd


@pytest_asyncio.fixture
async def agent(sshd: Sshd) -> AsyncIterator[MalformedAgent]:
    """The agent of `sshd`, honest until told otherwise."""
    agent = MalformedAgent()
    path = sshd.folder / "sock"
    lead_to(sshd, path)
    async with agent.listening(path):
        yield agent


class Held(NodeOwner):
    """A node, and what it told."""

    def __init__(self, settings: Distributed) -> None:
        super().__init__(settings)
        self.node = Node("node1", settings, ("tests", "1"), self)


@pytest_asyncio.fixture
async def held(settings: Distributed) -> AsyncIterator[Held]:
    """A node that is not connected yet."""
    held = Held(settings)
    yield held
    await held.node.close()


# -- the greeting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "greeting",
    [
        *NOT_MESSAGES,
        framed(json.dumps({"ok": True}).encode()),
        encode({**WELCOME, "kernels": [{"kernel": "k1"}]}),
        encode({**WELCOME, "kernels": {"k1": "running"}}),
        encode({**WELCOME, "kernels": ["k1"]}),
        encode({**WELCOME, "protocol": "4"}),
        encode({**WELCOME, "protocol": 9}),
        struct.pack(">I", MAX_ANSWER + 1),
    ],
    ids=lambda greeting: repr(greeting[:90]),
)
async def test_malformed_greeting_is_a_host_error(
    held: Held, agent: MalformedAgent, sshd: Sshd, greeting: bytes
) -> None:
    """A greeting that makes no sense is this host's error, which a start moves on from, and no link stays open."""
    agent.greeting = greeting
    with pytest.raises(AgentUnavailable, match=r"^Host node1: Its agent"):
        await held.node.connect()
    assert isinstance(held.node.last_error, HostError)
    await until("no link stays", lambda: not agent.open_links and not sshd.open_connections)


async def test_coming_back_survives_a_malformed_greeting(held: Held, agent: MalformedAgent, sshd: Sshd) -> None:
    """A node that answered nonsense once is connected again when it answers properly, and its kernels are taken back."""
    held.kernels.append("k1")
    await held.node.connect()
    agent.greeting = encode({**WELCOME, "kernels": [{"kernel": "k1"}]})
    sshd.wire.cut()
    await until("the nonsense is met", lambda: isinstance(held.node.last_error, AgentUnavailable))
    agent.greeting = encode(WELCOME)
    await asyncio.wait_for(held.node.connected.wait(), 30)
    assert [type(news) for news in held.news] == [Found, Found]


async def test_a_start_moves_on_from_a_malformed_greeting(
    hosts: Hosts, settings: Distributed, agent: MalformedAgent
) -> None:
    """With a second host in the set the kernel starts there, and the first one counts as failed."""
    agent.greeting = encode({**WELCOME, "kernels": 5})
    await hosts("node2")
    cluster = Cluster(settings, "tests")
    try:
        request = StartRequest("k1", standin(), ("node1", "node2"), language="python", key="k")
        kernel = await cluster.run(cluster.start(request))
        assert kernel.node is not None
        assert kernel.node.name == "node2"
        assert not cluster.host("node1").is_healthy(settings.retry_after)
        await cluster.run(cluster.release("k1"))
    finally:
        await asyncio.to_thread(cluster.close)


# -- replies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [{"pid": "seven"}, {"pid": -1}, {"pid": True}, {}, [], "pong", None],
    ids=repr,
)
async def test_malformed_reply_fails_its_own_request(held: Held, agent: MalformedAgent, answer: object) -> None:
    """The request that it answers fails with host and cause; the connection stays, and the next request is answered."""
    await held.node.connect()
    agent.answers = lambda request: [reply(request, answer)]
    with pytest.raises(AgentUnavailable, match=r"^Host node1: Its agent's answer to 'ping' is malformed"):
        await held.node.request(Ping())
    agent.answers = honest
    assert (await held.node.request(Ping())).pid == 7
    assert held.node.connections == 1


async def test_an_agent_of_an_older_release_says_that_it_has_no_such_method(held: Held, agent: MalformedAgent) -> None:
    """A request that came with a newer release is refused with the way out, and the connection stays."""
    await held.node.connect()
    agent.answers = lambda request: [
        encode({"id": request["id"], "error": f"no method {request['method']!r}", "kind": "malformed"})
    ]
    with pytest.raises(AgentUnavailable, match=r"^Host node1: Its agent is of an older release"):
        await held.node.request(FindLogs("k1"))
    agent.answers = honest
    assert (await held.node.request(Ping())).pid == 7


@pytest.mark.parametrize(
    "noise",
    [
        *NOT_MESSAGES,
        encode({"id": [], "result": 1}),
        encode({"id": {}, "result": 1}),
        encode({"id": "1", "result": 1}),
        encode({}),
        encode({"event": "load"}),
        encode({"event": "load", "kernels": 7}),
        encode({"event": "load", "kernels": [[]]}),
        encode({"event": 7}),
        encode({"event": "ready"}),
        encode({"event": "exited", "kernel": "k1", "attempt": "a1", "exit_code": "none"}),
        encode({"event": "response", "kernel": "k1", "attempt": "a1", "payload": 1}),
        encode({"event": "stalled", "kernel": "k1", "attempt": "a1", "seconds": "long"}),
        encode({"event": "of a newer release", "kernel": "k1"}),
    ],
    ids=lambda noise: repr(noise[:90]),
)
async def test_malformed_message_is_passed_over(held: Held, agent: MalformedAgent, noise: bytes) -> None:
    """What cannot be understood, or is a newer release's, changes nothing: the next event and the next reply are taken."""
    await held.node.connect()
    agent.say(noise, encode({"event": "ready", "kernel": "k1", "attempt": "a1"}))
    await until("the event behind it is taken", lambda: held.news)
    assert held.news == [Ready("k1", "a1")]
    assert (await held.node.request(Ping())).pid == 7
    assert (held.node.connections, held.node.running) == (1, set())


async def test_malformed_messages_are_logged_once_a_link(
    held: Held, agent: MalformedAgent, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the host and the field, and a node that goes on does not fill it."""
    await held.node.connect()
    with caplog.at_level(logging.WARNING):
        agent.say(*[encode({"event": "load", "kernels": 7})] * 50)
        assert (await held.node.request(Ping())).pid == 7
    # The garbage of a test before is asyncio's to complain about, at any time.
    assert [record.message for record in caplog.records if record.name == "eg_distributed.node"] == [
        "node1: malformed message: Load.kernels: int instead of a list"
    ]


async def test_one_malformed_kernel_does_not_hide_the_others(held: Held, agent: MalformedAgent) -> None:
    """After a reconnection each kernel is read for itself: one that makes no sense stays as it was known."""
    held.kernels += ["k1", "k2", "k3"]
    agent.answers = lambda request: [
        reply(request, {"k1": described("k1", pid="seven"), "k2": described("k2")})
        if request["method"] == "adopt"
        else honest(request)[0]
    ]
    await held.node.connect()
    assert [(type(news), news.kernel) for news in held.news] == [(Found, "k2"), (Missing, "k3")]


async def test_many_kernels_are_taken_back_in_answers_of_bounded_size(held: Held, agent: MalformedAgent) -> None:
    """With long logs and many kernels no answer is larger than a gateway takes."""
    held.kernels += [f"k{number}" for number in range(120)]
    log = "\0" * 4096  # six bytes each, as JSON has them
    agent.answers = lambda request: [
        reply(request, {kernel: described(kernel, state="exited", log=log) for kernel in request["params"]["kernels"]})
    ]
    await held.node.connect()
    assert [news.kernel for news in held.news] == held.kernels


# -- hellos ------------------------------------------------------------------------------------------------------


CONTROL = {"type": "control", "gateway": "other", "incarnation": "1", "host": "?"}
STREAM = {"type": "stream", "kernel": "k1", "channel": "shell", "stream": "s1", "gateway": "tests", "incarnation": "1"}
FOLDER = {"type": "folder", "digest": "0" * 64, "size": 1}
NOT_HELLOS = [
    *NOT_MESSAGES,
    b"",
    b"\0\0",
    framed(b"{}")[:-1],
    struct.pack(">I", 0xFFFFFFFF),
    encode({}),
    encode({"type": []}),
    encode({"type": "of a newer release"}),
    encode({"type": "control"}),
    encode({**CONTROL, "gateway": {"id": 1}}),
    encode({**CONTROL, "incarnation": "1" * 100_000}),
    encode({**CONTROL, "protocol": "4"}),
    encode(STREAM),
    encode({**STREAM, "resume": "yes", "received": 0}),
    encode({**STREAM, "resume": False, "received": -1}),
    encode({**STREAM, "kernel": ["k1"], "resume": False, "received": 0}),
    encode({**STREAM, "channel": "..", "resume": False, "received": 0}),
    encode({**STREAM, "resume": False, "received": 1 << 60}),
    encode({**FOLDER, "digest": "../../outside"}),
    encode({**FOLDER, "size": -1}),
    encode({**FOLDER, "size": 1 << 60}),
    encode(FOLDER) + b"x",
]


async def test_an_agent_survives_malformed_hellos(short: Path) -> None:
    """Each costs its own connection and nothing else: no task fails, and the gateways that are there are served on."""
    failed: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    async with own_agent(short) as (_, visitor):
        await visitor.ready("k1", standin())
        for hello in NOT_HELLOS:
            reader, writer = await asyncio.open_unix_connection(socket_path(short))
            writer.write(hello)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):  # one that is closed before all is read is reset
                await asyncio.wait_for(reader.read(), DEADLINE)
            writer.close()
            assert (await visitor.request("ping"))["running"] == 1, hello[:90]
        later = await Visitor.at(visitor.link, "other")
        assert later.hello["kernels"] == [{"kernel": "k1", "state": "running"}]
        later.close()
        answer_to_stream, _, stream = await visitor.stream("k1", stream="s2")
        assert answer_to_stream["ok"]
        stream.close()
    assert failed == []


# -- requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "why"),
    [
        ("start", {"kernel": "k1"}, "Start.attempt is missing"),
        ("signal", {"kernel": [], "signum": 2}, "Signal.kernel: list instead of a text"),
        ("signal", {"kernel": "k1", "signum": "2"}, "Signal.signum: str instead of a whole number"),
        ("signal", {"kernel": "k1", "signum": 1e9}, "Signal.signum"),
        ("stop", {"kernel": "k1", "grace": "long"}, "Stop.grace: str instead of a number"),
        ("stop", {"kernel": "k1", "grace": -1}, "Stop.grace: a number that is out of bounds"),
        ("adopt", {"kernels": "k1"}, "Adopt.kernels: str instead of a list"),
        ("log", {"kernel": "k1", "size": 1 << 40}, "ReadLog.size"),
        ("ping", [1], "Ping: list instead of an object"),
        ("ping", "x", "Ping: str instead of an object"),
    ],
)
async def test_malformed_request_is_refused_and_the_connection_stays(
    visitor: Visitor, method: str, params: object, why: str
) -> None:
    """The answer names the message and its field as such, changes nothing, and the next request is answered."""
    await visitor.ready("k1", standin())
    with pytest.raises(Refusal, match=why) as refused:
        await visitor.ask(method, params)
    assert refused.value.kind == "malformed"
    assert [kernel["state"] for kernel in await visitor.request("list")] == ["running"]


@pytest.mark.parametrize("noise", NOT_MESSAGES, ids=lambda noise: repr(noise[:90]))
async def test_noise_between_requests_is_refused_and_the_connection_stays(visitor: Visitor, noise: bytes) -> None:
    """What is not a message is answered as malformed; the requests before and behind it are answered as ever."""
    await visitor.ready("k1", standin())
    visitor.send(noise)
    assert (await visitor.request("ping"))["running"] == 1
    assert [refusal["kind"] for refusal in visitor.strays] == ["malformed"]


async def test_an_answer_that_would_be_too_long_is_an_error_of_its_request(visitor: Visitor) -> None:
    """A gateway that asks for more than a message may hold hears so, and is not cut off."""
    await visitor.start("k1", standin("flood:1000000", "leave:0"), log_dir="~/logs")
    await visitor.event("exited", "k1")
    assert len(await visitor.request("log", kernel="k1", size=MAX_ANSWER // 8)) == MAX_ANSWER // 8
    assert (await visitor.request("ping"))["pid"]
