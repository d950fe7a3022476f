"""A notebook's tab: one session with one kernel, which comes back whenever its connection ends, and writes down what it sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from tests.chaos.history import History
from tests.chaos.site import Site

OPEN_SECONDS = 30.0
"""For the opening of a connection, on a machine that is busy with many things."""
AGAIN = 0.3
"""Seconds between two tries to connect."""
READY_SECONDS = 90.0
"""How long a cell waits for a connection to be sent over."""
_ASK_AGAIN = 1.0
_GONE = 404
_REFUSALS = 10
"""How often a user is told that there is no such kernel before they believe it; a try takes a second."""


class Tab:
    """One user's view of the kernel *slot*, whose id is *kernel_id*."""

    def __init__(self, site: Site, history: History, slot: str, kernel_id: str) -> None:
        self._site = site
        self._history = history
        self.slot = slot
        self._session = uuid.uuid4().hex
        self._path = f"/api/kernels/{kernel_id}/channels?session_id={self._session}"
        self._cells: dict[str, str] = {}  # names by the ids of their requests
        self._rest: dict[str, str] = {}  # of each cell, a line that has not ended
        self._replies: dict[str, asyncio.Event] = {}
        self._questions: dict[str, set[str]] = {}  # kernel_info requests, and what came of each
        self._answered = asyncio.Event()
        self._connection: ClientConnection | None = None
        self._ready = asyncio.Event()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._holds = 0
        self._closed = False
        self._refused = 0  # the status with which the last try was refused
        self._refusals = 0  # how many were refused with 404
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End the connection for good. Raises what made an end of the tab before."""
        self._closed = True
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()

    async def away(self, seconds: float) -> None:
        """Be closed for so long, as on a laptop that sleeps."""
        self._wanted.clear()
        try:
            if self._connection is not None:
                await self._connection.close()
            await asyncio.sleep(seconds)
        finally:
            self._wanted.set()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Send no cell meanwhile; as JupyterLab while it restarts a kernel."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    # -- the connection --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            await self._site.up.wait()
            try:
                await self._connected()
            except InvalidStatus as error:
                if self._refused != error.response.status_code:
                    self._refused = error.response.status_code
                    self._history.add("seen", "refused", kernel=self.slot, status=self._refused)
                self._refusals += self._refused == _GONE
                await asyncio.sleep(1)
            except (WebSocketException, OSError, asyncio.TimeoutError):
                await asyncio.sleep(AGAIN)

    async def _connected(self) -> None:
        address = urlsplit(self._site.url)
        async with connect(
            f"ws://{address.netloc}{self._path}",
            open_timeout=OPEN_SECONDS,
            close_timeout=5,
            max_size=None,
            ping_interval=None,
            proxy=None,
        ) as connection:
            self._history.add("seen", "opened", kernel=self.slot)
            self._rest.clear()
            self._connection, self._refused, self._refusals = connection, 0, 0
            self._ready.set()
            try:
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        self._hear(json.loads(await connection.recv(decode=True)))
            finally:
                self._connection = None
                self._ready.clear()
                self._history.add("seen", "closed", kernel=self.slot)

    async def _send(self, kind: str, content: dict[str, Any], request: str, seconds: float = READY_SECONDS) -> None:
        """Send a request. Raises ConnectionClosed, or TimeoutError when there is no connection in time."""
        try:
            await asyncio.wait_for(self._ready.wait(), seconds)
        except asyncio.TimeoutError:  # of its own kind on Python 3.10
            raise TimeoutError(f"no connection within {seconds:g} s") from None
        connection = self._connection
        if connection is None:
            raise TimeoutError("the connection has just ended")
        header = {"msg_id": request, "msg_type": kind, "username": "chaos", "session": self._session, "version": "5.3"}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
        await connection.send(json.dumps({**message, "channel": "shell"}))

    # -- cells -----------------------------------------------------------------------------------------------------------

    async def run(self, cell: str, code: str, *, held: bool = False, **facts: Any) -> None:
        """Send a cell; it waits while the tab is held, unless it is *held* itself. What comes of it is in the history."""
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while (self._holds and not held) or not self._ready.is_set():
            if self._closed or self._refusals > _REFUSALS or asyncio.get_running_loop().time() > deadline:
                self._history.add("fail", "cell", kernel=self.slot, cell=cell, reason="no connection to send it over")
                return
            await asyncio.sleep(0.05)
        request = uuid.uuid4().hex
        self._cells[request] = cell
        self._replies[cell] = asyncio.Event()
        self._history.add("invoke", "cell", kernel=self.slot, cell=cell, **facts)
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}}
        try:
            await self._send("execute_request", {**content, "allow_stdin": False, "stop_on_error": False}, request)
        except (ConnectionClosed, TimeoutError) as error:
            self._history.add("info", "cell", kernel=self.slot, cell=cell, reason=f"perhaps not sent: {error}")

    @property
    def unreplied(self) -> list[str]:
        """The cells that have had no reply yet."""
        return [cell for cell, event in self._replies.items() if not event.is_set()]

    async def replied(self, cell: str, seconds: float) -> bool:
        """Wait for the reply of *cell*; return False when it did not come in time."""
        event = self._replies.get(cell)
        if event is None:
            return False
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
        return event.is_set()

    async def handshake(self, seconds: float) -> bool:
        """Ask for kernel_info until it is answered, and iopub tells of it; return False if that was not in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self._questions.clear()
        while loop.time() < deadline and not self._closed:
            request = uuid.uuid4().hex
            self._questions[request] = set()
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                await self._send("kernel_info_request", {}, request, max(0.1, deadline - loop.time()))
            again = min(deadline, loop.time() + _ASK_AGAIN)
            while loop.time() < again:
                if any(heard >= {"kernel_info_reply", "status"} for heard in self._questions.values()):
                    return True
                self._answered.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._answered.wait(), max(0.01, again - loop.time()))
        return False

    # -- what comes ------------------------------------------------------------------------------------------------------

    def _hear(self, message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        parent = (message.get("parent_header") or {}).get("msg_id", "")
        if parent in self._questions:
            self._questions[parent].add(kind)
            self._answered.set()
            return
        cell = self._cells.get(parent, "")
        facts = {"kernel": self.slot, "cell": cell}
        state = content.get("execution_state") if kind == "status" else None
        if state in {"restarting", "autorestarting", "dead"}:
            self._history.add("seen", "state", kernel=self.slot, state=state)
        elif kind == "stream" and content["name"] == "stderr":
            self._history.add("seen", "told", **facts, text=content["text"][:400])
        elif not cell:
            return
        elif kind == "stream":
            self._print(cell, content["text"])
        elif state is not None:
            self._history.add("seen", state, **facts)
        elif kind == "execute_reply":
            self._history.add("ok", "cell", **facts, status=content.get("status", ""), error=content.get("ename", ""))
            self._replies[cell].set()

    def _print(self, cell: str, text: str) -> None:
        """Write down which numbered lines came, a run of them at a time, and values that a cell tells."""
        *lines, self._rest[cell] = (self._rest.get(cell, "") + text).split("\n")
        numbers: list[int] = []
        for line in filter(None, lines):
            whose, _, said = line.partition(" ")
            word = said.split(" ", 1)[0]
            if whose == cell and word == "=":
                self._history.add("seen", "value", kernel=self.slot, cell=cell, value=said[2:])
            elif whose == cell and word.isdigit():
                numbers.append(int(word))
            else:
                self._history.add("seen", "stray", kernel=self.slot, cell=cell, text=line[:200])
        for first, last in runs(numbers):
            self._history.add("seen", "lines", kernel=self.slot, cell=cell, first=first, last=last)


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Return *numbers* as runs without a gap: (first, last) of each, in their order."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
