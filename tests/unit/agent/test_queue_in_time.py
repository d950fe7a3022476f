"""How an agent's starts wait for their turns, in virtual time, with kernels that are entries in a table."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eg_distributed.agent.server import Agent
from eg_distributed.protocol import ListKernels, Load, Start, Stop, write_request
from eg_distributed.wire import Message, encode
from tests.simulation.machines import Machine

from .test_server_in_time import Visitor, in_time, start


def queued(kernel: str, user: str = "") -> Start:
    """Return the request for a kernel of *user*, whose gateway waits for its turn."""
    asked = start(kernel)
    asked.queues = True
    if user:
        asked.env = {"KERNEL_USERNAME": user}
    return asked


class Crowd(Visitor):
    """A gateway that begins starts and does not wait for each one's answer."""

    replies: dict[str, Message]

    def begin(self, *starts: Start) -> None:
        """Ask for *starts*."""
        for asked in starts:
            self._last += 1
            self.asked[self._last] = asked.kernel
            self.writer.write(encode(write_request(self._last, asked)))

    def __init__(self, machine: Machine, owner: str, **hello: Any) -> None:
        super().__init__(machine, owner, **hello)
        self.asked: dict[int, str] = {}
        self.replies = {}
        self.order: list[str] = []  # kernels, as they became ready

    async def listen(self) -> None:
        """Take what comes, for as long as the connection lasts."""
        while True:
            message = await self.hear()
            if message.get("event") == "ready":
                self.order.append(message["kernel"])
            elif "event" in message:
                self.events.append(message)
            elif message.get("id") in self.asked:
                self.replies[self.asked[message["id"]]] = message


async def states(visitor: Visitor) -> dict[str, tuple[str, int]]:
    """Return each kernel's state, and how many are before it."""
    listed = (await visitor.ask(ListKernels()))["result"]
    return {each["kernel"]: (each["state"], each["before"]) for each in listed}


def test_starts_begin_in_order_and_are_listed_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one processor starts are ready one after the other; who lists the node sees those that wait, and how many are before."""

    async def story(machine: Machine, agent: Agent) -> None:
        machine.processors = 1
        crowd, operator = Crowd(machine, "one"), Visitor(machine, "operator")
        listening = asyncio.ensure_future(crowd.listen())
        crowd.begin(*(queued(f"k{number}") for number in range(5)))
        await asyncio.sleep(machine.ready_seconds / 2)
        assert await states(operator) == {
            "k0": ("starting", -1), **{f"k{number}": ("queued", number - 1) for number in range(1, 5)}
        }  # fmt: skip
        assert len(machine.processes) == 1
        await asyncio.sleep(6 * machine.ready_seconds)
        assert crowd.order == [f"k{number}" for number in range(5)]
        assert set((await states(operator)).values()) == {("running", -1)}
        assert all("result" in reply for reply in crowd.replies.values())
        listening.cancel()

    in_time(monkeypatch, story)


def test_a_start_whose_folder_is_not_there_is_told_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gateway brings the kernelspec's folder first, and then the start gets in line once."""

    async def story(machine: Machine, agent: Agent) -> None:
        machine.processors = 1
        crowd = Crowd(machine, "one")
        listening = asyncio.ensure_future(crowd.listen())
        wanting = queued("k2")
        wanting.spec_folder = "0" * 64
        crowd.begin(queued("k0"), queued("k1"), wanting)
        await asyncio.sleep(machine.ready_seconds / 2)
        assert crowd.replies["k2"]["kind"] == "folder"
        assert "k2" not in {each["kernel"] for event in crowd.events for each in event.get("starts", [])}
        listening.cancel()

    in_time(monkeypatch, story)


def test_a_start_that_waits_counts_for_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balancing of every gateway counts it, so that a start which believes otherwise is refused and told."""

    async def story(machine: Machine, agent: Agent) -> None:
        machine.processors = 1
        crowd, other = Crowd(machine, "one"), Visitor(machine, "two")
        listening = asyncio.ensure_future(crowd.listen())
        crowd.begin(*(queued(f"k{number}") for number in range(3)))
        await asyncio.sleep(0.05)
        refused = await other.ask(start("k9", believed=2))
        assert refused["kind"] == "busier"
        told = next(Load.read(event) for event in other.events if event.get("event") == "load")
        assert sorted(told.kernels) == ["k0", "k1", "k2"]
        listening.cancel()

    in_time(monkeypatch, story)


@pytest.mark.parametrize("attempt", ["a1", ""], ids=["by its gateway", "by an operator"])
def test_a_start_that_is_stopped_while_it_waits_never_begins(monkeypatch: pytest.MonkeyPatch, attempt: str) -> None:
    """It leaves the queue at once, its gateway is answered, and nothing of it is left."""

    async def story(machine: Machine, agent: Agent) -> None:
        machine.processors = 1
        crowd, operator = Crowd(machine, "one"), Visitor(machine, "operator")
        listening = asyncio.ensure_future(crowd.listen())
        crowd.begin(queued("k0"), queued("k1"), queued("k2"))
        await asyncio.sleep(0.05)
        stopped = await operator.ask(Stop("k1", attempt, grace=0, forget=True, force=True))
        assert stopped["result"]["stopped"]
        await asyncio.sleep(0.01)
        assert "stopped" in crowd.replies["k1"]["error"]
        assert crowd.replies["k1"]["kind"] == "start"
        assert await states(operator) == {"k0": ("starting", -1), "k2": ("queued", 0)}
        await asyncio.sleep(5)
        assert crowd.order == ["k0", "k2"]
        assert len(machine.processes) == 2
        listening.cancel()

    in_time(monkeypatch, story)


def test_starts_leave_with_their_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that waited for a gateway which is gone never begin, and those of others do not wait for them."""

    async def story(machine: Machine, agent: Agent) -> None:
        machine.processors = 1
        gone, other = Crowd(machine, "one"), Crowd(machine, "two")
        listening = asyncio.ensure_future(other.listen())
        gone.begin(*(queued(f"k{number}") for number in range(5)))
        await asyncio.sleep(0.05)
        other.begin(queued("o1"))
        gone.writer.close()
        await asyncio.sleep(3 * machine.ready_seconds)
        assert other.order == ["o1"]
        assert len(machine.processes) == 2
        listening.cancel()

    in_time(monkeypatch, story)


def test_a_start_that_fails_lets_the_next_one_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be executed holds no turn."""

    async def story(machine: Machine, agent: Agent) -> None:
        machine.processors, machine.is_full = 1, True
        crowd = Crowd(machine, "one")
        listening = asyncio.ensure_future(crowd.listen())
        crowd.begin(*(queued(f"k{number}") for number in range(20)))
        await asyncio.sleep(20 * machine.spawn_seconds + 0.1)
        assert len(crowd.replies) == 20
        assert all("no processes are left" in reply["error"] for reply in crowd.replies.values())
        listening.cancel()

    in_time(monkeypatch, story)


def test_an_agent_that_leaves_refuses_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gateways may start them by the next agent."""

    async def story(machine: Machine, agent: Agent) -> None:
        machine.processors = 1
        crowd = Crowd(machine, "one")
        listening = asyncio.ensure_future(crowd.listen())
        crowd.begin(queued("k0"), queued("k1"))
        await asyncio.sleep(0.05)
        agent._admission.close()
        await asyncio.sleep(0.01)
        assert crowd.replies["k1"]["kind"] == "host"
        assert "leaving" in crowd.replies["k1"]["error"]
        listening.cancel()

    in_time(monkeypatch, story)
