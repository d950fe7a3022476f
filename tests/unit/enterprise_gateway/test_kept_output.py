"""A session that comes back is given what was kept, each message once, and what is missing is said where it is."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from eg_distributed.agent.kept_output import BEFORE, HEARD, RECORD
from eg_distributed.cluster import Cluster
from eg_distributed.enterprise_gateway import kept_output
from eg_distributed.enterprise_gateway.delivered import Delivered
from eg_distributed.enterprise_gateway.kept_output import Adopted, Back, id_of
from eg_distributed.errors import HostUnresponsive
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.protocol import ForgetOutput, OutputPart, Request, TakeOutput
from tests.unit.agent.pub import encoded, message
from tests.until import until

CELL = {"msg_id": "cell", "msg_type": "execute_request", "session": "tab"}
QUESTION = {"msg_id": "q", "msg_type": "kernel_info_request", "session": "tab"}


class Node:
    """A node whose agent has kept something, and is asked for it by hand."""

    def __init__(self) -> None:
        self.name, self.keeps_output = "node1", True
        self.connected = asyncio.Event()
        self.connected.set()
        self.kept = b""
        self.numbered = 0
        self.forgotten = False
        self.failures = 0

    def keep(self, kind: int, name: str, parent: dict[str, str], number: int | None = None) -> None:
        """Have the agent hear another message."""
        raw = encoded([b"topic", *message(name, parent=json.dumps(parent).encode())])
        number = self.numbered if number is None else number
        self.kept += RECORD.pack(kind, number, len(raw)) + raw
        self.numbered = number + 1 if kind == HEARD else self.numbered

    async def request(self, request: Request[Any]) -> Any:
        """Answer as an agent does, in pieces of 50 bytes."""
        if self.failures:
            self.failures -= 1
            raise HostUnresponsive("not now", host=self.name)
        if isinstance(request, ForgetOutput):
            self.forgotten = True
            return None
        assert isinstance(request, TakeOutput)
        data = self.kept[request.position : request.position + 50]
        text = base64.b64encode(data).decode()
        return OutputPart(text, request.position, request.position + len(data), not data, self.numbered)


class Kernel:
    """The handle of a kernel on that node."""

    def __init__(self, node: Node) -> None:
        self.id, self.attempt, self.state, self.node = "k1", "a1", State.ALIVE, node


class OneLoop:
    """A cluster without a thread."""

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await *coroutine*."""
        return await coroutine


class Client:
    """What a session was given and told."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.told: list[str] = []
        self.back = Back(self._give, lambda text, cell: self.told.append(text))

    async def _give(self, channel: str, parts: list[bytes]) -> None:
        self.given.append(id_of(parts))


def adopted(node: Node) -> Adopted:
    """Return what is known of a kernel with one session of before."""
    kernel = cast("RemoteKernel", Kernel(node))
    found = kept_output._adopted["k1"] = Adopted(cast("Cluster", OneLoop()), kernel, 64 << 20, None)
    return found


@pytest.fixture(autouse=True)
def before(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier process had a session."""
    delivered = Delivered(tmp_path)
    delivered.note("k1", "tab", "", [])
    assert delivered.settled(30)
    monkeypatch.setattr(kept_output, "delivered", delivered)
    monkeypatch.setattr(kept_output, "_adopted", {})


async def test_what_was_kept_is_given_until_the_sessions_own_channel_is_heard() -> None:
    """Each message once, though two sources have some; the agent's copy serves until the first of the own channel is in it."""
    node, client, heard = Node(), Client(), ""
    node.failures = 2
    for name in ("m1", "m2", "m3"):
        node.keep(BEFORE, name, CELL)
    for name in ("m3", "m4"):
        node.keep(HEARD, name, CELL)
    node.keep(HEARD, "answer", QUESTION)
    subscribed = asyncio.Event()

    async def subscribe() -> None:
        await subscribed.wait()

    found = adopted(node)
    assert (found.waits_for("tab"), found.waits_for("another")) == (True, False)
    giving = asyncio.ensure_future(found.give_output("tab", subscribe, lambda: heard, client.back))
    await until("what is there is given", lambda: client.given == ["m1", "m2", "m3", "m4"])
    node.keep(HEARD, "m5", CELL)
    await until("what comes is given", lambda: client.given[-1] == "m5")
    heard = "m6"
    subscribed.set()
    await asyncio.sleep(0)
    assert not giving.done()
    node.keep(HEARD, "m6", CELL)
    await asyncio.wait_for(giving, 30)
    assert client.given == ["m1", "m2", "m3", "m4", "m5", "m6"]
    assert client.back.ids == {*client.given, "answer"}
    assert (client.back.state, client.told) == ("busy", [])

    minding = asyncio.ensure_future(found._mind())
    found.has_come_back("tab")
    await asyncio.wait_for(minding, 30)
    assert node.forgotten
    assert not found.waits_for("tab")


async def test_what_is_missing_is_said_once_and_where_it_is() -> None:
    """A gap in the numbers is told between the messages around it, and one at the end as well."""
    node, client = Node(), Client()
    node.keep(HEARD, "m1", CELL)
    node.keep(HEARD, "m2", CELL, number=8)
    node.numbered = 12

    async def subscribe() -> None:
        """Be heard at once."""

    await asyncio.wait_for(adopted(node).give_output("tab", subscribe, lambda: "", client.back), 30)
    assert client.given == ["m1", "m2"]
    assert [text.split(" ", 1)[0] for text in client.told] == ["7", "3"]


async def test_replies_are_given_once() -> None:
    """Those that the session has confirmed before are not given again, and none a second time."""
    node, given = Node(), list[str]()
    kept_output.note_delivered("k1", "tab", [("shell", message("r1"))])
    for name in ("r1", "r2"):
        node.keep(BEFORE, name, CELL)

    async def give(channel: str, parts: list[bytes]) -> None:
        given.append(f"{channel} {id_of(parts)}")

    found = adopted(node)
    for _ in range(2):
        await found.give_replies("tab", give)
    assert given == ["shell r2"]
