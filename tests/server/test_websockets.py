"""Clients of a jupyter_server that connect again: nothing is lost, nothing comes twice, whatever the connection before did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

from eg_distributed.clients import sessions
from eg_distributed.jupyter_server import websocket
from tests import reconnecting
from tests.reconnecting import LINES, PRINTING
from tests.sessions import CELL_SECONDS, Cell, Reader, Session, Tab, decoded
from tests.until import PROCESS_SECONDS, until

from .kernels import Kernel
from .served import Served
from .site import Site


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Served]:
    """A server for all tests of this module."""
    root = site.work / "websockets"
    root.mkdir()
    made = Served(site, root, EG_DISTRIBUTED_REQUEST_TIMEOUT="1", EG_DISTRIBUTED_KEEPALIVE_INTERVAL="1")
    yield made
    made.end()


@pytest.fixture(scope="module")
def unlimited(site: Site) -> Iterator[Served]:
    """A server without jupyter_server's own limits of how fast output may come, which are an option of its own class."""
    root = site.work / "unlimited"
    root.mkdir()
    made = Served(site, root, {"ZMQChannelsWebsocketConnection.limit_rate": "False"})
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


async def test_a_late_twin_that_is_cut_off_takes_nothing(served: Served, kernel: Kernel) -> None:
    """A dropped connection that comes late, and ends, was never the client's: that gets all lines, without a word of its own."""
    await reconnecting.a_twin_that_is_cut_off_takes_nothing(Session(served, kernel))


@pytest.mark.parametrize("speaks", [True, False])
async def test_the_first_of_three_twins_gets_each_line(served: Served, kernel: Kernel, speaks: bool) -> None:
    """A page that reconnects twice within a moment, whose dropped connections come last: nothing is lost, nothing comes twice."""
    await reconnecting.the_first_of_three_gets_each_line(Session(served, kernel), speaks=speaks)


async def test_a_client_that_moves_to_another_connection_gets_each_line_once(served: Served, kernel: Kernel) -> None:
    """The connection before delivers until the next one opens, and that one goes on where it stopped."""
    await reconnecting.a_client_moves(Session(served, kernel))


async def test_a_client_that_closes_gets_each_line_once(served: Served, kernel: Kernel) -> None:
    """Who ends a connection has read what came over it: nothing of that comes again over the next one, nothing is left out."""
    session = Session(served, kernel)
    async with session.connect() as first:
        request = await session.run(first, PRINTING)
        before = Reader(first, request)
        await before.reached(5)
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


@pytest.mark.parametrize("v1", [False, True])
async def test_what_a_dead_connection_swallowed_is_sent_again(served: Served, kernel: Kernel, v1: bool) -> None:
    """A connection that is cut without a word, as by a laptop's sleep, takes nothing with it."""
    await reconnecting.what_was_swallowed_is_sent_again(Session(served, kernel, v1=v1))


async def test_a_session_that_is_cut_off_is_waited_for_while_others_stay(served: Served, kernel: Kernel) -> None:
    """One of two tabs loses its connection in a printing cell, and finds each line when it is back."""
    await reconnecting.a_session_is_waited_for(Session(served, kernel), Session(served, kernel))


def test_the_class_is_ours(served: Served) -> None:
    """This jupyter_server has all that ours rests upon, and nobody has configured another class."""
    assert websocket.missing(AsyncMappingKernelManager) == []


def test_a_class_that_somebody_has_configured_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does that of a server whose kernels are a gateway's."""
    theirs = type("Theirs", (), {})
    app = SimpleNamespace(
        kernel_manager=None, web_app=SimpleNamespace(settings={"kernel_websocket_connection_class": theirs}), config={}
    )
    monkeypatch.setattr(sessions, "listed", sessions.listed)
    websocket.begin(app)
    assert app.web_app.settings == {"kernel_websocket_connection_class": theirs}


def test_a_jupyter_server_that_we_do_not_know_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where something is missing that ours rests upon its own class stays, and the log says what is missing."""
    theirs = ZMQChannelsWebsocketConnection
    settings: dict[str, Any] = {"kernel_websocket_connection_class": theirs}
    app = SimpleNamespace(
        kernel_manager=AsyncMappingKernelManager, web_app=SimpleNamespace(settings=settings), config={}
    )
    monkeypatch.setattr(sessions, "listed", sessions.listed)
    monkeypatch.setattr(websocket, "NEEDED_OF_KERNELS", ("get_buffer", "what_is_gone"))
    websocket.begin(app)
    assert settings == {"kernel_websocket_connection_class": theirs}
    assert "mapping kernel manager.what_is_gone is missing" in caplog.text


def big(lines: int, length: int, done: Path) -> str:
    """Return a cell that prints so many long lines, and makes a file when it has."""
    return f"""
import time
for number in range({lines}):
    print(number, "x" * {length}, flush=True)
    time.sleep(0.005)
open({str(done)!r}, "w").close()
"""


@pytest.fixture
def printing(unlimited: Served) -> Iterator[Kernel]:
    """A kernel that may print as much as it likes."""
    made = Kernel(unlimited, "remote")
    yield made
    made.end()


@pytest.mark.long
async def test_clients_that_take_nothing_fill_no_memory(unlimited: Served, printing: Kernel, tmp_path: Path) -> None:
    """Websockets that are never read cost the server a bounded share; one that is read beside them misses nothing."""
    server, clients, lines = psutil.Process(unlimited.process.pid), 40, 600  # 1500 MiB that these clients are to get
    tab = Tab(unlimited, printing)
    await tab.connect(unlimited)
    with contextlib.ExitStack() as opened:
        for _ in range(clients):
            opened.enter_context(contextlib.closing(await Session(unlimited, printing).dropped(opened=True)))
        before = most = server.memory_info().rss
        cell = await tab.run(big(lines, 64 * 1024, tmp_path / "done"))
        ended = asyncio.create_task(cell.ended())
        while not ended.done():
            most = max(most, server.memory_info().rss)
            await asyncio.wait({ended}, timeout=0.1)
        await ended
    assert cell.numbers == list(range(lines))
    await tab.runs()
    await tab.close()
    print(f"{before >> 20} MiB before, {most >> 20} at most")
    assert (most - before) >> 20 < 1000  # what is kept for all of them, as much again on its way, and some for each


async def test_a_client_that_stands_still_for_a_while_misses_nothing(
    unlimited: Served, printing: Kernel, tmp_path: Path
) -> None:
    """It reads on when the cell has printed all of it: thirty megabytes, each line once and in order, and the cell's end."""
    lines, done = 500, tmp_path / "done"
    session = Session(unlimited, printing)
    async with session.connect() as connection:
        request = await session.run(connection, big(lines, 64 * 1024, done))
        await until("the cell has printed", done.exists, CELL_SECONDS)
        cell = Cell()
        while not (cell.replies and cell.states[-1:] == ["idle"]):
            message = decoded(await asyncio.wait_for(connection.recv(), CELL_SECONDS))
            if message["parent_header"].get("msg_id") == request:
                cell.hear(message["msg_type"], message["content"])
    assert cell.numbers == list(range(lines))


DISPLAYING = """
import time
for number in range({messages}):
    display({{"text/plain": f"{{number}} " + "x" * 4000}}, raw=True)
    time.sleep(0.001)
open({done!r}, "w").close()
"""


@pytest.mark.long
async def test_a_page_that_stands_still_misses_nothing_of_a_local_kernel(unlimited: Served, tmp_path: Path) -> None:
    """Nothing of it waits on its way, where nobody would keep it: all of it comes, as over jupyter_server's own connections."""
    kernel, messages, done = Kernel(unlimited, "python3"), 8000, tmp_path / "done"
    try:
        session = Session(unlimited, kernel)
        async with session.connect() as connection:
            request = await session.run(
                connection,
                DISPLAYING.format(messages=messages, done=str(done)),
            )
            await until("the cell has printed", done.exists, CELL_SECONDS)
            numbers, states = [], [""]
            while states[-1] != "idle":
                message = decoded(await asyncio.wait_for(connection.recv(), CELL_SECONDS))
                if message["parent_header"].get("msg_id") == request:
                    states.append(message["content"].get("execution_state", states[-1]))
                    if message["msg_type"] == "display_data":
                        numbers.append(int(message["content"]["data"]["text/plain"].split()[0]))
        assert numbers == list(range(messages))
    finally:
        kernel.end()


@pytest.mark.long
async def test_a_flood_is_one_however_late_it_comes(served: Served, kernel: Kernel) -> None:
    """jupyter_server's limits count for what a kernel prints faster than that, though it waits on its way."""
    tab = Tab(served, kernel)
    await tab.connect(served)
    cell = await tab.run("import time\nend = time.time() + 5\nwhile time.time() < end: print('1' * 2000)")
    await cell.ended()
    assert "rate exceeded" in tab.told
    await tab.runs()
    await tab.close()


async def test_a_large_message_is_taken(served: Served, kernel: Kernel) -> None:
    """As a file in an upload widget is; tornado alone would close the connection at 10 MiB without a word."""
    session = Session(served, kernel)
    async with session.connect() as connection:
        reader = Reader(connection, await session.run(connection, f"print(len('{'x' * (12 << 20)}'))"))
        assert await reader.ended() == [12 << 20]


async def test_what_a_cut_ssh_connection_held_back_comes_whole(site: Site, served: Served) -> None:
    """Thousands of lines that come at once, when the host is back, are not taken for a flood and dropped."""
    kernel = Kernel(served, site.kernelspec("cut", config={"remote_hosts": "node2"}))
    try:
        tab = Tab(served, kernel)
        await tab.connect(served)
        lines = 8000
        # At half of what jupyter_server takes for a flood: on a machine that is idle a pause of a millisecond is near it.
        cell = await tab.run(
            f"import time\nfor number in range({lines}):\n    print(number, flush=True)\n    time.sleep(0.002)"
        )
        await cell.reached(100)
        site.freeze("node2")
        try:
            await until("nothing comes any more", lambda: kernel.model()["distributed"]["state"] == "unknown")
            await until("much was printed meanwhile", lambda: "since" in kernel.model()["distributed"])
        finally:
            site.thaw("node2")
        await cell.ended()
        assert cell.numbers == list(range(lines))
        assert "rate exceeded" not in tab.told
        await tab.close()
    finally:
        kernel.end()


LARGE = """
import pathlib, time
while not pathlib.Path({go!r}).exists():
    time.sleep(0.01)
for number in range({messages}):
    display({{"text/plain": f"{{number}} " + "x" * 1_000_000}}, raw=True)
open({done!r}, "w").close()
"""


async def came_after_sleep(served: Served, folder: Path) -> list[str]:
    """Return what a page gets of a local kernel that printed 24 MB while it was gone."""
    folder.mkdir()
    go, done = folder / "go", folder / "done"
    kernel = Kernel(served, "python3")
    session = Session(served, kernel)
    try:
        async with session.connect() as connection:
            request = await session.run(connection, LARGE.format(go=str(go), messages=24, done=str(done)))
            while (decoded(await asyncio.wait_for(connection.recv(), PROCESS_SECONDS)))["msg_type"] != "execute_input":
                pass
        await until("the page is gone", lambda: kernel.model()["connections"] == 0)
        go.touch()
        await until("the cell has printed", done.exists, CELL_SECONDS)
        came: list[str] = []
        async with session.connect() as connection:
            while {"idle", "execute_reply"} - set(came):
                message = decoded(await asyncio.wait_for(connection.recv(), CELL_SECONDS))
                content = message["content"]
                if message["parent_header"].get("msg_id") == request:
                    data = content.get("data", {}).get("text/plain", "").split(" ")[0]
                    came.append(data or content.get("execution_state") or content.get("text") or message["msg_type"])
        return came
    finally:
        kernel.end()


async def test_a_local_kernels_page_gets_what_jupyter_servers_own_would_give_it(
    site: Site, served: Served, tmp_path: Path
) -> None:
    """What a local kernel prints while its page is away has no bound: that is for kernels whose nodes keep output."""
    ours = await came_after_sleep(served, tmp_path / "ours")
    stock = Served(site, tmp_path, {"ServerApp.jpserver_extensions": "{'eg_distributed.jupyter_server': False}"})
    try:
        theirs = await came_after_sleep(stock, tmp_path / "theirs")
    finally:
        stock.end()
    assert "eg_distributed" not in stock.log.read_text()
    assert sorted(ours) == sorted(theirs)  # what comes of two channels has no order
    assert [each for each in ours if each.isdigit()] == [str(number) for number in range(24)]
