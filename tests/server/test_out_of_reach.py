"""What people hear of a kernel whose host does not answer: in the notebook, from the server, and when they restart it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.sessions import Session, decoded
from tests.until import until

from .kernels import Kernel
from .served import Served
from .site import Site

SLOW = 4
"""Seconds for which a kernel is asked who it is."""
IDLE = 6
"""Seconds after which a kernel is culled."""
PRINTING = """
import time
print("on", flush=True)
for number in range(80): time.sleep(0.1)
print("whole")
"""


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Served]:
    """A server that takes a host for silent soon, and soon culls what is idle and has no client."""
    site.kernelspec("lone", config={"remote_hosts": "node1"})
    root = site.work / "silence"
    root.mkdir()
    quick = {"EG_DISTRIBUTED_REQUEST_TIMEOUT": "1", "EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "1"}
    culling = {"MappingKernelManager.cull_idle_timeout": str(IDLE), "MappingKernelManager.cull_interval": "1"}
    culling["MappingKernelManager.kernel_info_timeout"] = str(SLOW)
    made = Served(site, root, culling, **quick)
    yield made
    made.end()


@pytest.fixture
async def kernel(site: Site, served: Served) -> AsyncIterator[Kernel]:
    """A kernel on node1, which answers again in the end."""
    made = Kernel(served, "lone")
    yield made
    site.thaw("node1")
    if made.is_listed:
        made.end()


class Page:
    """Hears all that comes over a connection, as a page does."""

    def __init__(self, connection: ClientConnection) -> None:
        self.heard: list[dict[str, Any]] = []
        self.closed = False
        self._hearing = asyncio.create_task(self._hear(connection))

    async def _hear(self, connection: ClientConnection) -> None:
        try:
            while True:
                self.heard.append(decoded(await connection.recv()))
        except ConnectionClosed:
            self.closed = True

    def shown(self, kind: str, cell: str) -> list[str]:
        """Return the texts that came as *kind* in the output of *cell*."""
        mine = [each for each in self.heard if each["msg_type"] == kind and each["parent_header"].get("msg_id") == cell]
        return [each["content"]["data"]["text/plain"] for each in mine]

    def printed(self, cell: str) -> str:
        """Return what *cell* has printed."""
        return "".join(
            each["content"]["text"]
            for each in self.heard
            if each["msg_type"] == "stream" and each["parent_header"].get("msg_id") == cell
        )

    def states(self) -> list[str]:
        """Return all that the kernel was said to be."""
        return [each["content"]["execution_state"] for each in self.heard if each["msg_type"] == "status"]

    async def hears(self, kind: str, cell: str) -> str:
        """Wait for the first text of *kind* in the output of *cell*."""
        return (await until(f"{kind} in the cell", lambda: self.shown(kind, cell)))[0]

    async def prints(self, cell: str, text: str) -> None:
        """Wait until *cell* has printed *text*."""
        await until(f"the cell prints {text}", lambda: text in self.printed(cell))


@pytest.mark.parametrize("v1", [False, True])
async def test_a_cell_says_that_its_host_is_silent_and_that_it_is_back(
    site: Site, served: Served, kernel: Kernel, v1: bool
) -> None:
    """Below the cell that runs and the one that waits; in place of that, for how long it was. The server's model says it."""
    session = Session(served, kernel, v1=v1)
    async with session.connect() as connection:
        page = Page(connection)
        running = await session.run(connection, PRINTING)
        await page.prints(running, "on")
        assert kernel.model()["distributed"] == {"host": "node1", "state": "alive"}
        site.freeze("node1")
        assert "node1 has not answered since" in await page.hears("display_data", running)
        waiting = await session.run(connection, "print('later')")
        assert "This cell runs once the host is back." in await page.hears("display_data", waiting)
        model = kernel.model()["distributed"]
        assert (model["host"], model["state"]) == ("node1", "unknown")
        assert "since" in model
        refused = await asyncio.to_thread(kernel.act, "interrupt")
        assert refused.status_code == 503, refused.text
        assert "the interrupt was not sent" in refused.json()["message"]
        site.thaw("node1")
        for cell in (running, waiting):
            assert "It is back, with your kernel." in await page.hears("update_display_data", cell)
        await page.prints(running, "whole")
        await page.prints(waiting, "later")
        assert page.printed(running).split() == ["on", "whole"]  # nothing of the interrupt came


async def test_a_kernel_that_cannot_be_heard_is_not_culled(site: Site, kernel: Kernel) -> None:
    """Nobody knows whether it is idle, for as long as its host is silent."""
    site.freeze("node1")
    since = datetime.fromisoformat(
        await until("its host is silent", lambda: kernel.model()["distributed"].get("since"))
    )
    patience = timedelta(seconds=IDLE + 3)
    await until("it would have been culled", lambda: datetime.now(timezone.utc) - since > patience, pause=0.5)
    assert kernel.is_listed


async def test_a_restart_that_cannot_be_done_says_why(site: Site, served: Served, kernel: Kernel) -> None:
    """With host, cause and remedy; its clients are to connect anew, which ends JupyterLab's "restarting", and lose nothing."""
    session = Session(served, kernel)
    async with session.connect() as connection:
        page = Page(connection)
        cell = await session.run(connection, f"x = 42\n{PRINTING}")
        await page.prints(cell, "on")
        site.freeze("node1")
        await page.hears("display_data", cell)
        refused = await asyncio.to_thread(kernel.act, "restart")
        assert refused.status_code == 503, refused.text
        assert refused.json()["message"].startswith("Host node1: It has not answered since")
        assert "the restart was not begun; the kernel is kept" in refused.json()["message"]
        await until("the client is to connect again", lambda: page.closed)
    async with session.connect() as connection:
        page = Page(connection)
        await until("it is told what the kernel does", page.states)
        assert page.states()[0] == "busy"
        site.thaw("node1")
        await page.prints(cell, "whole")
        await page.prints(await session.run(connection, "print(x)"), "42")


@pytest.mark.parametrize("stays", [False, True])
async def test_a_kernel_that_answers_late_holds_up_no_later_page(
    site: Site, served: Served, kernel: Kernel, stays: bool
) -> None:
    """The first page gives up the wait for its kernel's first answer, and ends or not; the next one does not wait for as long."""
    site.freeze("node1")
    first = await Session(served, kernel).connect()
    if not stays:
        await first.close()
    site.thaw("node1")
    await until("its host is back", lambda: "since" not in kernel.model().get("distributed", {"since": ""}))
    session = Session(served, kernel)
    if stays:
        page = Page(first)
        await page.prints(await Session(served, kernel).run(first, "print('on')"), "on")
    begun = time.monotonic()
    async with session.connect() as connection:
        assert time.monotonic() - begun < SLOW / 2
        page = Page(connection)
        await page.prints(await session.run(connection, "print('on')"), "on")
    await first.close()


async def test_a_restart_of_no_kernel_is_refused_as_ever(served: Served) -> None:
    """As jupyter_server refuses all else that is asked of a kernel that does not exist."""
    answer = served.rest.post("/api/kernels/00000000-0000-0000-0000-000000000000/restart")
    assert answer.status_code == 404


async def test_a_restart_that_ended_the_kernel_and_could_not_start_it(
    site: Site, served: Served, tmp_path: Path
) -> None:
    """Its page stays connected, and hears of the tries that follow; the one that starts it is the last."""
    works = tmp_path / "works"
    works.touch()
    code = (
        f"import os, sys; os.path.exists({str(works)!r}) or sys.exit('broken'); "
        "os.execv(sys.executable, [sys.executable, '-m', 'ipykernel_launcher', '-f', sys.argv[1]])"
    )
    name = site.kernelspec(
        "breaks", [sys.executable, "-c", code, "{connection_file}"], config={"remote_hosts": "node3"}
    )
    kernel = Kernel(served, name)
    async with Session(served, kernel).connect() as connection:
        session, page = Session(served, kernel), Page(connection)
        await page.prints(await session.run(connection, "print('on')"), "on")
        works.unlink()
        failed = await asyncio.to_thread(kernel.act, "restart")
        assert failed.status_code == 500
        assert "broken" in failed.json()["message"]
        await until("it is started again", lambda: "restarting" in page.states())
        works.touch()
        await answers(session, connection, page)
        assert not page.closed
        assert kernel.model()["execution_state"] != "dead"
    kernel.end()


async def answers(session: Session, connection: ClientConnection, page: Page) -> None:
    """Wait until a cell is answered: until it is there again, a kernel drops what it is sent."""
    sent: list[str] = []

    async def is_there() -> bool:
        sent.append(await session.run(connection, "print('again')"))
        return any("again" in page.printed(each) for each in sent)

    await until("it answers again", is_there, pause=0.5)


async def test_how_a_kernel_ended_is_said_in_its_notebook(served: Served, kernel: Kernel, tmp_path: Path) -> None:
    """In the output of the cell that ended it, before the page is told that it is started again."""
    session, go = Session(served, kernel), tmp_path / "go"
    async with session.connect() as connection:
        page = Page(connection)
        ends = f"print('on', flush=True)\nimport os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)\nos._exit(3)"
        cell = await session.run(connection, ends)
        await page.prints(cell, "on")  # of a cell that nobody has heard of nobody can be told
        go.touch()
        await page.prints(cell, "The kernel exited with code 3")
        await until("it is said to restart", lambda: "restarting" in page.states())
        await answers(session, connection, page)
        assert page.printed(cell).count("exited with code 3") == 1
