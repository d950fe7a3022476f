"""What kernels print while their server is away is shown when it is back, to the pages that were open."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sessions import CELL_SECONDS, Cell, Tab
from tests.until import until

from .kernels import Kernel
from .served import Served
from .site import Site

Start = Callable[[], Served]
LINES = 3000
MISSING = "missing here"
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
while not os.path.exists({go!r}): time.sleep(0.05)
for number in range(1, {lines}):
    print(number, flush=True)
    if number % 100 == 0: time.sleep(0.02)
open({done!r}, "w").close()
"""


@pytest.fixture
def start(site: Site, tmp_path: Path) -> Iterator[Start]:
    """Start servers that are one after the other the same; each ends with the test, with its kernels."""
    root = site.work / tmp_path.name
    root.mkdir()
    made: list[Served] = []

    def start() -> Served:
        made.append(Served(site, root))
        return made[-1]

    yield start
    for served in made:
        served.end_with_kernels()


async def killed_and_started(served: Served, start: Start, *tabs: Tab) -> Served:
    """Kill the server, and return the one that is started in its place."""
    await asyncio.to_thread(served.end, signal.SIGKILL)
    for tab in tabs:
        await tab.lost_connection()
    return await asyncio.to_thread(start)


async def test_a_cell_over_a_killed_server_shows_all_that_it_printed(start: Start) -> None:
    """Over SIGKILL and a start each line comes once and in order, then the cell's reply, and the next cell works."""
    served = start()
    kernel = Kernel(served, "remote")
    tab = Tab(served, kernel)
    await tab.connect(served)
    cell = await tab.run(PRINTING)
    await cell.reached(500)
    again = await killed_and_started(served, start, tab)
    before = len(cell.numbers)
    await tab.connect(again)
    await cell.ended()
    after = cell.numbers[before:]
    assert after == list(range(after[0], LINES))
    # What came in the last moment before SIGKILL could not be confirmed any more, and so comes again.
    assert before - 500 < after[0] <= before
    assert [reply["status"] for reply in cell.replies] == ["ok"]
    assert MISSING not in tab.told
    await tab.runs()
    assert kernel.of(again).model()["execution_state"] == "idle"
    await tab.close()


@pytest.mark.long
async def test_a_cell_that_ends_while_the_server_is_away_is_whole(start: Start, tmp_path: Path) -> None:
    """Output, reply and idle come to the client that sent the cell; another one of before gets the output, a new one nothing."""
    served = start()
    kernel = Kernel(served, "remote")
    tab, other = Tab(served, kernel), Tab(served, kernel)
    await tab.connect(served)
    await other.connect(served)
    await other.runs()
    go, done = tmp_path / "go", tmp_path / "done"
    cell = await tab.run(WAITING.format(go=str(go), done=str(done), lines=LINES))
    await cell.reached(0)
    await asyncio.to_thread(served.end, signal.SIGKILL)
    for each in (tab, other):
        await each.lost_connection()
    go.touch()
    await until("the cell has ended", done.exists, CELL_SECONDS)
    again = await asyncio.to_thread(start)
    number = next(iter(tab._cells))
    new = Tab(again, kernel)
    seen = new._cells[number] = Cell()
    await new.connect(again)
    await new.runs()
    await tab.connect(again)
    await cell.ended()
    assert [line for line in cell.numbers if line] == list(range(1, LINES))
    assert len(cell.replies) == 1
    watched = other._cells[number] = Cell()
    await other.connect(again)
    await watched.reached(LINES - 1)
    assert [line for line in watched.numbers if line] == list(range(1, LINES))
    assert seen.numbers == []
    for each in (tab, other, new):
        assert MISSING not in each.told
        await each.close()
