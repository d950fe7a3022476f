"""Who logs in when: a bound on what is under way, nobody behind hosts that come back, and nothing held by what hangs."""

from __future__ import annotations

import asyncio
import random

import pytest

from eg_distributed import node as node_module
from eg_distributed.link.agent_archive import boot_line
from eg_distributed.settings import Distributed
from eg_distributed.turns import Turns
from tests.until import until

from .memory_link import MemoryLink
from .node_owner import NodeOwner

Node = node_module.Node


class Login:
    """Something that takes a turn, and ends when it is told to."""

    def __init__(self, turns: Turns, *, urgent: bool = False, fresh: bool = False) -> None:
        self.hurry = asyncio.Event()
        self.fresh = fresh
        if urgent:
            self.hurry.set()
        self.began, self.end = asyncio.Event(), asyncio.Event()
        self.task = asyncio.ensure_future(self._run(turns))

    async def _run(self, turns: Turns) -> None:
        async with turns.turn(self.hurry, fresh=True) if self.fresh else turns.turn(self.hurry):
            self.began.set()
            await self.end.wait()


async def settle() -> None:
    """Let everything that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def under_way(logins: list[Login]) -> int:
    """Return how many have begun."""
    return sum(login.began.is_set() for login in logins)


async def test_no_more_than_so_many_at_once() -> None:
    """What exceeds the bound waits, and begins when another ends, or is cancelled."""
    turns = Turns(most=2, seconds=60)
    logins = [Login(turns) for _ in range(5)]
    await settle()
    assert under_way(logins) == 2
    logins[0].end.set()
    logins[1].task.cancel()
    logins[2].task.cancel()  # which waits
    await settle()
    assert [login.began.is_set() for login in logins] == [True, True, False, True, True]


async def test_who_is_waited_for_goes_first() -> None:
    """A start does not stand behind hosts that come back, nor does a host that a start begins to wait for."""
    turns = Turns(most=1, seconds=60)
    held, waiting, last = Login(turns), Login(turns), Login(turns)
    await settle()
    assert under_way([held, waiting, last]) == 1
    waiting.hurry.set()
    await settle()
    assert waiting.began.is_set()
    assert not Login(turns, urgent=True).began.is_set()
    waiting.end.set()
    held.end.set()
    await settle()
    assert last.began.is_set()


async def test_a_host_that_has_not_failed_goes_before_those_that_have() -> None:
    """Hosts that were lost just now have turns of their own, beside those that are tried again and those of starts."""
    turns = Turns(most=1, seconds=60)
    kinds = ((False, False), (False, True), (True, False))
    first, second = ([Login(turns, urgent=urgent, fresh=fresh) for urgent, fresh in kinds] for _ in range(2))
    await settle()
    assert (under_way(first), under_way(second)) == (3, 0)
    for login in first:
        login.end.set()
    await settle()
    assert under_way(second) == 3


async def test_thirty_two_of_a_kind_have_a_turn() -> None:
    """So many logins share the thread well; one more waits."""
    turns = Turns()
    logins = [Login(turns) for _ in range(40)]
    await settle()
    assert under_way(logins) == 32


@pytest.mark.parametrize("steps", range(8))
async def test_a_cancelled_wait_keeps_no_turn(steps: int) -> None:
    """Whenever a login that waits is cancelled, also in the moment in which it gets its turn, the next one gets it."""
    turns = Turns(most=1, seconds=60)
    held, waiting = Login(turns), Login(turns)
    await settle()
    held.end.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.task.cancel()
    await settle()
    later = [Login(turns) for _ in range(2)]
    await settle()
    assert under_way(later) == 1


async def test_a_login_that_hangs_gives_its_turn_back() -> None:
    """What takes long waits for its host alone; its turn is given back once, although it goes on."""
    turns = Turns(most=1, seconds=0.01)
    hanging, others = Login(turns), [Login(turns) for _ in range(3)]
    await until("all have begun", lambda: under_way(others) == 3)
    assert not hanging.end.is_set()
    for login in (hanging, *others):
        login.end.set()
    await settle()
    turns._seconds = 60
    later = [Login(turns) for _ in range(2)]
    await settle()
    assert under_way(later) == 1


async def test_hosts_that_are_lost_together_come_back_one_by_one() -> None:
    """A single loss is made good at once, hundreds of them within two seconds."""
    turns = Turns()
    turns.note_loss()
    assert turns.delay() == 0.0
    for _ in range(500):
        turns.note_loss()
    delays = [turns.delay() for _ in range(200)]
    assert 0.0 <= min(delays) < 0.5
    assert 1.5 < max(delays) <= 2.0


async def test_a_few_hosts_come_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight within a second need not wait, with more each may wait for 0.02 s a host, and a second later nobody does."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high - low)
    now = 1000.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    turns = Turns()
    for _ in range(8):
        turns.note_loss()
    assert turns.delay() == 0.0
    now += 1.0
    turns.note_loss()
    assert turns.delay() == pytest.approx(9 * 0.02)
    now += 0.01
    assert turns.delay() == 0.0
    for _ in range(500):
        turns.note_loss()
    assert turns.delay() == pytest.approx(2.0)
    now *= 2
    assert turns.delay() == 0.0


async def test_the_connect_timeout_begins_with_the_turn(settings: Distributed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that waits for its turn has not begun to connect, and a start that wants it need not wait for those before it."""
    begun: list[str] = []
    held = asyncio.Event()

    async def connect(host: str, *_: object, **__: object) -> MemoryLink:
        begun.append(host)
        if host == "node1":
            await held.wait()
        return MemoryLink()

    monkeypatch.setattr(node_module, "connect", connect)
    turns = Turns(most=1, seconds=60)
    nodes = [Node(name, settings, ("tests", "1"), NodeOwner(settings), turns) for name in ("node1", "node2", "node3")]
    waiting = [asyncio.ensure_future(node.connect(hurry=False)) for node in nodes]
    await settle()
    assert begun == ["node1"]
    assert nodes[1].progress.phase == "waiting for other logins of this gateway"
    await nodes[2].connect()
    assert begun == ["node1", "node3"]
    held.set()
    await asyncio.wait(waiting)
    assert begun == ["node1", "node3", "node2"]
    for node in nodes:
        await node.close()


def test_the_agents_line_is_made_once() -> None:
    """Packing it takes as long as a login does, so all hosts get the same one."""
    assert boot_line(bridge=False, keep=True) is boot_line(bridge=False, keep=True)
    assert boot_line(bridge=False, keep=True) != boot_line(bridge=True, keep=True)
