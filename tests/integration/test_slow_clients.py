"""Clients that take nothing of what a kernel prints: what that costs the gateway, and those who do."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence

import pytest

from lab import Node
from tests.integration.client import GatewayClient, start_on
from tests.integration.conftest import MakeGateway
from tests.integration.looks import gateway_memory
from tests.sessions import CELL_SECONDS, Cell, Session, Tab
from tests.until import until_in_thread

pytestmark = [pytest.mark.timeout(240), pytest.mark.lab(nodes=1)]

CLIENTS, LINES, LINE = 40, 600, 64 * 1024
MORE_MEMORY = 800
"""MiB that the gateway may have more, of the gigabyte and a half that these clients are to get."""
PRINTING = f"""
import time
for number in range({LINES}):
    print(number, "x" * {LINE}, flush=True)
    time.sleep(0.02)
"""


async def test_clients_that_take_nothing_fill_no_memory(extra_gateway: MakeGateway, nodes: Sequence[Node]) -> None:
    """Forty websockets that are never read cost the gateway a bounded share; one that is read beside them misses nothing."""
    gateway = extra_gateway("slow")
    async with GatewayClient(gateway.url) as client:
        kernel = await start_on(client, nodes[0])
        tab = Tab(gateway, kernel)
        await tab.connect(gateway)
        with contextlib.ExitStack() as opened:
            for _ in range(CLIENTS):
                opened.enter_context(contextlib.closing(await Session(gateway, kernel).dropped(opened=True)))
            before = most = gateway_memory(gateway)
            cell = await tab.run(PRINTING)
            ended = asyncio.create_task(cell.ended())
            while not ended.done():
                most = max(most, await asyncio.to_thread(gateway_memory, gateway))
                await asyncio.wait({ended}, timeout=0.2)
            await ended
        assert cell.numbers == list(range(LINES))
        await tab.runs()
        await tab.close()
    print(f"{before:.0f} MiB before, {most:.0f} at most")
    assert most - before < MORE_MEMORY


async def test_a_client_that_stands_still_for_a_while_misses_nothing(
    extra_gateway: MakeGateway, nodes: Sequence[Node]
) -> None:
    """It reads on when the cell has printed all of it: forty megabytes, each line once and in order, and the cell's end."""
    gateway, node = extra_gateway("slow"), nodes[0]
    async with GatewayClient(gateway.url) as client:
        kernel = await start_on(client, node)
        session = Session(gateway, kernel)
        async with session.connect() as connection:
            request = await session.run(connection, f"{PRINTING}\nopen('/tmp/printed', 'w').close()")
            printed = ["rm", "/tmp/printed"]
            await until_in_thread(
                "the cell has printed", lambda: node.exec(printed).exit_code == 0, CELL_SECONDS, pause=0.5
            )
            cell = Cell()

            async def read() -> None:
                while not (cell.replies and cell.states[-1:] == ["idle"]):
                    message = json.loads(await connection.recv())
                    if message["parent_header"].get("msg_id") == request:
                        cell.hear(message["msg_type"], message["content"])

            await asyncio.wait_for(read(), CELL_SECONDS)
        assert cell.numbers == list(range(LINES))
