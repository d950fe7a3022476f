"""A client that comes again to its kernel, with its session, finds all that it left, however its connection before ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from lab import Gateway, Node
from tests import reconnecting
from tests.integration.client import GatewayClient, Kernel, start_on
from tests.integration.kernelspecs import argv_of
from tests.reconnecting import LINES, PRINTING
from tests.sessions import Reader, Session
from tests.silencer import Silencer
from tests.until import PROCESS_SECONDS, until

pytestmark = [pytest.mark.timeout(120), pytest.mark.lab(nodes=1)]

EARLIER = """
import asyncio
from types import SimpleNamespace
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler as Handler

async def main():
    opened = SimpleNamespace(channels={"iopub": None}, session_key="opened")
    arriving = SimpleNamespace(channels={}, session_key="arriving")
    Handler._open_sessions.update(opened=opened, arriving=arriving)
    from eg_distributed.clients import sessions
    from eg_distributed.enterprise_gateway import reconnects

    reconnects.install()
    print(*sessions.serving, sessions.serving["opened"] is reconnects.connection_of(opened))

asyncio.run(main())
"""

OTHER_HANDLER = """
import logging
from traitlets import log
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler as Handler

log.get_logger().addHandler(logging.StreamHandler())
Handler.on_close = lambda self: None
before = dict(vars(Handler))
from eg_distributed.enterprise_gateway import reconnects

reconnects.install()
print(dict(vars(Handler)) == before)
"""


@pytest.fixture
async def kernel(client: GatewayClient, nodes: Sequence[Node]) -> Kernel:
    """A kernel on a node."""
    return await start_on(client, nodes[0])


@pytest.mark.parametrize("opened", [False, True])
async def test_a_session_that_connects_twice_gets_its_output(gateway: Gateway, kernel: Kernel, opened: bool) -> None:
    """As JupyterLab's server does: it drops a connection without a word, open or not yet, and opens another."""
    await runs_after_a_dropped_connection(Session(gateway, kernel), opened)


@pytest.mark.parametrize("opened", [False, True])
async def test_enterprise_gateways_own_kernels_answer_as_well(
    gateway: Gateway, client: GatewayClient, opened: bool
) -> None:
    """What holds for a kernel on a node holds for one that Enterprise Gateway starts beside itself."""
    spec = {"display_name": "local", "language": "python", "argv": argv_of(gateway, "python_distributed")}
    gateway.add_kernelspec("python_local", spec)
    await client.start_kernel()  # the gateway imports our process proxy with the first kernel of ours
    await runs_after_a_dropped_connection(Session(gateway, await client.start_kernel("python_local")), opened)


async def runs_after_a_dropped_connection(session: Session, opened: bool) -> None:
    """Assert that a cell runs over a connection that follows one that was dropped."""
    with contextlib.closing(await session.dropped(opened=opened)):
        async with session.connect() as connection:
            assert await Reader(connection, await session.run(connection, "print(1)")).ended() == [1]


@pytest.mark.parametrize("opened", [False, True])
async def test_a_dropped_connection_that_comes_late_takes_nothing(
    gateway: Gateway, kernel: Kernel, opened: bool
) -> None:
    """One that JupyterLab's server dropped may overtake the one after it, and answers pings: who says something is the client."""
    session = Session(gateway, kernel)
    connecting = asyncio.ensure_future(session.connect().__aenter__())
    if opened:
        await connecting
    async with session.connect() as dropped, await connecting as connection:
        for number in range(2):
            assert await Reader(connection, await session.run(connection, f"print({number})")).ended() == [number]
        await asyncio.wait_for(dropped.wait_closed(), PROCESS_SECONDS)
        assert await Reader(connection, await session.run(connection, "print(2)")).ended() == [2]
    assert (await kernel.model())["connections"] == 0


async def test_what_a_client_says_while_its_twin_opens_is_said(gateway: Gateway, kernel: Kernel) -> None:
    """A dropped connection that comes late takes nothing, whenever the client speaks: no line goes to it alone."""
    session = Session(gateway, kernel)
    for _ in range(3):
        async with session.connect() as connection:
            printing = Reader(connection, await session.run(connection, PRINTING))
            await printing.reached(5)  # there is always something to be confirmed
            async with session.connect() as dropped:
                # It prints nothing: the end of the first cell may come behind all of this one, which nobody would read then.
                await session.run(connection, f"said = {LINES}")
                assert await printing.ended() == list(range(LINES))
                assert await Reader(connection, await session.run(connection, "print(said)")).ended() == [LINES]
                await asyncio.wait_for(dropped.wait_closed(), PROCESS_SECONDS)


async def test_a_late_twin_that_is_cut_off_takes_nothing(gateway: Gateway, kernel: Kernel) -> None:
    """A dropped connection that comes late, and ends, was never the client's: that gets all lines, without a word of its own."""
    await reconnecting.a_twin_that_is_cut_off_takes_nothing(Session(gateway, kernel))


async def test_a_client_that_moves_to_another_connection_gets_each_line_once(gateway: Gateway, kernel: Kernel) -> None:
    """The connection before delivers until the next one opens, and that one goes on where it stopped."""
    await reconnecting.a_client_moves(Session(gateway, kernel))


async def test_a_client_that_closes_gets_each_line_once(gateway: Gateway, kernel: Kernel) -> None:
    """Who ends a connection has read what came over it: nothing of that comes again over the next one, nothing is left out."""
    session = Session(gateway, kernel)
    async with session.connect() as first:
        request = await session.run(first, PRINTING)
        before = Reader(first, request)
    numbers = await before.ended()
    for _ in range(10):  # the moment in which something is unconfirmed is short
        async with session.connect() as connection:
            reader = Reader(connection, request)
            await reader.reached(len(numbers) + 5)
        numbers += await reader.ended()
        assert numbers == list(range(len(numbers)))
    async with session.connect() as last:
        numbers += await Reader(last, request).ended()
    assert numbers == list(range(LINES))


async def test_a_client_that_answers_late_gets_each_line_once(gateway: Gateway, kernel: Kernel) -> None:
    """One that is far away, or on a busy machine, is given the time that its answers take before anything is sent again."""
    session = Session(gateway, kernel)
    async with Silencer(session.host, session.port, lag=0.5) as far, session.connect(far.port) as first:
        request = await session.run(first, PRINTING)
        before = Reader(first, request)
        await before.reached(100)
        async with session.connect() as second:
            after = await Reader(second, request).ended()
        assert await before.ended() + after == list(range(LINES))
        assert after


async def test_what_a_dead_connection_swallowed_is_sent_again(gateway: Gateway, kernel: Kernel) -> None:
    """A connection that is cut without a word, as by a laptop's sleep, takes nothing with it."""
    await reconnecting.what_was_swallowed_is_sent_again(Session(gateway, kernel))


async def test_a_session_that_is_cut_off_is_waited_for_while_others_stay(gateway: Gateway, kernel: Kernel) -> None:
    """One of two tabs loses its connection in a printing cell, and finds each line when it is back."""
    await reconnecting.a_session_is_waited_for(Session(gateway, kernel), Session(gateway, kernel))


async def test_connections_are_counted(gateway: Gateway, kernel: Kernel) -> None:
    """Those that were dropped, replaced or never open are not counted among a kernel's clients: culling goes by that number."""
    session = Session(gateway, kernel)

    async def connections() -> int:
        return int((await kernel.model())["connections"])

    async def are(number: int) -> bool:
        return await connections() == number

    with contextlib.closing(await session.dropped(opened=True)):
        (await session.dropped(opened=False)).close()
        async with session.connect() as connection:
            await Reader(connection, await session.run(connection, "print(1)")).ended()
            assert await are(1)
    await until("no connection is counted", lambda: are(0))


def test_connections_of_before_our_process_proxy_have_their_sessions(gateway: Gateway) -> None:
    """Those that were open when it was imported are the predecessors of what follows; those that are not yet open are not."""
    found = gateway.exec([gateway.python, "-c", EARLIER]).check()
    assert found.stdout.split() == ["opened", "True"]


def test_a_handler_that_we_do_not_know_is_left_alone(gateway: Gateway) -> None:
    """Where one method of the handler is another, none is replaced, and the log says which."""
    found = gateway.exec([gateway.python, "-c", OTHER_HANDLER]).check()
    assert "on_close differs" in found.stderr
    assert "jupyter_server 1.24.0" in found.stderr
    assert found.stdout.split() == ["True"]
