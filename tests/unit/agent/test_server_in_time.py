"""What an agent does after seconds, minutes and hours, in virtual time, with kernels that are entries in a table."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from eg_distributed.agent.server import ENDING_AWAITED, EXITED_KEPT, HEARD_LATELY, IDLE, SILENCE, Agent
from eg_distributed.protocol import (
    ELSEWHERE,
    TAKEN_OVER,
    Adopt,
    ControlHello,
    Exited,
    Leave,
    ListKernels,
    Login,
    Ping,
    Request,
    Signal,
    Start,
    Stop,
    write_request,
)
from eg_distributed.wire import MAX_ANSWER, MAX_MESSAGE, Message, encode, read_message
from tests.simulation.loop import VirtualLoop
from tests.simulation.machines import Machine
from tests.simulation.network import connection


class Visitor:
    """A gateway's connection to the agent of *machine*, over a pipe."""

    def __init__(self, machine: Machine, owner: str, incarnation: str = "1", **hello: Any) -> None:
        (self.reader, self.writer), accepted = connection(machine.loop, 0.0001)
        machine.accept(*accepted)
        self.writer.write(encode(ControlHello(owner, incarnation, **hello).write()))
        self.events: list[Message] = []
        self._last = 0

    async def hear(self) -> Message:
        """Return the agent's next message."""
        message = await read_message(self.reader)
        assert message is not None
        return message

    async def ask(self, request: Request[Any]) -> Message:
        """Return the reply to *request*, and keep the events that come before it."""
        self._last += 1
        self.writer.write(encode(write_request(self._last, request)))
        while (message := await self.hear()).get("id") != self._last:
            self.events.append(message)
        return message

    async def claimed(self) -> dict[str, bool]:
        """Return the kernels that are there, and whether a gateway answers for each."""
        return {each["kernel"]: each["claimed"] for each in (await self.ask(ListKernels()))["result"]}

    async def is_dismissed(self) -> bool:
        """Return True if the agent has closed the connection; what it said before is lost."""
        while not self.reader.at_eof():
            try:
                await asyncio.wait_for(self.reader.read(65536), 0.1)
            except asyncio.TimeoutError:
                return False
        return True


def start(kernel: str, believed: int = -1, orphan_timeout: float = 0.0) -> Start:
    """Return the request for a kernel."""
    return Start(
        kernel=kernel,
        attempt="a1",
        owner="one",
        host_set="",
        argv=["true"],
        spec_env={},
        env={},
        transport="ipc",
        key="k",
        signature_scheme="hmac-sha256",
        orphan_timeout=orphan_timeout,
        believed=believed,
    )


Story = Callable[[Machine, Agent], Coroutine[Any, Any, None]]


def in_time(monkeypatch: pytest.MonkeyPatch, story: Story) -> None:
    """Run *story* of a machine and its agent in virtual time."""
    loop = VirtualLoop()
    machine = Machine("host0", loop, random.Random(1))
    monkeypatch.setattr(Machine, "known", {"host0": machine})

    async def live() -> None:
        machine.bring_up()
        assert machine.agent is not None
        try:
            await story(machine, machine.agent)
        finally:
            await machine.close()
            await asyncio.sleep(1)

    try:
        loop.run_until_complete(live())
    finally:
        loop.close()


def test_a_gateway_that_says_nothing_for_a_minute_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection still stands, as far as TCP knows; nobody answers for its kernels any more, and they live."""

    async def story(machine: Machine, agent: Agent) -> None:
        silent, other = Visitor(machine, "one"), Visitor(machine, "two")
        await silent.ask(start("k1"))
        began = machine.loop.time()
        while machine.loop.time() - began < SILENCE - 2:
            assert await other.claimed() == {"k1": True}
            await asyncio.sleep(5)
        await asyncio.sleep(SILENCE + 3 - (machine.loop.time() - began))
        assert await other.claimed() == {"k1": False}
        assert await silent.is_dismissed()

    in_time(monkeypatch, story)


def test_one_of_two_connections_of_a_gateway_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that knows the machine by two names, and loses the connection by one of them, still answers for its kernels."""

    async def story(machine: Machine, agent: Agent) -> None:
        first, second = Visitor(machine, "one", host="host0"), Visitor(machine, "one", host="alias")
        await first.ask(start("k1", orphan_timeout=5.0))
        await second.ask(Adopt(["k1"]))
        first.writer.close()
        for _ in range(4):
            await asyncio.sleep(5)
            assert await second.claimed() == {"k1": True}
        second.writer.close()
        await asyncio.sleep(15)
        assert not machine.processes

    in_time(monkeypatch, story)


def test_an_end_is_told_to_the_owner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has lost a kernel to another gateway hears so when it comes back, also where that kernel has ended since."""

    async def story(machine: Machine, agent: Agent) -> None:
        one, two = Visitor(machine, "one"), Visitor(machine, "two")
        await one.ask(start("k1"))
        await asyncio.sleep(1)
        one.writer.close()
        await asyncio.sleep(1)
        assert (await two.ask(Adopt(["k1"])))["result"]["k1"]["lease"] == 2
        machine.processes[agent.kernels["k1"].pid].end(3)
        await asyncio.sleep(1)
        again = Visitor(machine, "one")
        found = (await again.ask(Adopt(["k1"], {"k1": 1})))["result"]["k1"]
        assert (found["state"], found["owner"], found["lease"]) == (TAKEN_OVER, "two", 2)

    in_time(monkeypatch, story)


def test_only_a_new_owner_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that comes back for what it has costs no write; another one has a higher number, which is on record."""

    async def story(machine: Machine, agent: Agent) -> None:
        await Visitor(machine, "one").ask(start("k1"))
        await asyncio.sleep(1)
        (record,) = machine.disk.values()
        assert (record["owner"], record["lease"]) == ("one", 1)
        machine.disk.clear()
        for _ in range(2):
            found = (await Visitor(machine, "one").ask(Adopt(["k1"], {"k1": 1})))["result"]["k1"]
            assert (found["owner"], found["lease"]) == ("one", 1)
            assert not machine.disk
        assert (await Visitor(machine, "two").ask(Adopt(["k1"])))["result"]["k1"]["lease"] == 2
        (record,) = machine.disk.values()
        assert (record["owner"], record["lease"]) == ("two", 2)

    in_time(monkeypatch, story)


def test_who_starts_a_kernel_has_it_until_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gateway that asks for it meanwhile is told when it may ask again, and gets it then."""

    async def story(machine: Machine, agent: Agent) -> None:
        one, two = Visitor(machine, "one"), Visitor(machine, "two")
        await one.ask(start("k1"))
        assert (await two.ask(Adopt(["k1"])))["result"]["k1"]["state"] == ELSEWHERE
        assert agent.kernels["k1"].holder == ("one", "1")
        assert (await two.hear())["event"] == "ready"
        assert (await two.ask(Adopt(["k1"])))["result"]["k1"]["lease"] == 2
        assert agent.kernels["k1"].holder == ("two", "1")

    in_time(monkeypatch, story)


@pytest.mark.parametrize(("owner", "held", "lease"), [("one", 1, 1), ("one", 5, 5), ("two", 5, 6), ("two", 0, 2)])
def test_no_number_is_given_twice(monkeypatch: pytest.MonkeyPatch, owner: str, held: int, lease: int) -> None:
    """The agent before may have been killed before it could write down the last one: the higher one counts, and a new owner has
    a higher one than that."""

    async def story(machine: Machine, agent: Agent) -> None:
        await Visitor(machine, "one").ask(start("k1"))
        await asyncio.sleep(1)
        machine.end_agent()
        machine.bring_up()
        found = await Visitor(machine, owner).ask(Adopt(["k1"], {"k1": held} if held else {}))
        assert (found["result"]["k1"]["owner"], found["result"]["k1"]["lease"]) == (owner, lease)

    in_time(monkeypatch, story)


def test_a_new_owner_is_told_when_it_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that is killed after its answer leaves the next one the number; and who started the kernel, and lost it before it
    heard so, is told who has it."""

    async def story(machine: Machine, agent: Agent) -> None:
        one, two = Visitor(machine, "one"), Visitor(machine, "two")

        async def settle(seconds: float) -> bool:
            await asyncio.sleep(2)
            return True

        monkeypatch.setattr(agent._disk, "settle", settle)
        starting = asyncio.ensure_future(one.ask(start("k1")))
        await asyncio.sleep(1)
        began = machine.loop.time()
        assert (await two.ask(Adopt(["k1"])))["result"]["k1"]["lease"] == 2
        assert machine.loop.time() - began > 1.9
        began = machine.loop.time()
        await two.ask(Adopt(["k1"], {"k1": 2}))
        assert machine.loop.time() - began < 0.1
        refused = await starting
        assert (refused["kind"], refused["owner"], refused["lease"]) == ("taken", "two", 2)

    in_time(monkeypatch, story)


def test_kernels_of_an_agent_that_was_replaced_are_no_orphans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a gateway answers for them is the other agent's to know; this one serves the streams that are open to it."""

    async def story(machine: Machine, agent: Agent) -> None:
        one, other = Visitor(machine, "one"), Visitor(machine, "two")
        await one.ask(start("k1", orphan_timeout=5.0))
        agent._is_superseded = True
        one.writer.close()
        for _ in range(4):
            await asyncio.sleep(5)
            assert await other.claimed() == {"k1": False}
        agent._is_superseded = False
        await asyncio.sleep(2)
        assert not machine.processes

    in_time(monkeypatch, story)


def test_an_orphan_is_ended_once_and_waits_for_who_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds where a kernel does not heed SIGTERM; a gateway that adopts it meanwhile learns how it ended."""

    async def story(machine: Machine, agent: Agent) -> None:
        one = Visitor(machine, "one")
        await one.ask(start("k1", orphan_timeout=5.0))
        kernel = agent.kernels["k1"]
        machine.processes[kernel.pid].stubborn = True
        stop, stopped = kernel.stop, []

        async def stop_and_count(grace: float) -> None:
            stopped.append(grace)
            await stop(grace)

        monkeypatch.setattr(kernel, "stop", stop_and_count)
        one.writer.close()
        await asyncio.sleep(9)
        again = Visitor(machine, "one", "2")
        assert (await again.ask(Adopt(["k1"])))["result"]["k1"]["state"] == "running"
        await asyncio.sleep(9)
        assert len(stopped) == 1
        assert not machine.processes
        assert await again.claimed() == {"k1": True}
        assert (await again.ask(Adopt(["k1"])))["result"]["k1"]["exit_code"] == -9

    in_time(monkeypatch, story)


def test_a_start_waits_for_the_end_of_its_kernel_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than its gateway waits for the answer; one that takes longer may start on another host."""

    async def story(machine: Machine, agent: Agent) -> None:
        one, second = Visitor(machine, "one"), Visitor(machine, "one", host="alias")
        await one.ask(start("k1"))
        machine.processes[agent.kernels["k1"].pid].stubborn = True
        ending = asyncio.ensure_future(one.ask(Stop("k1", "a1", grace=10.0)))
        await asyncio.sleep(0.1)
        began = machine.loop.time()
        refused = await second.ask(start("k1"))
        assert refused["kind"] == "host"
        assert machine.loop.time() - began == pytest.approx(ENDING_AWAITED, abs=0.1)
        await asyncio.sleep(ENDING_AWAITED + 1.5)
        assert "error" not in await second.ask(start("k1"))
        assert (await ending)["result"]["exit_code"] == -9

    in_time(monkeypatch, story)


def test_kernels_whose_ids_begin_alike_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where both are looked for at the same moment, and nothing of the first is on the disk."""

    async def story(machine: Machine, agent: Agent) -> None:
        slow_disk(monkeypatch, agent)
        visitors = [Visitor(machine, owner) for owner in ("one", "two", "three")]
        alike = [f"{'a' * 12}-{number}" for number in range(4)]
        await asyncio.gather(*(each.ask(start(kernel)) for each, kernel in zip(visitors, alike, strict=False)))
        await visitors[0].ask(start(alike[3]))
        assert set(agent.kernels) == set(alike)
        assert len({kernel.directory for kernel in agent.kernels.values()}) == len(machine.disk) == 4

    in_time(monkeypatch, story)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_attempts_on_record_the_one_that_runs_counts(monkeypatch: pytest.MonkeyPatch, is_first: bool) -> None:
    """An agent that was killed between two attempts leaves both; the earlier one's record goes, whichever is found first."""

    async def story(machine: Machine, agent: Agent) -> None:
        await Visitor(machine, "one").ask(start("k1"))
        await asyncio.sleep(1)
        machine.end_agent()
        ((folder, record),) = machine.disk.items()
        earlier = {folder.with_name("k1-0"): {**record, "attempt": "a0", "state": "exited", "pid": 1}}
        machine.disk = {**machine.disk, **earlier} if is_first else {**earlier, **machine.disk}
        machine.bring_up()
        assert machine.agent is not None
        assert machine.agent.kernels["k1"].attempt == "a1"
        await asyncio.sleep(1)
        assert list(machine.disk) == [folder]
        assert len(machine.processes) == 1

    in_time(monkeypatch, story)


def test_a_machine_that_stood_still_has_missed_nobodys_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause of the whole machine each gateway has its minute again, and no more than that."""

    async def story(machine: Machine, agent: Agent) -> None:
        gateway = Visitor(machine, "one")
        await gateway.ask(start("k1"))
        await asyncio.sleep(1)
        assert isinstance(machine.loop, VirtualLoop)
        machine.loop.now += 10 * SILENCE
        await asyncio.sleep(SILENCE - 5)
        assert await gateway.claimed() == {"k1": True}
        await asyncio.sleep(SILENCE + 5)
        assert await gateway.is_dismissed()

    in_time(monkeypatch, story)


@pytest.mark.parametrize(("silence", "is_ended"), [(HEARD_LATELY - 2, True), (HEARD_LATELY + 2, False)])
def test_a_connection_that_ends_after_silence_says_nothing_of_its_gateway(
    monkeypatch: pytest.MonkeyPatch, silence: float, is_ended: bool
) -> None:
    """One that was heard lately has ended itself, and its kernels end with it; else the network was cut, and they wait."""

    async def story(machine: Machine, agent: Agent) -> None:
        gateway, other = Visitor(machine, "one", gone_timeout=60.0), Visitor(machine, "two")
        await gateway.ask(start("k1"))
        await asyncio.sleep(silence)
        gateway.writer.close()
        for _ in range(9):
            await asyncio.sleep(6)
            assert await other.claimed() == {"k1": False}
        for _ in range(3):
            await asyncio.sleep(6)
            await other.ask(Ping())
        assert await other.claimed() == ({} if is_ended else {"k1": False})
        assert bool(machine.processes) != is_ended

    in_time(monkeypatch, story)


def test_an_ended_kernel_is_remembered_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that comes back within it learns how its kernel ended; the hour begins with the end."""

    async def story(machine: Machine, agent: Agent) -> None:
        gateway = Visitor(machine, "one")
        await gateway.ask(start("k1"))
        gateway.writer.close()
        await asyncio.sleep(EXITED_KEPT)
        machine.processes[agent.kernels["k1"].pid].end(3)
        await asyncio.sleep(EXITED_KEPT - 5)
        again = Visitor(machine, "one", "2")
        assert (await again.ask(Adopt(["k1"])))["result"]["k1"]["exit_code"] == 3
        again.writer.close()
        await asyncio.sleep(EXITED_KEPT + 5)
        assert not agent.kernels

    in_time(monkeypatch, story)


def test_an_agent_that_nobody_needs_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its five minutes begin when it has neither a kernel nor a visitor."""

    async def story(machine: Machine, agent: Agent) -> None:
        gateway = Visitor(machine, "one")
        await gateway.ask(start("k1"))
        gateway.writer.close()
        await asyncio.sleep(2 * IDLE)
        assert machine.agent is agent
        gateway = Visitor(machine, "one", "2")
        await gateway.ask(Stop("k1", forget=True, force=True))
        assert not agent.kernels
        for _ in range(int(2 * IDLE / 10)):
            await gateway.ask(Ping())
            await asyncio.sleep(10)
        assert machine.agent is agent
        gateway.writer.close()
        await asyncio.sleep(IDLE - 5)
        assert machine.agent is agent
        await asyncio.sleep(10)
        assert machine.agent is None

    in_time(monkeypatch, story)


def test_of_two_starts_that_believe_the_same_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes behind the kernels that are there; those that end, and a start's own earlier attempt, do not count."""

    async def story(machine: Machine, agent: Agent) -> None:
        one, two = Visitor(machine, "one"), Visitor(machine, "two")
        first, second = await asyncio.gather(one.ask(start("k1", believed=0)), two.ask(start("k2", believed=0)))
        assert "error" not in first
        assert second["kind"] == "busier"
        assert two.events[-1] == {"event": "load", "kernels": ["k1"]}
        assert "error" not in await two.ask(start("k2", believed=1))
        assert (await two.ask(start("k3", believed=1)))["kind"] == "busier"
        assert (await two.ask(Signal("k2", 9)))["result"] is True
        await asyncio.sleep(1)
        assert two.events[-1]["kernels"] == ["k1", "k2"]
        assert "error" not in await two.ask(start("k2", believed=1))
        assert (await two.ask(start("k2", believed=1)))["kind"] == "host"  # it runs already, and does not count itself

    in_time(monkeypatch, story)


def test_a_gateway_that_reads_nothing_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for it has a bound, beyond which its connection ends; an answer that is too long for it is an error."""

    async def story(machine: Machine, agent: Agent) -> None:
        gateway = Visitor(machine, "one")
        await gateway.ask(Ping())
        (served,) = agent.gateways
        served.send({"id": 7, "result": "x" * MAX_ANSWER})
        answer = await gateway.hear()
        assert (answer["id"], answer["kind"]) == (7, "internal")
        assert f"at most {MAX_ANSWER} are allowed" in answer["error"]
        for _ in range(MAX_MESSAGE // 1000 // 1000 + 3):
            served.send({"event": "x" * 1000 * 1000})
        assert await gateway.is_dismissed()

    in_time(monkeypatch, story)


def slow_disk(monkeypatch: pytest.MonkeyPatch, agent: Agent) -> None:
    """Have the disk of *agent* take half a second for whatever a start asks of it."""

    async def done(seconds: float, job: Callable[[], Any]) -> Any:
        await asyncio.sleep(0.5)
        return job()

    monkeypatch.setattr(agent._disk, "done", done)


def test_a_start_counts_before_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is asked for room it is one more for other gateways, and no more once it was stopped before it began."""

    async def story(machine: Machine, agent: Agent) -> None:
        slow_disk(monkeypatch, agent)
        one, two = Visitor(machine, "one"), Visitor(machine, "two")
        starting = asyncio.ensure_future(one.ask(start("k1", believed=0)))
        await asyncio.sleep(0.1)
        assert (await two.ask(start("k2", believed=0)))["kind"] == "busier"
        assert two.events[-1]["kernels"] == ["k1"]
        assert (await two.ask(Stop("k1", "a1", force=True)))["result"]["stopped"]
        assert (await starting)["kind"] == "start"
        await two.ask(Ping())
        assert two.events[-1]["kernels"] == []
        assert not machine.processes

    in_time(monkeypatch, story)


def test_nothing_is_started_for_a_gateway_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request may have waited for a disk, or for the end of an earlier kernel, and nobody would hear of what it began."""

    async def story(machine: Machine, agent: Agent) -> None:
        slow_disk(monkeypatch, agent)
        gone = Visitor(machine, "one")
        starting = asyncio.ensure_future(gone.ask(start("k1")))
        await asyncio.sleep(0.1)
        gone.writer.close()
        await asyncio.wait({starting})
        assert starting.exception() is not None
        await asyncio.sleep(2)
        assert not machine.processes

    in_time(monkeypatch, story)


def test_what_counts_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a start that failed, nor the late word of an attempt that was replaced, nor the next agent changes the count."""

    async def story(machine: Machine, agent: Agent) -> None:
        gateway = Visitor(machine, "one")
        machine.is_full = True
        assert (await gateway.ask(start("k0")))["kind"] == "host"
        assert agent._running() == []
        machine.is_full = False
        for kernel in ("k1", "k2"):
            await gateway.ask(start(kernel))
        earlier = agent.kernels["k1"]
        for kernel in ("k1", "k2"):
            await gateway.ask(Signal(kernel, 9))
        await asyncio.sleep(1)
        assert agent._running() == []
        await gateway.ask(start("k1"))
        agent._notify(earlier, Exited("k1", "a1", exit_code=-9))
        assert agent._running() == ["k1"]
        machine.end_agent()
        machine.bring_up()
        assert machine.agent is not None
        assert set(machine.agent.kernels) == {"k1", "k2"}
        assert machine.agent._running() == ["k1"]

    in_time(monkeypatch, story)


def test_an_agent_leaves_for_none_but_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks it to leave is told that it does not while another gateway is connected, or a kernel is there."""

    async def story(machine: Machine, agent: Agent) -> None:
        one, two = Visitor(machine, "one"), Visitor(machine, "two")
        await two.ask(Ping())
        assert (await one.ask(Leave()))["result"] is False
        two.writer.close()
        await asyncio.sleep(1)
        await one.ask(start("k1"))
        assert (await one.ask(Leave()))["result"] is False
        await one.ask(Stop("k1", forget=True))
        assert machine.agent is agent
        assert (await one.ask(Leave()))["result"] is True
        await asyncio.sleep(2)
        assert machine.agent is None

    in_time(monkeypatch, story)


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0"}, {"A\0": "x"}])
def test_an_environment_that_no_process_can_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str]
) -> None:
    """A login's environment is that of all later kernels, none of which could be executed with it."""

    async def story(machine: Machine, agent: Agent) -> None:
        visitor = Visitor(machine, "one")
        assert (await visitor.ask(Login(env, 0o022)))["kind"] == "malformed"
        assert agent.login is None
        await visitor.ask(Login({"A": "x=y"}, 0o022))
        assert agent.login == {"A": "x=y"}

    in_time(monkeypatch, story)
