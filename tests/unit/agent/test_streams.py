"""The streams of an agent together: what they keep has one bound, and each channel a limit of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from eg_distributed.agent import streams as streams_module
from eg_distributed.agent.kernels import RUNNING, Kernel
from eg_distributed.agent.streams import OUTPUT_LIMIT, Streams
from eg_distributed.protocol import StreamHello
from eg_distributed.streams import CHUNK, DEFAULT_LIMIT, Relay
from tests.until import until


class Flooding:
    """A kernel that prints without end into each connection to it."""

    def __init__(self) -> None:
        self.id, self.attempt, self.state, self.connection = "k1", "a1", RUNNING, {"transport": "ipc"}
        self.lease, self.holder = 0, ("", "")
        self._open: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = []

    async def connect(self, channel: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the agent's end of a connection."""
        ours, theirs = socket.socketpair()
        _, printing = await asyncio.open_connection(sock=theirs)
        self._open.append((asyncio.ensure_future(self._print(printing)), printing))
        return await asyncio.open_connection(sock=ours, limit=CHUNK)

    async def _print(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(bytes(CHUNK))
                await writer.drain()

    def end(self) -> None:
        """Close all connections."""
        for task, writer in self._open:
            task.cancel()
            writer.transport.abort()


class Link:
    """A gateway's end of a link: what is written to it is forgotten."""

    def write(self, data: bytes) -> None:
        """Forget *data*."""

    async def drain(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Close nothing."""


async def opened(streams: Streams, kernel: Flooding, channel: str, name: str, life: str = "1") -> Relay:
    """Open a stream over a link that is lost at once, as by a cut; return what carries it."""
    lost = asyncio.StreamReader()
    lost.feed_eof()
    hello = StreamHello(kernel.id, channel, name, "tests", life, resume=False, received=0)
    await streams.serve(hello, lost, cast("asyncio.StreamWriter", Link()))
    return streams._streams[name].relay


async def test_all_streams_of_an_agent_keep_no_more_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight clients' streams to a kernel that prints on while its gateway is away keep the budget, not eight times as much."""
    monkeypatch.setattr(streams_module, "BUDGET", 8 * CHUNK)
    kernel = Flooding()
    streams = Streams(cast("dict[str, Kernel]", {"k1": kernel}), lambda *_: None)
    relays = [await opened(streams, kernel, "iopub", f"s{number}") for number in range(8)]
    await until("none of them reads on", lambda: not any(relay.flow.has_room for relay in relays))
    kept = sum(relay.flow.backlog for relay in relays)
    # A flow may always keep CHUNK, and reads CHUNK at once.
    assert 8 * CHUNK <= kept <= 8 * CHUNK + 2 * 8 * CHUNK
    streams.close_of(cast("Kernel", kernel))
    kernel.end()
    await asyncio.gather(*(stream.running for stream in streams._streams.values()))
    assert streams._budget.kept == 0


@pytest.mark.parametrize(("channel", "limit"), [("iopub", OUTPUT_LIMIT), ("shell", DEFAULT_LIMIT)])
async def test_output_may_wait_longer_than_the_rest(channel: str, limit: int) -> None:
    """A PUB socket drops what nobody takes, so more of it is kept than of channels that have back-pressure."""
    kernel = Flooding()
    kernel.connect = quiet  # type: ignore[method-assign]
    streams = Streams(cast("dict[str, Kernel]", {"k1": kernel}), lambda *_: None)
    relay = await opened(streams, kernel, channel, "s1")
    assert (relay.flow.limit, relay.flow.budget) == (limit, streams._budget)
    relay.close()
    await streams._streams["s1"].running


def _leave_both(streams: Streams, kernel: Kernel) -> None:
    for life in "12":
        streams.leave(kernel, ("tests", life))


OF_REPLIES: dict[str, Callable[[Streams, Kernel], None]] = {
    "the next process comes": lambda streams, kernel: streams.close_earlier_lives("tests", {"3"}, lambda *_: True),
    "another one takes over": lambda streams, kernel: streams.sever(kernel, ("tests", "3"), lambda *_: True),
    "their output is handed over": _leave_both,
}


@pytest.mark.parametrize("what", OF_REPLIES)
async def test_few_streams_of_replies_are_held_for_the_next_process(
    what: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many clients the ended processes of a gateway had, LEFT_MOST streams of replies are held, the newest; the agent's
    log says what is lost, and a stream that is used is never among those that have to go."""
    kernel, most = Flooding(), 4
    monkeypatch.setattr(streams_module, "LEFT_MOST", most)
    kernel.connect = quiet  # type: ignore[method-assign]
    known = cast("Kernel", kernel)
    streams = Streams({"k1": known}, lambda *_: None)
    for number in range(most):
        await opened(streams, kernel, "shell", f"first{number}")
    for number in range(3):
        await opened(streams, kernel, "shell", f"second{number}", life="2")
    await opened(streams, kernel, "shell", "used", life="3")
    OF_REPLIES[what](streams, known)
    names = list(streams._streams)
    assert [name for name in names if streams._streams[name].left] == names[3:-1]
    await until("the oldest are closed", lambda: all(streams._streams[name].running.done() for name in names[:3]))
    assert not any(streams._streams[name].running.done() for name in names[3:])
    assert capfd.readouterr().err.count(f"kernel k1: more than {most} streams of replies were left") == 3
    streams.close_of(known)
    await asyncio.gather(*(stream.running for stream in streams._streams.values()))


async def quiet(channel: str) -> Any:
    """Connect to a kernel that says nothing."""
    ours, _ = socket.socketpair()
    return await asyncio.open_connection(sock=ours)
