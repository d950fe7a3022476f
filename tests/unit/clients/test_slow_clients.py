"""A client that lags behind is given no more output until it has confirmed some, and then all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("zmq", reason="the session `jupyterlab` has it")

import zmq
from zmq.eventloop.zmqstream import ZMQStream

from eg_distributed.clients import slow_clients
from eg_distributed.clients.kept_messages import KEPT_BYTES, Kept, size_of
from eg_distributed.clients.slow_clients import Pace, lose_nothing_by_flush, with_short_queue
from eg_distributed.streams import Budget
from tests.until import until

PART = KEPT_BYTES // 8


class Client:
    """A connection and its kernel: messages come on a real ZMQStream."""

    def __init__(self, stream: ZMQStream, sender: zmq.Socket[bytes]) -> None:
        self.numbers: list[int] = []
        """What the client was sent."""
        self.asked = self.renewed = 0
        self.started = "process"
        self.has_kernel = self.has_agent = True
        self.stream: Any = stream
        self.stream.channel, self.stream.process = "iopub", "process"
        self.channels = {"iopub": stream}
        self.is_writing = True
        self.serving, self.closed = True, False
        self.unconfirmed = Kept(Budget(1 << 40))
        self.protocol = SimpleNamespace(stream=SimpleNamespace(writing=lambda: self.is_writing))
        self.renew: Callable[[], None] | None = self._renew
        self.pace = Pace(self)
        self._sender = sender
        self._sent = 0

    def ask_what_came(self) -> None:
        self.asked += 1

    def process(self) -> str:
        return self.started

    def _renew(self) -> None:
        self.renewed += 1

    def take(self, stream: Any, parts: list[bytes]) -> None:
        self.unconfirmed.append((stream.channel, parts))
        self.numbers.append(int(parts[0]))
        self.pace.note_written(size_of(parts))

    def serve(self) -> None:
        self.stream.on_recv_stream(self.take)

    def prints(self, count: int, size: int = PART) -> None:
        """Have the kernel send *count* messages of *size* bytes."""
        for _ in range(count):
            self._sender.send_multipart([b"%d" % self._sent, bytes(size)])
            self._sent += 1

    def confirms(self, number: int) -> None:
        self.unconfirmed.drop_to(number)
        self.pace.note_confirmed(number)

    async def has(self, count: int) -> None:
        await until("more has come", lambda: len(self.numbers) == count)

    async def is_held_after(self, count: int) -> None:
        await until("the client is held", lambda: self.pace.is_held)
        assert self.numbers == list(range(count))


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    context = zmq.Context[Any]()
    sender, receiver = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    sender.bind("inproc://output")
    receiver.connect("inproc://output")
    stream = ZMQStream(receiver)
    lose_nothing_by_flush(stream)
    made = Client(stream, sender)
    made.serve()
    yield made
    made.pace.end()
    stream.close(0)
    sender.close(0)
    context.term()


async def test_output_waits_until_it_is_confirmed(client: Client) -> None:
    """Half of the room, and no more comes, but the client is asked; what it confirms lets all that follows come, each once."""
    client.prints(20)
    await client.is_held_after(4)
    assert client.asked == 1
    client.confirms(1)
    await client.is_held_after(5)
    for number in range(2, 21):
        client.confirms(number)
        await client.has(min(20, number + 4))
    assert client.numbers == list(range(20))
    assert not client.pace.is_held


async def test_a_flush_takes_nothing_from_a_client_that_is_held(client: Client) -> None:
    """As before a notice that the kernel is started again: what waits in the socket comes when the client goes on."""
    client.prints(20)
    await client.is_held_after(4)
    client.stream.flush()
    assert client.numbers == list(range(4))
    for number in range(1, 21):
        client.confirms(number)
        client.stream.flush()
    await until("all has come", lambda: client.numbers == list(range(20)))


async def test_one_large_message_is_enough(client: Client) -> None:
    """A message larger than all that is kept of a client is not followed by another before it is confirmed."""
    client.prints(3, KEPT_BYTES + 1)
    await client.is_held_after(1)
    client.confirms(1)
    await client.is_held_after(2)


async def test_a_client_whose_answers_are_swallowed_goes_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any confirmation for long, output goes on as the system takes it, and waits while it does not."""
    monkeypatch.setattr(slow_clients, "_MUTE_AFTER", 0.1)
    monkeypatch.setattr(slow_clients, "_LOOK", 0.02)
    client.prints(12)
    await client.is_held_after(4)
    await until("it counts as mute", lambda: client.pace._is_mute)
    assert client.numbers == list(range(4))
    client.is_writing = False
    await until("all has come", lambda: client.numbers == list(range(12)))


async def test_a_channel_is_left_alone_before_its_connection_is_served(client: Client) -> None:
    """While a connection is prepared, somebody else listens on its channel, and waits for the client by asking."""
    client.serving = False
    client.prints(12)
    await until("all has come", lambda: client.numbers == list(range(12)))
    assert not client.pace.may_go_on
    waiting = asyncio.create_task(client.pace.catch_up())
    await asyncio.wait({waiting}, timeout=0.1)
    assert not waiting.done()
    client.confirms(12)
    await asyncio.wait_for(waiting, 5)


async def test_a_kernel_that_is_started_again_is_heard_anew(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that lags behind does not have to take all that the kernel before had printed first."""
    monkeypatch.setattr(slow_clients, "_LOOK", 0.02)
    client.prints(12)
    await client.is_held_after(4)
    client.started = "next process"
    await until("it is heard anew", lambda: client.renewed == 1)
    assert not client.pace.is_held


@pytest.mark.parametrize("before", [None, 7])
def test_other_sockets_keep_their_queue(before: int | None) -> None:
    """Only sockets of clients' output have a short one; what an operator has set for the context stays."""
    context: Any = zmq.Context()
    if before is not None:
        context.setsockopt(zmq.RCVHWM, before)
    expected = _queue(context)
    with with_short_queue(context):
        assert _queue(context) == 30
    assert _queue(context) == expected
    context.term()


def _queue(context: Any) -> int:
    socket = context.socket(zmq.SUB)
    found: int = socket.getsockopt(zmq.RCVHWM)
    socket.close(0)
    return found
