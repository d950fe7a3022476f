"""Clients of a jupyter_server that connect again: nothing is lost, nothing comes twice, whatever the connection before did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from eg_distributed.jupyter_server import websocket
from tests.sessions import Reader, Session
from tests.silencer import Silencer
from tests.until import PROCESS_SECONDS, until

from .kernels import Kernel
from .served import Served
from .site import Site

LINES = 300
PRINTING = f"""
import time
for number in range({LINES}):
    print(number, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Served]:
    """A server for all tests of this module."""
    root = site.work / "websockets"
    root.mkdir()
    made = Served(site, root)
    yield made
    made.end()


@pytest.fixture
def kernel(served: Served) -> Iterator[Kernel]:
    """A kernel on a host."""
    made = Kernel(served, "remote")
    yield made
    made.end()


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("name", ["remote", "python3"])
async def test_a_session_that_connects_twice_gets_its_output(served: Served, name: str, opened: bool) -> None:
    """As JupyterLab does: it drops a connection without a word, open or not yet, and opens another. Local kernels as well."""
    kernel = Kernel(served, name)
    try:
        session = Session(served, kernel)
        with contextlib.closing(await session.dropped(opened=opened)):
            async with session.connect() as connection:
                assert await Reader(connection, await session.run(connection, "print(1)")).ended() == [1]
    finally:
        kernel.end()


async def test_a_dropped_connection_that_comes_late_takes_nothing(served: Served, kernel: Kernel) -> None:
    """It may overtake the one after it, and answers pings: who says something is the client."""
    session = Session(served, kernel)
    connecting = asyncio.ensure_future(session.connect().__aenter__())
    await connecting
    async with session.connect() as dropped, await connecting as connection:
        for number in range(2):
            assert await Reader(connection, await session.run(connection, f"print({number})")).ended() == [number]
        await asyncio.wait_for(dropped.wait_closed(), PROCESS_SECONDS)
        assert await Reader(connection, await session.run(connection, "print(2)")).ended() == [2]
    await until("no connection is counted", lambda: kernel.model()["connections"] == 0)


async def test_a_client_that_moves_to_another_connection_gets_each_line_once(served: Served, kernel: Kernel) -> None:
    """The connection before delivers until the next one opens, and that one goes on where it stopped."""
    session = Session(served, kernel)
    async with session.connect() as first:
        request = await session.run(first, PRINTING)
        before = Reader(first, request)
        await before.reached(20)
        (await session.dropped(opened=False)).close()  # it comes between the two, and is neither
        async with session.connect() as second:
            after = await Reader(second, request).ended()
        assert await before.ended() + after == list(range(LINES))
        assert after


async def test_a_client_that_closes_gets_each_line_once(served: Served, kernel: Kernel) -> None:
    """Who ends a connection has read what came over it: nothing of that comes again over the next one, nothing is left out."""
    session = Session(served, kernel)
    async with session.connect() as first:
        request = await session.run(first, PRINTING)
        before = Reader(first, request)
    numbers = await before.ended()
    for _ in range(5):
        async with session.connect() as connection:
            reader = Reader(connection, request)
            await reader.reached(len(numbers) + 5)
        numbers += await reader.ended()
        assert numbers == list(range(len(numbers)))
    async with session.connect() as last:
        numbers += await Reader(last, request).ended()
    assert numbers == list(range(LINES))


async def test_what_a_dead_connection_swallowed_is_sent_again(served: Served, kernel: Kernel) -> None:
    """A connection that is cut without a word, as by a laptop's sleep, takes nothing with it."""
    session = Session(served, kernel)
    async with Silencer(session.host, session.port) as silencer, session.connect(silencer.port) as first:
        request = await session.run(first, PRINTING)
        before = Reader(first, request)
        await before.reached(20)
        await silencer.sleep()
        swallowed = silencer.swallowed
        await until("something was swallowed", lambda: silencer.swallowed > swallowed + 10_000)
        async with session.connect() as second:
            after = await Reader(second, request).ended()
        # What came shortly before the cut could not be confirmed any more, and so comes again.
        assert after == list(range(after[0], LINES))
        assert 0 < after[0] <= before.numbers[-1] + 1


async def test_a_session_that_is_cut_off_is_waited_for_while_others_stay(served: Served, kernel: Kernel) -> None:
    """One of two tabs loses its connection in a printing cell, and finds each line when it is back."""
    session, other = Session(served, kernel), Session(served, kernel)
    async with other.connect() as stays:
        async with session.connect() as first:
            request = await session.run(first, PRINTING)
            watching, before = Reader(stays, request), Reader(first, request)
            await before.reached(20)
            first.transport.abort()
            await before.ended()
        await watching.reached(LINES // 2)
        async with session.connect() as second:
            after = await Reader(second, request).ended()
        assert after == list(range(after[0], LINES))
        assert 0 < after[0] <= before.numbers[-1] + 1
        await watching.reached(LINES - 1)
        assert watching.numbers == list(range(LINES))


def test_the_class_is_ours(served: Served) -> None:
    """This jupyter_server has all that ours rests upon, and nobody has configured another class."""
    from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

    assert websocket.missing(AsyncMappingKernelManager) == []


def test_a_class_that_somebody_has_configured_stays() -> None:
    """And so does that of a server whose kernels are a gateway's."""
    theirs = type("Theirs", (), {})
    app = SimpleNamespace(
        kernel_manager=None, web_app=SimpleNamespace(settings={"kernel_websocket_connection_class": theirs})
    )
    websocket.begin(app)
    assert app.web_app.settings == {"kernel_websocket_connection_class": theirs}
