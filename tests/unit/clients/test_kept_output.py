"""A session that comes back is given what was kept, each message once, and what is missing is said where it is."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from eg_distributed.agent.kept_output import BEFORE, HEARD, RECORD
from eg_distributed.clients import kept_output
from eg_distributed.clients.delivered import Delivered
from eg_distributed.clients.kept_output import Adopted, Back, Cells, id_of
from eg_distributed.cluster import Cluster
from eg_distributed.counters import HostCounters
from eg_distributed.errors import HostUnresponsive
from eg_distributed.kept_output import Kept
from eg_distributed.kernel import RemoteKernel, State
from eg_distributed.protocol import ForgetOutput, OutputPart, Request, TakeOutput
from eg_distributed.wire import Malformed
from tests.unit.agent.pub import encoded, message
from tests.until import until

CELL = {"msg_id": "cell", "msg_type": "execute_request", "session": "tab"}
QUESTION = {"msg_id": "q", "msg_type": "kernel_info_request", "session": "tab"}


class Node:
    """A node whose agent has kept something, and is asked for it by hand."""

    def __init__(self) -> None:
        self.name, self.keeps_output = "node1", True
        self.counters = HostCounters(self.name)
        self.connected = asyncio.Event()
        self.connected.set()
        self.kept = b""
        self.numbered = 0
        self.forgotten = False
        self.failures = 0
        self.floods = False
        self.is_stuck = False

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
        if self.is_stuck:
            return OutputPart("", request.position, request.position, is_all=False)
        if self.floods:
            await asyncio.sleep(0)
            self.keep(HEARD, f"m{self.numbered}", CELL)
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
    assert client.back.unneeded() == set(
        client.given
    )  # an answer that it was not given is still its own channel's to bring
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


async def test_that_nobody_listened_is_said_however_short_it_was() -> None:
    """The word of the agent counts, and not for how long: that it was killed costs what it had not written yet."""
    client = Client()
    await client.back.take(Kept([], unheard=0.0), 64 << 20)
    assert [text.startswith("Output may be missing here: for up to 0.0 s") for text in client.told] == [True]


def status(name: str, state: str, parent: dict[str, str]) -> list[bytes]:
    """Return the kernel's word that it is in *state*."""
    parts = message(name, json.dumps({"execution_state": state}).encode(), json.dumps(parent).encode())
    parts[2] = json.dumps({"msg_id": name, "msg_type": "status"}).encode()
    return parts


async def test_output_behind_the_end_of_a_cell_does_not_say_that_one_runs() -> None:
    """A thread that a cell has left prints on: the kernel is idle until it says that it is busy."""
    client = Client()
    states = []
    for parts in (
        message("m1", parent=json.dumps(CELL).encode()),
        status("m2", "idle", CELL),
        message("m3", parent=json.dumps(CELL).encode()),
        status("m4", "busy", CELL),
        message("m5", parent=json.dumps(CELL).encode()),
    ):
        await client.back.take(Kept(parts), 64 << 20)
        states.append(client.back.state)
    assert states == ["busy", "idle", "idle", "busy", "busy"]


class Manager:
    """Enterprise Gateway's manager of a kernel, with its stream of activity."""

    def __init__(self) -> None:
        self.execution_state = "starting"
        self._activity_stream = self
        self._recv_callback = self._record

    def on_recv(self, callback: Any) -> None:
        """Have *callback* take what comes."""
        self._recv_callback = callback

    def _record(self, parts: list[bytes]) -> None:
        self.execution_state = json.loads(parts[-1]).get("execution_state", self.execution_state)

    def hear(self, *statuses: list[bytes]) -> str:
        """Take messages of the kernel; return the state that it is seen in."""
        for each in statuses:
            self._recv_callback(each)
        return self.execution_state


def test_a_word_of_before_does_not_count_once_the_kernel_has_spoken() -> None:
    """That a cell runs was kept, and its end was heard since: the kernel is idle, and not busy until its next cell."""
    manager = Manager()
    cells = Cells(manager)
    assert manager.hear(status("m1", "idle", CELL)) == "idle"
    cells.note_running()
    assert manager.execution_state == "idle"


def test_an_answer_beside_a_cell_does_not_say_that_none_runs() -> None:
    """A kernel that says nothing, and was asked on its control channel, is not idle by that; by its shell channel it is."""
    manager = Manager()
    cells = Cells(manager)
    for channel in ("control", "shell"):
        kept_output.note_question(channel, {"header": {"msg_id": channel}})
    beside = {**QUESTION, "msg_id": "control"}
    assert manager.hear(status("m1", "busy", beside), status("m2", "idle", beside)) == "starting"
    cells.note_running()
    assert manager.hear(status("m3", "busy", beside), status("m4", "idle", beside)) == "busy"
    assert manager.hear(status("m5", "idle", QUESTION)) == "busy"
    assert manager.hear(status("m6", "idle", {**QUESTION, "msg_id": "shell"})) == "idle"
    cells.note_running()
    assert manager.execution_state == "idle"


@pytest.mark.parametrize("heard", ["m20", "what gave way before it was taken"])
async def test_a_kernel_that_never_stops_holds_up_nobody(heard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always more to take: the session's own channel serves once it is heard all the same, and nothing is left out."""
    monkeypatch.setattr(kept_output, "_OVERLAP", 0.1)
    node, client = Node(), Client()
    node.floods = True

    async def subscribe() -> None:
        """Be heard at once."""

    await asyncio.wait_for(adopted(node).give_output("tab", subscribe, lambda: heard, client.back), 30)
    assert client.given == [f"m{number}" for number in range(len(client.given))]
    assert len(client.given) > 20


async def test_an_agent_that_gives_nothing_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk may hang: the session is served, told so, and waited for should it come again."""
    monkeypatch.setattr(kept_output, "_PATIENCE", 0.1)
    monkeypatch.setattr(kept_output, "_AGAIN", 0.01)
    node, client = Node(), Client()
    node.is_stuck = True

    async def subscribe() -> None:
        """Be heard at once."""

    found = adopted(node)
    with pytest.raises(HostUnresponsive, match="has not given any of it"):
        await asyncio.wait_for(found.give_output("tab", subscribe, lambda: "m1", client.back), 30)
    assert found.waits_for("tab")


async def test_what_is_being_taken_is_not_forgotten_and_who_comes_late_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten minutes nobody is waited for any more, but who is back takes all; and others learn that they came too late."""
    monkeypatch.setattr(kept_output, "_WAITED_FOR", 0.01)
    node, client, subscribed = Node(), Client(), asyncio.Event()
    kept_output.note_there("k1", "late")
    assert kept_output.delivered.settled(30)
    node.keep(HEARD, "m1", CELL)

    async def subscribe() -> None:
        await subscribed.wait()

    found = adopted(node)
    giving = asyncio.ensure_future(found.give_output("tab", subscribe, lambda: "m2", client.back))
    await until("it is given something", lambda: client.given)
    minding = asyncio.ensure_future(found._mind())
    await until("nobody else is waited for", lambda: found._all_back.is_set() or found._nobody_takes._waiters)
    assert not node.forgotten
    node.keep(HEARD, "m2", CELL)
    subscribed.set()
    await asyncio.wait_for(giving, 30)
    found.has_come_back("tab")
    await asyncio.wait_for(minding, 30)
    assert node.forgotten
    assert client.given == ["m1", "m2"]
    assert not found.waits_for("late")
    told = [found.missed(session) for session in ("tab", "new", "late", "late")]
    assert [text[:30] for text in told] == ["", "", "Output may be missing here: wh", ""]


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


async def test_replies_before_one_that_is_known_are_not_given() -> None:
    """A session's first hundreds of replies are not remembered, but it got the later ones behind them."""
    node, given = Node(), list[str]()
    names = [f"r{number}" for number in range(300)]
    kept_output.note_delivered("k1", "tab", [("shell", message(name)) for name in names[:-2]])
    for name in names:
        node.keep(BEFORE, name, CELL)

    async def give(channel: str, parts: list[bytes]) -> None:
        given.append(id_of(parts))

    await adopted(node).give_replies("tab", give)
    assert given == names[-2:]


async def test_replies_survive_a_node_that_fails_between_two_pieces() -> None:
    """What was taken is given with the next attempt, though the agent has forgotten it by then, and is not asked for it again."""
    node, given = Node(), list[str]()
    for name in ("r1", "r2"):
        node.keep(BEFORE, name, CELL)
    request, asked = node.request, list[int]()

    async def failing(asking: Request[Any]) -> Any:
        assert isinstance(asking, TakeOutput)
        asked.append(asking.position)
        if len(asked) == len(node.kept) // 100:
            raise Malformed("nonsense")
        return await request(asking)

    async def give(channel: str, parts: list[bytes]) -> None:
        given.append(id_of(parts))

    found = adopted(node)
    vars(node)["request"] = failing
    await found.give_replies("tab", give)
    assert given == []
    await found.give_replies("tab", give)
    assert given == ["r1", "r2"]
    assert asked.count(0) == 1


async def test_a_reply_that_came_late_beside_a_known_one_is_given() -> None:
    """Of few replies each is known by its id: one that the agent took after a later one is not taken for known."""
    node, given = Node(), list[str]()
    kept_output.note_delivered("k1", "tab", [("shell", message("r2"))])
    for name in ("r1", "r2"):
        node.keep(BEFORE, name, CELL)

    async def give(channel: str, parts: list[bytes]) -> None:
        given.append(id_of(parts))

    await adopted(node).give_replies("tab", give)
    assert given == ["r1"]
