"""What a kernel says while no gateway's process is there, or no agent, is given to its clients afterwards, or told to be lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

import pytest

from lab import Gateway, Node
from tests.integration.client import GatewayClient, Kernel, start_on
from tests.integration.conftest import MakeGateway
from tests.integration.looks import agents
from tests.integration.test_persistence import PERSISTENCE, killed_and_started
from tests.sessions import CELL_SECONDS, Cell, Tab
from tests.until import MACHINE_SECONDS, until, until_in_thread

pytestmark = [pytest.mark.timeout(240), pytest.mark.lab(nodes=1)]

LINES = 10_000
MISSING = "missing here"
ClientOf = Callable[[Gateway], GatewayClient]

PRINTING = f"""
import time
for number in range({LINES}):
    print(number, flush=True)
    if number % 100 == 99:
        time.sleep(0.1)
"""
WAITING = """
import os, time
print(0, flush=True)
while not os.path.exists("/tmp/go-{name}"): time.sleep(0.05)
for number in range(1, {lines}):
    print(number, "{filling}", flush=True)
    if number % 100 == 0: time.sleep(0.02)
open("/tmp/done-{name}", "w").close()
"""


async def printed_while_away(gateway: Gateway, node: Node, kernel: Kernel, tab: Tab, lines: int, filling: int) -> Cell:
    """Return a cell of *tab* that began before *gateway* was killed, and ended before it was started again."""
    cell = await tab.run(WAITING.format(name=kernel.id, lines=lines, filling="x" * filling))
    await cell.reached(0)
    await asyncio.to_thread(gateway.kill)
    await tab.lost_connection()
    node.exec(["touch", f"/tmp/go-{kernel.id}"]).check()
    done = ["test", "-e", f"/tmp/done-{kernel.id}"]
    await until_in_thread("the cell has ended", lambda: node.exec(done).exit_code == 0, CELL_SECONDS)
    node.exec(["rm", f"/tmp/go-{kernel.id}", f"/tmp/done-{kernel.id}"]).check()
    await asyncio.to_thread(gateway.start)
    return cell


async def test_a_cell_over_a_killed_gateway_shows_all_that_it_printed(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Sequence[Node]
) -> None:
    """Ten thousand lines over SIGKILL and a start: each once and in order, then the cell's reply, and the next cell works."""
    gateway = extra_gateway("keeping", options=PERSISTENCE)
    kernel = await start_on(GatewayClient(gateway.url), nodes[0])
    tab = Tab(gateway, kernel)
    await tab.connect(gateway)
    cell = await tab.run(PRINTING)
    await cell.reached(1000)
    await killed_and_started(gateway)
    await tab.lost_connection()
    kernel_again = client_of(gateway).attach(kernel.id)
    before = len(cell.numbers)
    await tab.connect(gateway)
    await cell.reached(before + 1)

    async def is_busy() -> bool:
        return bool((await kernel_again.model())["execution_state"] == "busy")

    await until("the kernel is seen to run a cell", is_busy)
    await cell.ended()
    after = cell.numbers[before:]
    assert after == list(range(after[0], LINES))
    # What came in the last moment before SIGKILL could not be confirmed any more, and so comes again.
    assert before - 2000 < after[0] <= before
    assert [reply["status"] for reply in cell.replies] == ["ok"]
    assert MISSING not in tab.told
    await tab.runs()
    await tab.close()


async def test_a_cell_that_ends_while_the_gateway_is_away_is_whole(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Sequence[Node]
) -> None:
    """Output, reply and idle come to the client that sent the cell; another one of before gets the output, a new one nothing."""
    gateway = extra_gateway("keeping", options=PERSISTENCE)
    kernel = await start_on(GatewayClient(gateway.url), nodes[0])
    tab, other = Tab(gateway, kernel), Tab(gateway, kernel)
    await tab.connect(gateway)
    await other.connect(gateway)
    await other.runs()
    cell = await printed_while_away(gateway, nodes[0], kernel, tab, 3000, 0)
    new = Tab(gateway, kernel)
    seen = new._cells[next(iter(tab._cells))] = Cell()
    await new.connect(gateway)
    await new.runs()
    await tab.connect(gateway)
    await cell.ended()
    # The line before the end may come again, where it could not be confirmed any more.
    assert [number for number in cell.numbers if number] == list(range(1, 3000))
    assert len(cell.replies) == 1
    watched = other._cells[next(iter(tab._cells))] = Cell()
    await other.connect(gateway)
    await watched.reached(2999)
    assert [number for number in watched.numbers if number] == list(range(1, 3000))
    assert watched.replies == []
    for each in (tab, other):
        await each.runs()
        assert MISSING not in each.told
    assert (seen.numbers, seen.replies, len(cell.replies)) == ([], [], 1)

    await killed_and_started(gateway)  # and once more, with nothing to be kept
    client_of(gateway).attach(kernel.id)
    await tab.connect(gateway)
    await tab.runs()
    assert cell.numbers[-1] == 2999
    assert len(cell.numbers) <= 3001
    assert len(cell.replies) == 1
    assert MISSING not in tab.told
    for each in (new, tab, other):
        await each.close()


async def test_a_kernel_is_seen_as_what_it_is_after_a_start(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Sequence[Node]
) -> None:
    """One that runs a cell and says nothing is busy for who asks, and idle once the cell has ended; then cells run as ever."""
    gateway, node = extra_gateway("keeping", options=PERSISTENCE), nodes[0]
    kernel = await start_on(GatewayClient(gateway.url), node)
    tab = Tab(gateway, kernel)
    await tab.connect(gateway)
    cell = await tab.run(WAITING.format(name=kernel.id, lines=100, filling=""))
    await cell.reached(0)
    await killed_and_started(gateway)
    await tab.lost_connection()
    kernel_again = GatewayClient(gateway.url).attach(kernel.id)  # ended by the one after the next start
    await tab.connect(gateway)

    async def is_in(state: str) -> bool:
        return bool((await kernel_again.model())["execution_state"] == state)

    await until("the kernel is seen to run a cell", lambda: is_in("busy"))
    node.exec(["touch", f"/tmp/go-{kernel.id}"]).check()
    await cell.ended()
    await until("the kernel is seen to be idle", lambda: is_in("idle"))
    node.exec(["rm", f"/tmp/go-{kernel.id}", f"/tmp/done-{kernel.id}"]).check()
    await killed_and_started(gateway)
    await tab.lost_connection()
    kernel_again = client_of(gateway).attach(kernel.id)
    await tab.connect(gateway)
    await until("the kernel is seen to be idle again", lambda: is_in("idle"))
    await tab.runs()
    await tab.close()


async def test_output_past_the_limit_is_told_to_be_missing(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Sequence[Node]
) -> None:
    """More than the node may keep: the last of it comes, and how many messages are missing stands in the notebook before it."""
    limit = {"EG_DISTRIBUTED_KEPT_OUTPUT_LIMIT": str(1024 * 1024)}
    gateway = extra_gateway("limited", options=PERSISTENCE, env=limit)
    kernel = await start_on(GatewayClient(gateway.url), nodes[0])
    tab = Tab(gateway, kernel)
    await tab.connect(gateway)
    cell = await printed_while_away(gateway, nodes[0], kernel, tab, 5000, 1000)
    client_of(gateway).attach(kernel.id)
    await tab.connect(gateway)
    await cell.ended()
    numbers = [number for number in cell.numbers if number]  # the line before the end may come again
    first = numbers[0]
    assert numbers == list(range(first, 5000))
    assert 100 < 5000 - first < 1500
    missing = re.findall(r"(\d+) messages are missing here", tab.told)
    assert len(missing) == 1
    # Some messages are no lines. A kernel drops some itself where its listeners are not given the processor.
    assert 0 < int(missing[0]) < first + 200
    await tab.runs()
    await tab.close()


async def test_an_agent_that_is_killed_takes_what_was_told_along(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Sequence[Node]
) -> None:
    """SIGKILL under load: the kernel goes on, its output comes again by the next agent, and the notebook says what is missing."""
    gateway, node = extra_gateway("keeping", options=PERSISTENCE), nodes[0]
    kernel = await start_on(client_of(gateway), node)
    tab = Tab(gateway, kernel)
    await tab.connect(gateway)
    cell = await tab.run(PRINTING)
    await cell.reached(1000)
    node.exec(["kill", "-KILL", *map(str, agents(node))]).check()
    killed = asyncio.get_running_loop().time()
    last = cell.numbers[-1]
    await cell.reached(last + 500)
    assert asyncio.get_running_loop().time() - killed < 10
    await cell.ended()
    assert cell.numbers == sorted(set(cell.numbers))
    assert cell.numbers[-1] == LINES - 1
    assert len(cell.replies) == 1
    assert re.search(
        r"Output may be missing here: what the kernel printed in the \d+\.\d s without a connection", tab.told
    )
    await tab.runs()
    await tab.close()


async def test_a_tab_that_is_away_hears_of_a_killed_agent_when_it_is_back(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Sequence[Node]
) -> None:
    """It had no connection in the moment in which the loss was told; its lines have a gap, and the notebook says why."""
    gateway, node = extra_gateway("keeping", options=PERSISTENCE), nodes[0]
    kernel = await start_on(client_of(gateway), node)
    tab, other = Tab(gateway, kernel), Tab(gateway, kernel)
    await tab.connect(gateway)
    await other.connect(gateway)
    await other.runs()
    cell = await tab.run(PRINTING)
    await cell.reached(1000)
    await tab.cut()
    node.exec(["kill", "-KILL", *map(str, agents(node))]).check()
    await until("the tab that is there is told", lambda: "Output may be missing here" in other.told, MACHINE_SECONDS)
    assert "missing" not in tab.told
    await tab.connect(gateway)
    await cell.ended()
    assert cell.numbers[-1] == LINES - 1
    assert len(re.findall("Output may be missing here: what the kernel printed in the", tab.told)) == 1
    for each in (tab, other):
        await each.close()


async def test_an_agent_that_is_killed_while_the_gateway_is_away_is_told(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Sequence[Node]
) -> None:
    """What the kernel printed while neither was there is gone: the notebook says for how long at most, and cells run again."""
    gateway, node = extra_gateway("keeping", options=PERSISTENCE), nodes[0]
    kernel = await start_on(GatewayClient(gateway.url), node)
    tab = Tab(gateway, kernel)
    await tab.connect(gateway)
    cell = await tab.run(WAITING.format(name=kernel.id, lines=100, filling=""))
    await cell.reached(0)
    await asyncio.to_thread(gateway.kill)
    await tab.lost_connection()
    spool = ["sh", "-c", "find / -xdev -type d -path '*eg-distributed*/output-*' 2>/dev/null | grep -q ."]
    await until_in_thread("the agent listens", lambda: node.exec(spool).exit_code == 0)
    node.exec(["kill", "-KILL", *map(str, agents(node))]).check()
    await until_in_thread("no agent is there", lambda: not agents(node))
    node.exec(["touch", f"/tmp/go-{kernel.id}"]).check()
    done = ["test", "-e", f"/tmp/done-{kernel.id}"]
    await until_in_thread("the cell has ended", lambda: node.exec(done).exit_code == 0, CELL_SECONDS)
    node.exec(["rm", f"/tmp/go-{kernel.id}", f"/tmp/done-{kernel.id}"]).check()
    await asyncio.to_thread(gateway.start)
    client_of(gateway).attach(kernel.id)
    await tab.connect(gateway)
    await tab.runs()
    told = re.findall(r"for up to (\d+\.\d) s neither gateway nor agent was there", tab.told)
    assert len(told) == 1
    assert 0 < float(told[0]) < CELL_SECONDS
    assert [number for number in cell.numbers if number] == []
    await tab.close()
