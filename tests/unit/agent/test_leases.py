"""Who answers for a kernel: one gateway at a time, and those before it are told so, whenever they come."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from eg_distributed.agent import leases as leases_module
from eg_distributed.agent.kernels import Kernel
from eg_distributed.agent.server import Agent
from eg_distributed.link.links import LocalLink
from tests.unit.agents import STANDIN, Refusal, Visitor, alive, own_agent, standin
from tests.until import until

Visit = Callable[..., Awaitable[Visitor]]


@pytest_asyncio.fixture
async def agent(short: Path) -> AsyncIterator[Agent]:
    """An agent in this process."""
    async with own_agent(short) as (agent, _):
        yield agent


@pytest_asyncio.fixture
async def visit(agent: Agent, short: Path) -> AsyncIterator[Visit]:
    """Makes gateways' connections to the agent."""
    made: list[Visitor] = []

    async def make(owner: str, incarnation: str = "1", **options: Any) -> Visitor:
        (path,) = short.glob("agent-*.sock")
        made.append(await Visitor.at(LocalLink(str(path)), owner, incarnation, **options))
        return made[-1]

    yield make
    for visitor in made:
        visitor.close()


async def adopt(visitor: Visitor, kernel: str = "k1", lease: int = 0) -> dict[str, Any]:
    """Adopt a kernel; return what is told of it, nothing if it is missing."""
    found = await visitor.request("adopt", kernels=[kernel], leases={kernel: lease} if lease else {})
    return dict(found.get(kernel, {}))


async def test_each_new_owner_has_a_higher_number(visit: Visit) -> None:
    """A start is the first; coming back keeps the number; another gateway, and a later process of the same one, get the next."""
    one, two = await visit("one"), await visit("two")
    assert (await one.ready("k1", standin()))["lease"] == 1
    assert (await adopt(one, lease=1))["lease"] == 1
    assert (await adopt(two))["lease"] == 2
    assert (await adopt(await visit("two", "2")))["lease"] == 3
    (listed,) = await one.request("list")
    assert (listed["owner"], listed["lease"], listed["claimed"]) == ("two", 3, True)


async def test_an_owner_is_told_that_it_has_lost_a_kernel(visit: Visit) -> None:
    """At once, by whom and with which number; from then on it hears nothing of the kernel, and the new owner does."""
    one, two = await visit("one"), await visit("two")
    pid = (await one.ready("k1", standin()))["pid"]
    await adopt(two)
    told = await one.event("taken", "k1")
    assert (told["owner"], told["lease"], told["attempt"]) == ("two", 2, "a1")
    os.kill(pid, signal.SIGKILL)
    await two.event("exited", "k1")
    assert not [event for event in one.events if event["event"] == "exited"]


async def test_what_comes_with_an_older_number_is_refused(visit: Visit) -> None:
    """Signals, stops, endpoints and starts of who has lost a kernel do nothing, and say who has it; the owner's do their work."""
    one, two = await visit("one"), await visit("two")
    pid = (await one.ready("k1", standin()))["pid"]
    await adopt(two)
    for method, params in (
        ("signal", {"signum": 9}),
        ("stop", {"grace": 0}),
        ("stop", {"grace": 0, "attempt": "a1", "forget": True}),
        ("endpoints", {"connection": {}}),
    ):
        with pytest.raises(Refusal, match="taken over by gateway two") as refused:
            await one.request(method, kernel="k1", lease=1, **params)
        assert refused.value.kind == "taken"
    with pytest.raises(Refusal, match="taken over by gateway two"):
        await one.start("k1", standin(), attempt="a2", lease=1)
    with pytest.raises(Refusal, match="taken over by gateway two"):
        await one.request("signal", kernel="k1", signum=9)  # as an older release says it
    assert alive(pid)
    assert await two.request("signal", kernel="k1", signum=0, lease=2)
    await two.request("stop", kernel="k1", grace=0, lease=2)
    assert not alive(pid)


async def test_a_gateway_that_comes_back_too_late_is_told(visit: Visit) -> None:
    """One that was away when its kernel was adopted learns by coming back who has it, also when it has gone since."""
    one, two = await visit("one"), await visit("two")
    await one.ready("k1", standin())
    one.close()
    await adopt(two)
    found = await adopt(await visit("one"), lease=1)
    assert (found["state"], found["owner"], found["lease"]) == ("taken", "two", 2)
    await two.request("stop", kernel="k1", grace=0, forget=True, lease=2)
    found = await adopt(await visit("one"), lease=1)
    assert (found["state"], found["owner"], found["lease"]) == ("taken", "two", 2)
    assert await adopt(await visit("three")) == {}


async def test_a_restart_by_the_new_owner_is_not_the_old_owners(visit: Visit) -> None:
    """A number is never given twice, so a restart hides nothing from who had the kernel before."""
    one, two = await visit("one"), await visit("two")
    await one.ready("k1", standin())
    await adopt(two)
    await two.request("stop", kernel="k1", grace=0, lease=2)
    assert (await two.ready("k1", standin(), attempt="a2", lease=2))["lease"] == 3
    with pytest.raises(Refusal, match="taken over by gateway two"):
        await one.request("signal", kernel="k1", signum=0, lease=1)
    assert (await adopt(one, lease=1))["state"] == "taken"


async def test_who_has_the_kernel_is_not_refused_for_not_knowing_its_number(visit: Visit) -> None:
    """The answer to a restart may be lost, or late: what its gateway asks for meanwhile is done."""
    one = await visit("one")
    pid = (await one.ready("k1", standin()))["pid"]
    await one.request("stop", kernel="k1", grace=0, lease=1)
    pid = (await one.ready("k1", standin(), attempt="a2", lease=1))["pid"]
    assert await one.request("signal", kernel="k1", signum=0, lease=1)
    assert (await adopt(one, lease=1))["lease"] == 2
    await one.request("stop", kernel="k1", attempt="a2", grace=0, lease=1, forget=True)
    assert not alive(pid)


async def test_a_number_counts_on_from_the_kernels_host_before(visit: Visit) -> None:
    """A kernel that is started on another host goes on from the number that its gateway held."""
    one = await visit("one")
    assert (await one.ready("k1", standin(), lease=7))["lease"] == 8


async def test_a_kernel_that_has_ended_stays_with_its_owner(visit: Visit) -> None:
    """Who adopts it hears of its end, and who had it is not told that it has lost it: it may be starting it again."""
    one, two = await visit("one"), await visit("two")
    await one.ready("k1", standin())
    await one.request("stop", kernel="k1", grace=0)
    found = await adopt(two)
    assert (found["state"], found["lease"]) == ("exited", 0)
    assert (await one.ready("k1", standin(), attempt="a2", lease=1))["lease"] == 2
    assert not [event for event in one.events if event["event"] == "taken"]


async def test_the_next_agent_knows_who_has_a_kernel(short: Path) -> None:
    """Numbers are in the record; one that was given and could not be written down any more counts when it comes back."""
    async with own_agent(short) as (agent, visitor):
        await visitor.ready("k1", standin())
        (path,) = short.glob("agent-*.sock")
        two = await Visitor.at(LocalLink(str(path)), "two")
        await adopt(two)
        following = Agent(short, "d")
        agent._disk.do(lambda: None)
        await agent.settle(5)
        folder = agent.kernels["k1"].directory
        found = following.kernel_type.load(folder, following._notify)
        assert found is not None
        assert (found.owner, found.lease) == ("two", 2)
        agent.kernels["k1"].lease, agent.kernels["k1"].owner = 1, "tests"  # as if it had not come to the disk
        agent.kernels["k1"].holder = ("tests", "")
        assert (await adopt(two, lease=2))["lease"] == 3  # the one before may have been given 2 as well
        assert (await adopt(visitor, lease=1))["state"] == "taken"
        two.close()


async def test_who_has_lost_a_kernel_sends_nothing_more_to_it(visit: Visit) -> None:
    """Its streams end, none can be resumed or opened, and it is told why; those of the new owner work."""
    one, two = await visit("one"), await visit("two")
    await one.ready("k1", standin())
    _, reader, _ = await one.stream("k1", "shell", "s1")
    await adopt(two)
    await asyncio.wait_for(until_end(reader), 10)
    for resume in (True, False):
        answer, _, _ = await one.stream("k1", "shell", "s1", resume=resume, lease=1)
        assert (answer["ok"], answer["taken"]) == (False, True)
    answer, _, _ = await two.stream("k1", "shell", "s2", lease=2)
    assert answer["ok"]


async def until_end(reader: Any) -> None:
    """Read until the other end closes."""
    while await reader.read(1 << 16):
        pass


async def test_a_gateway_has_not_lost_what_was_ended_for_itself(visit: Visit) -> None:
    """One that asks with an older number of its own hears that the kernel is gone, and not that it was taken over."""
    one = await visit("one")
    await one.ready("k1", standin())
    await one.request("stop", kernel="k1", grace=0)
    await one.ready("k1", standin(), attempt="a2", lease=1)
    await one.request("stop", kernel="k1", attempt="a2", grace=0, lease=1, forget=True)
    assert await adopt(one, lease=1) == {}
    assert (await adopt(await visit("one", "2"), lease=1))["state"] == "taken"


async def test_an_earlier_process_of_the_same_gateway_keeps_no_dead_kernel(visit: Visit) -> None:
    """After a reset of the gateway's machine its connection of before still counts: its next process is given what has ended."""
    await (await visit("one")).ready("k1", standin())
    again = await visit("one", "2")
    await again.request("stop", kernel="k1", grace=0)
    found = await adopt(again)
    assert (found["state"], found["lease"], found["owner"]) == ("exited", 2, "one")
    (listed,) = await again.request("list")
    assert listed["lease"] == 2


async def test_of_two_gateways_that_restart_one_dead_kernel_one_does(visit: Visit) -> None:
    """The other one hears that it was taken over, and not that this host cannot take it: then it would start elsewhere."""
    one, two = await visit("one"), await visit("two")
    await one.ready("k1", standin())
    await one.request("stop", kernel="k1", grace=0)
    held = (await adopt(two))["lease"]
    starts = (one.start("k1", standin(), attempt="a2", lease=1), two.start("k1", standin(), attempt="b2", lease=held))
    done = await asyncio.gather(*starts, return_exceptions=True)
    (refused,) = [each for each in done if isinstance(each, Refusal)]
    assert refused.kind == "taken"
    (started,) = [each for each in done if isinstance(each, dict)]
    assert alive(started["pid"])


async def test_a_start_is_refused_whose_kernel_is_adopted_while_it_waits(visit: Visit, agent: Agent) -> None:
    """A restart waits for the end of what is being ended; who adopts that meanwhile sees to it from then on."""
    one, two = await visit("one"), await visit("two")
    await one.ready("k1", standin("ignore:SIGTERM"))
    ending = asyncio.ensure_future(one.request("stop", kernel="k1", grace=0.5, lease=1))
    await until("it is being ended", lambda: agent.kernels["k1"].is_being_ended)
    starting = asyncio.ensure_future(one.start("k1", standin(), attempt="a2", lease=1))
    await until("the start waits", lambda: bool(agent._waiting))
    assert (await adopt(two))["lease"] == 2
    with pytest.raises(Refusal, match="taken over by gateway two"):
        await starting
    await ending
    await two.event("exited", "k1")
    assert (await two.ready("k1", standin(), attempt="b2", lease=2))["lease"] == 3


async def test_who_starts_a_kernel_is_never_given_another_ones_number(
    visit: Visit, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel may be adopted before its start is answered: then the answer says so."""
    one, two = await visit("one"), await visit("two")
    settled = asyncio.Event()

    class Slow(Kernel):
        async def start(self, *args: Any, **options: Any) -> None:
            await super().start(*args, **options)
            await settled.wait()

    monkeypatch.setattr(agent, "kernel_type", Slow)
    starting = asyncio.ensure_future(one.start("k1", standin()))
    await one.event("ready", "k1")
    adopting = asyncio.ensure_future(adopt(two))
    await one.event("taken", "k1")
    settled.set()
    with pytest.raises(Refusal, match="taken over by gateway two") as refused:
        await starting
    assert refused.value.kind == "taken"
    assert (await adopting)["lease"] == 2
    assert alive((await adopting)["pid"])


async def test_a_kernel_that_is_being_started_is_adopted_once_it_is_ready(visit: Visit, short: Path) -> None:
    """Until then it stays with who starts it, alone able to read its launcher's answer; who asked hears when it may ask again."""
    one, two = await visit("one"), await visit("two")
    await one.start("k1", gated(short / "gate"))
    found = await adopt(two)
    assert (found["state"], found["lease"]) == ("elsewhere", 0)
    (short / "gate").touch()
    await one.event("ready", "k1")
    await two.event("ready", "k1")
    assert (await adopt(two))["lease"] == 2
    assert (await one.event("taken", "k1"))["owner"] == "two"


def gated(gate: Path) -> list[str]:
    """Return the argv of a stand-in that begins once *gate* is there."""
    wait = f"import os, sys, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nos.execv(sys.argv[1], sys.argv[1:])"
    return [STANDIN[0], "-ISc", wait, *standin()]


async def test_who_waits_for_a_start_hears_that_it_failed(visit: Visit, short: Path) -> None:
    """It finds the kernel gone, or ended, when it asks again."""
    one, two = await visit("one"), await visit("two")
    await one.start("k1", gated(short / "gate"))
    assert (await adopt(two))["state"] == "elsewhere"
    await one.request("stop", kernel="k1", attempt="a1", grace=0, forget=True)
    await two.event("exited", "k1")
    assert await adopt(two) == {}


async def test_who_never_heard_that_it_has_a_kernel_ends_none_of_another_ones(visit: Visit) -> None:
    """A stop without a number is refused while a connected gateway has the kernel; an operator's is done."""
    one, two = await visit("one"), await visit("two")
    pid = (await one.ready("k1", standin()))["pid"]
    with pytest.raises(Refusal, match="taken over by gateway one"):
        await two.request("stop", kernel="k1", attempt="a1", grace=0, forget=True)
    assert alive(pid)
    await two.request("stop", kernel="k1", grace=0, force=True)
    assert not alive(pid)


async def test_a_late_adoption_takes_a_kernel_from_nobody_who_uses_it(visit: Visit) -> None:
    """It is told who has it; once that gateway has gone it is given the kernel."""
    one, two = await visit("one"), await visit("two")
    await one.ready("k1", standin())
    found = (await two.request("adopt", kernels=["k1"], late=["k1"]))["k1"]
    assert (found["state"], found["owner"], found["lease"]) == ("taken", "one", 1)
    assert await one.request("signal", kernel="k1", signum=0, lease=1)
    one.close()
    await until_unclaimed(two)
    assert (await two.request("adopt", kernels=["k1"], late=["k1"]))["k1"]["lease"] == 2


async def until_unclaimed(visitor: Visitor) -> None:
    """Wait until nobody answers for the agent's kernels."""
    while any(each["claimed"] for each in await visitor.request("list")):
        pass


async def test_only_so_many_kernels_that_are_gone_are_remembered(
    visit: Visit, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest give way."""
    monkeypatch.setattr(leases_module, "REMEMBERED", 2)
    one = await visit("one")
    for number in range(4):
        await one.ready(f"k{number}", standin(), lease=5)
        await one.request("stop", kernel=f"k{number}", grace=0, forget=True)
    two = await visit("two")
    told = [bool(await adopt(two, f"k{number}", lease=3)) for number in range(4)]
    assert told == [False, False, True, True]


# -- how many are there ------------------------------------------------------------------------------------------


async def test_a_start_on_a_node_that_is_busier_than_believed_is_refused(visit: Visit, agent: Agent) -> None:
    """Who is refused hears before which kernels count there, those that have not begun included; nothing is left of the start."""
    one, two = await visit("one"), await visit("two")
    first = asyncio.ensure_future(one.start("k1", standin(), believed=0))
    second = asyncio.ensure_future(two.start("k2", standin(), believed=0))
    done = await asyncio.gather(first, second, return_exceptions=True)
    (refused,) = [each for each in done if isinstance(each, Refusal)]
    assert refused.kind == "busier"
    other, kernel = (two, "k1") if done[1] is refused else (one, "k2")
    loads = [event["kernels"] for event in other.events if event["event"] == "load"]
    assert [kernel] in loads
    assert list(agent.kernels) == [kernel]
    await other.start("k3", standin(), believed=1)
    await other.start("k4", standin())  # not picked for that


async def test_a_start_that_fails_before_it_begins_is_told_to_count_no_more(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, agent: Agent
) -> None:
    """What a refused gateway has heard to count there is taken back."""
    one, two = await visit("one"), await visit("two")
    looking = asyncio.Event()

    async def no_room(*_: object) -> None:
        await looking.wait()
        raise asyncio.TimeoutError

    monkeypatch.setattr(agent, "_find_room", no_room)
    first = asyncio.ensure_future(one.start("k1", standin()))
    await until("it has begun", lambda: bool(agent._waiting))
    with pytest.raises(Refusal, match="1 kernels are there"):
        await two.start("k2", standin(), believed=0)
    looking.set()
    with pytest.raises(Refusal):
        await first

    def loads() -> list[list[str]]:
        return [event["kernels"] for event in two.events if event["event"] == "load"]

    await until("both are told", lambda: loads()[-1:] == [[]] and ["k1"] in loads())


async def test_a_start_that_fails_leaves_no_count(visit: Visit) -> None:
    """Gateways that have heard of it to count hear that it does no more."""
    one, two = await visit("one"), await visit("two")
    with pytest.raises(Refusal) as refused:
        await one.start("k1", ["/nothing/there"])
    assert refused.value.kind == "start"
    await two.start("k2", standin())
    await until("both are told", lambda: [loads_of(each)[-1:] for each in (one, two)] == [[["k2"]], [["k2"]]])


def loads_of(visitor: Visitor) -> list[list[str]]:
    """Return what *visitor* has been told of the kernels that count."""
    return [event["kernels"] for event in visitor.events if event["event"] == "load"]
