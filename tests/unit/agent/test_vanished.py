"""Gateways that vanish without a word: no connection says so, only silence does."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from eg_distributed.agent import server
from eg_distributed.agent.server import Agent
from eg_distributed.wire import encode, read_message

SILENCE = 0.5


@pytest_asyncio.fixture
async def path(short: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """The socket of an agent in this process, which gives up silent gateways quickly."""
    monkeypatch.setattr(server, "SILENCE", SILENCE)
    monkeypatch.setattr(server, "TICK", 0.05)
    (short / "k").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(short / "d.sock"))
    listening.listen()
    running = asyncio.ensure_future(Agent(short, "d").run(listening))
    yield short / "d.sock"
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def control(path: Path, owner: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(encode({"type": "control", "gateway": owner, "incarnation": "1"}))
    hello = await read_message(reader)
    assert hello is not None
    assert hello["ok"]
    return reader, writer


async def test_a_silent_gateway_is_given_up_and_one_that_pings_is_not(path: Path) -> None:
    """The connection of a gateway that says nothing is closed; a ping now and then keeps the other's open."""
    silent, silent_writer = await control(path, "silent")
    living, living_writer = await control(path, "living")
    began = asyncio.get_running_loop().time()
    closed = asyncio.ensure_future(read_message(silent))
    number = 0
    while not closed.done():
        number += 1
        living_writer.write(encode({"id": number, "method": "ping", "params": {}}))
        answer = await asyncio.wait_for(read_message(living), 5)
        assert answer is not None
        assert answer["id"] == number
        await asyncio.wait({closed}, timeout=SILENCE / 5)
        assert asyncio.get_running_loop().time() - began < 10
    assert closed.result() is None
    assert asyncio.get_running_loop().time() - began >= SILENCE
    silent_writer.close()
    living_writer.close()


@pytest.mark.parametrize(("lately", "is_gone"), [(20.0, True), (-1.0, False)])
async def test_a_gateway_whose_link_ends_after_silence_may_be_cut_off(
    short: Path, monkeypatch: pytest.MonkeyPatch, lately: float, is_gone: bool
) -> None:
    """One that was heard lately is gone with its connection; of one that was not, sshd or TCP may have given up the link."""
    monkeypatch.setattr(server, "HEARD_LATELY", lately)
    agent = Agent(short, "d")
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=here)
    serving = asyncio.ensure_future(agent.accept(*await asyncio.open_unix_connection(sock=there)))
    writer.write(encode({"type": "control", "gateway": "g", "incarnation": "1", "gone_timeout": 60}))
    assert await read_message(reader)
    (gateway,) = agent.gateways
    writer.close()
    await asyncio.wait_for(serving, 5)
    assert gateway.is_gone is is_gone
