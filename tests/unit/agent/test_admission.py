"""Whose turn it is to start, in virtual time, on machines whose processors and processes are imagined."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from eg_distributed.agent.admission import LONGEST, LOOK, MOST, QUIET, TELL, Admission, Turn
from eg_distributed.agent.processors import Processors, Use
from eg_distributed.agent.spawning import StartError
from eg_distributed.protocol import Start
from eg_distributed.wire import Message
from tests.simulation.loop import VirtualLoop
from tests.until import block_until

STEP = 0.01  # seconds of the imagined scheduler


class Process:
    """A kernel that is being started: it computes for so many *seconds*, and is ready then."""

    def __init__(self, pid: int, seconds: float, *, hangs: bool = False, child: bool = False) -> None:
        self.pid = pid
        self.left = seconds
        self.used = 0.0
        self.hangs = hangs
        self.has_child = child  # which does the work, in its session
        self.ready = asyncio.Event()

    @property
    def is_starting(self) -> bool:
        """Whether it is not ready yet."""
        return not self.ready.is_set()

    @property
    def runs(self) -> bool:
        """Whether it would use a processor."""
        return self.is_starting and not self.hangs


class Machine(Processors):
    """Processors that are shared evenly by what runs: kernels that start, and *others*; no start waits for anything else."""

    spare = 1.0
    least = 1

    def __init__(self, count: int, others: int = 0) -> None:
        self.processors = count
        self.others = others
        self.processes: dict[int, Process] = {}
        self.most = 0  # that ran at once
        self._idle = 0.0

    def count(self) -> int:
        return self.processors

    def idle(self) -> float:
        return self._idle

    def used(self, pid: int) -> Use | None:
        process = self.processes[pid]
        return Use(0.0, runs=False) if process.has_child else Use(process.used, process.runs)

    def used_below(self, pids: Iterable[int]) -> dict[int, Use]:
        return {pid: Use(self.processes[pid].used, self.processes[pid].runs) for pid in pids}

    def begin(self, seconds: float, **how: bool) -> Process:
        """Execute a process."""
        pid = len(self.processes) + 1
        process = self.processes[pid] = Process(pid, seconds, **how)
        return process

    async def run(self) -> None:
        """Give what runs its share of each moment."""
        while True:
            running = [process for process in self.processes.values() if process.runs]
            self.most = max(self.most, len(running))
            all_running = len(running) + self.others
            share = STEP * min(1.0, self.processors / max(1, all_running))
            for process in running:
                process.used += share
                process.left -= share
                if process.left <= 0:
                    process.ready.set()
            self._idle += STEP * self.processors - share * all_running
            await asyncio.sleep(STEP)


class Gateway:
    """What is told to a gateway."""

    def __init__(self, owner: str = "one") -> None:
        self.owner = owner
        self.told: list[Message] = []

    def send(self, message: Message) -> None:
        self.told.append(message)

    def before(self, kernel: str) -> list[int]:
        """Return what was told of a kernel's place, one after the other."""
        starts = [each for message in self.told for each in message["starts"]]
        return [each["before"] for each in starts if each["kernel"] == kernel]


def asked(kernel: str, user: str = "", *, queues: bool = True) -> Start:
    """Return the request for a kernel."""
    env = {"KERNEL_USERNAME": user} if user else {}
    what: dict[str, Any] = {"argv": ["true"], "spec_env": {}, "env": env, "transport": "ipc", "key": "k"}
    return Start(kernel, "a1", "one", "", **what, signature_scheme="s", orphan_timeout=0.0, queues=queues)


class Scene:
    """A machine and its admission, and when each of its starts began and was ready."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.admission = Admission(machine)
        self.gateway = Gateway()
        self.began: dict[str, float] = {}
        self.ready: dict[str, float] = {}

    async def start(
        self, kernel: str, user: str = "", seconds: float = 1.0, *, weight: float = 1.0, **how: bool
    ) -> None:
        """Start a kernel, as the agent does, and wait until it is ready."""
        loop = asyncio.get_running_loop()
        turn = self.admission.ask(asked(kernel, user), self.gateway, weight)
        await turn.come()
        self.began[kernel] = loop.time()
        process = self.machine.begin(seconds, **how)
        self.admission.follow(turn, process)
        await process.ready.wait()
        self.ready[kernel] = loop.time()
        self.admission.note_over(process)

    def begin(self, kernel: str, user: str = "", seconds: float = 1.0, **how: Any) -> asyncio.Task[None]:
        """Begin to start a kernel."""
        return asyncio.ensure_future(self.start(kernel, user, seconds, **how))


Story = Callable[[Scene], Coroutine[Any, Any, None]]


def in_time(story: Story, processors: int = 2, others: int = 0) -> None:
    """Run *story* in virtual time."""
    loop = VirtualLoop()

    async def live() -> None:
        scene = Scene(Machine(processors, others))
        running = asyncio.ensure_future(scene.machine.run())
        await story(scene)
        running.cancel()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    try:
        loop.run_until_complete(live())
    finally:
        loop.close()


def test_the_first_of_a_storm_are_ready_early_and_the_last_no_later() -> None:
    """Of 32 starts on two processors the first is ready in the time of one alone, half of them in half the time of all,
    and all in the time of their work."""

    async def story(scene: Scene) -> None:
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(scene.start(f"k{number}", seconds=0.4) for number in range(32)))
        took = sorted(ready - began for ready in scene.ready.values())
        assert took[0] < 0.45
        assert took[-1] < 1.1 * 32 * 0.4 / 2
        assert statistics.median(took) < 0.55 * took[-1]
        assert scene.machine.most == 2
        assert list(scene.ready) == [f"k{number}" for number in range(32)]

    in_time(story)


def test_users_take_turns() -> None:
    """Who starts one kernel behind another user's thirty waits for one or two of them, and each user's start in order."""

    async def story(scene: Scene) -> None:
        storm = [scene.begin(f"a{number}", "ann") for number in range(30)]
        await asyncio.sleep(STEP)
        await asyncio.gather(scene.start("b0", "bob"), scene.start("c0", "eve"), scene.start("b1", "bob"))
        assert len(scene.ready) <= 8
        await asyncio.gather(*storm)
        of_ann = [kernel for kernel in scene.began if kernel[0] == "a"]
        assert of_ann == [f"a{number}" for number in range(30)]

    in_time(story)


@pytest.mark.parametrize("patience", [QUIET, LONGEST], ids=["it hangs", "it computes"])
def test_nobody_waits_for_a_start_that_does_not_end(patience: float) -> None:
    """One that uses no processor gives its turn up at once; one that computes for ever, after ten seconds."""

    async def story(scene: Scene) -> None:
        hanging = scene.begin("h", seconds=1e6, hangs=patience == QUIET)
        await asyncio.sleep(STEP)
        began = asyncio.get_running_loop().time()
        await scene.start("k", seconds=0.1)
        waited = scene.began["k"] - began
        assert patience - 2 * LOOK < waited < patience + 2 * LOOK
        assert not hanging.done()

    in_time(story, processors=1)


def test_a_start_that_is_not_executed_gives_its_turn_up() -> None:
    """Its files may be on a mount that hangs: there is no process yet that could use anything."""

    async def story(scene: Scene) -> None:
        turn = scene.admission.ask(asked("h"), scene.gateway)
        await turn.come()
        began = asyncio.get_running_loop().time()
        await scene.start("k")
        assert scene.began["k"] - began < QUIET + 2 * LOOK
        turn.leave()

    in_time(story, processors=1)


def test_a_shell_that_waits_for_its_kernel_keeps_the_turn() -> None:
    """What was executed may be idle while another process that it has started computes."""

    async def story(scene: Scene) -> None:
        wrapped = scene.begin("w", seconds=3.0, child=True)
        await asyncio.sleep(STEP)
        await scene.start("k")
        assert wrapped.done()
        assert scene.began["k"] >= scene.ready["w"]

    in_time(story, processors=1)


def test_work_of_before_anybody_waited_is_no_idleness() -> None:
    """Starts are looked at from when another one waits: those that wrap what computes keep their turns then."""

    async def story(scene: Scene) -> None:
        wrapped = scene.begin("w", seconds=3.0, child=True)
        await asyncio.sleep(2 * QUIET)
        await scene.start("k")
        assert wrapped.done()
        assert scene.began["k"] >= scene.ready["w"]

    in_time(story, processors=1)


def test_a_look_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system refuses once, the next look finds a start that hangs."""
    refusals = [OSError("no descriptors"), OSError("no descriptors")]
    idle = Machine.idle

    def idle_or_refused(machine: Machine) -> float:
        if len(refusals) == 1:
            raise refusals.pop()
        refusals[:1] = []
        return idle(machine)

    async def story(scene: Scene) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        scene.begin("hangs", seconds=1.0, hangs=True)
        await asyncio.sleep(STEP)
        await asyncio.wait_for(scene.start("k"), LONGEST)

    monkeypatch.setattr(Machine, "idle", idle_or_refused)
    in_time(story, processors=1)


@pytest.mark.parametrize(("others", "most"), [(0, 8), (2, 6), (64, 4)])
def test_fewer_start_at_once_where_others_compute(others: int, most: int) -> None:
    """As many as the processors that others leave, as evenly as the system shares them, and at least half of all."""

    async def story(scene: Scene) -> None:
        starts = [scene.begin(f"k{number}", seconds=0.4) for number in range(200)]
        await asyncio.sleep(5.0)
        scene.machine.most = 0
        await asyncio.sleep(2.0)
        assert scene.machine.most == most
        assert not all(start.done() for start in starts)

    in_time(story, processors=8, others=others)


@pytest.mark.parametrize(("processors", "most"), [(1, 2), (2, 3), (8, 10)])
def test_a_few_more_than_processors_start_at_once(monkeypatch: pytest.MonkeyPatch, processors: int, most: int) -> None:
    """A real start waits for disks and sockets a part of its time, in which another one computes."""
    monkeypatch.setattr(Machine, "spare", Processors.spare)
    monkeypatch.setattr(Machine, "least", Processors.least)

    async def story(scene: Scene) -> None:
        await asyncio.gather(*(scene.start(f"k{number}", seconds=0.4) for number in range(30)))
        assert scene.machine.most == most

    in_time(story, processors=processors)


def test_who_leaves_the_queue_leaves_nothing() -> None:
    """A start that is cancelled, is stopped, or whose gateway has gone leaves at once, and those behind it move up."""

    async def story(scene: Scene) -> None:
        other = Gateway("two")
        first = scene.begin("k0")
        await asyncio.sleep(STEP)
        cancelled, stopped, last = scene.begin("k1"), scene.begin("k2"), scene.begin("k4")
        gone = asyncio.ensure_future(scene.admission.ask(asked("k3"), other).come())
        await asyncio.sleep(STEP)
        cancelled.cancel()
        assert not scene.admission.withdraw("k2", "another", "stopped")
        assert scene.admission.withdraw("k2", "a1", "stopped")
        scene.admission.give_up(other)
        for task, said in ((stopped, "stopped"), (gone, "the gateway that asked is gone")):
            with pytest.raises(StartError, match=said):
                await task
        assert [(turn.asked.kernel, before) for turn, before in scene.admission.waiting()] == [("k4", 0)]
        await asyncio.gather(first, last)
        assert list(scene.ready) == ["k0", "k4"]

    in_time(story, processors=1)


def test_a_turn_that_comes_in_the_moment_of_a_cancellation_is_passed_on() -> None:
    """A start that has got its turn and is cancelled before it could take it does not keep it."""

    async def story(scene: Scene) -> None:
        first = scene.admission.ask(asked("k0"), scene.gateway)
        await first.come()
        second, third = scene.begin("k1"), scene.begin("k2")
        await asyncio.sleep(STEP)
        first.leave()
        second.cancel()
        await third
        assert list(scene.ready) == ["k2"]

    in_time(story, processors=1)


def test_gateways_are_told_how_their_starts_wait() -> None:
    """When a start begins to wait, each second, and when its turn has come; one that begins at once is no news."""

    async def story(scene: Scene) -> None:
        starts = [scene.begin(f"k{number}", seconds=2 * TELL) for number in range(3)]
        await asyncio.gather(*starts)
        assert scene.gateway.before("k0") == []
        told = scene.gateway.before("k1")
        assert told[0] == 0
        assert told[-1] == -1
        assert 3 <= len(told) <= 4
        assert scene.gateway.before("k2")[0] == 1
        begun = [each["begun"] for message in scene.gateway.told for each in message["starts"]]
        assert begun == sorted(begun)
        assert begun[-1] == 3

    in_time(story, processors=1)


def test_a_start_of_an_older_gateway_does_not_wait() -> None:
    """It would take the silence for a host that hangs; but it counts, so that others wait for it."""

    async def story(scene: Scene) -> None:
        turns: list[Turn] = []
        for number in range(3):
            turns.append(scene.admission.ask(asked(f"old{number}", queues=False), scene.gateway))
            await turns[-1].come()
        waiting = scene.begin("k0")
        await asyncio.sleep(STEP)
        assert scene.gateway.before("k0") == [0]
        for turn in turns:
            turn.leave()
        await waiting

    in_time(story, processors=1)


def test_light_starts_pass_by() -> None:
    """A forked kernel does not stand behind cold ones; and of very many, as many run at once as weigh a processor each."""

    async def story(scene: Scene) -> None:
        cold = [scene.begin(f"c{number}", seconds=5.0) for number in range(4)]
        await asyncio.sleep(STEP)
        light = [scene.begin(f"w{number}", seconds=0.05, weight=0.1) for number in range(30)]
        await asyncio.sleep(STEP)
        assert len(scene.began) == 1 + 10
        await asyncio.gather(*light)
        assert len(scene.ready) == 30
        await asyncio.gather(*cold)

    in_time(story, processors=1)


def test_a_light_start_that_becomes_a_cold_one_counts_as_such() -> None:
    """Where the template was of no use after all, others wait for the start as for any that is executed."""

    async def story(scene: Scene) -> None:
        turn = scene.admission.ask(asked("w"), scene.gateway, 0.1)
        await turn.come()
        process = scene.machine.begin(1.0)
        scene.admission.follow(turn, process)
        scene.admission.note_cold(turn, lambda _: 0.1)
        cold, light = scene.begin("c0"), scene.begin("w0", seconds=0.1, weight=0.1)
        await asyncio.sleep(2 * STEP)
        assert list(scene.began) == ["w0"]
        await process.ready.wait()
        scene.admission.note_over(process)
        await asyncio.gather(cold, light)

    in_time(story, processors=1)


def test_light_starts_that_all_become_cold_ones_do_not_rush_in() -> None:
    """Where the templates of a storm are of no use, what waits behind the first to find out goes on as cold starts do."""

    async def story(scene: Scene) -> None:
        async def start(kernel: str) -> None:
            turn = scene.admission.ask(asked(kernel), scene.gateway, 0.1)
            await turn.come()
            scene.began[kernel] = asyncio.get_running_loop().time()
            await asyncio.sleep(STEP)  # a fork is tried
            scene.admission.note_cold(turn, lambda _: 1.0)
            process = scene.machine.begin(0.4)
            scene.admission.follow(turn, process)
            await process.ready.wait()
            scene.admission.note_over(process)

        starts = [asyncio.ensure_future(start(f"w{number}")) for number in range(30)]
        await asyncio.sleep(3 * STEP)
        assert len(scene.began) == 10
        await asyncio.sleep(11 * 0.4)
        scene.machine.most = 0
        await asyncio.gather(*starts)
        assert scene.machine.most == 1
        assert list(scene.began) == [f"w{number}" for number in range(30)]

    in_time(story, processors=1)


def test_the_queue_has_a_bound() -> None:
    """One start more than may wait is refused with a remedy, as the host's fault, so that another host is tried."""

    async def story(scene: Scene) -> None:
        turn = scene.admission.ask(asked("first"), scene.gateway)
        await turn.come()
        waiting = [
            asyncio.ensure_future(scene.admission.ask(asked(f"k{n}"), scene.gateway).come()) for n in range(MOST)
        ]
        await asyncio.sleep(STEP)
        with pytest.raises(StartError, match=f"{MOST} starts wait") as refused:
            await scene.admission.ask(asked("more"), scene.gateway).come()
        assert refused.value.host_fault
        assert refused.value.remedy
        scene.admission.close()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert {str(error) for error in ended} == {"the agent is leaving"}

    in_time(story, processors=1)


def test_this_machine_has_processors() -> None:
    """What is read of the system is there: processors, their idle time, and the use of a process, which grows as it computes."""
    processors = Processors()
    assert 1 <= processors.count() <= (os.cpu_count() or 1)
    idle = processors.idle()
    assert idle is not None
    assert idle > 0
    before = processors.used(os.getpid())
    assert before is not None
    while (after := processors.used(os.getpid())) is not None and after.seconds < before.seconds + 0.02:
        pass
    assert after is not None
    assert after.runs
    assert processors.used(2**22 + 1) is None


def test_what_a_shell_has_started_counts_for_it() -> None:
    """Also where the system tells no process's children: those of its session do."""
    code = "while True: pass"
    argv = ["sh", "-c", 'read begin; "$0" -c "$1" & wait', sys.executable, code]
    shell = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
    try:
        assert shell.stdin is not None
        shell.stdin.write(b"\n")
        shell.stdin.close()
        processors = Processors()
        block_until("its child computes", lambda: processors.used_below([shell.pid])[shell.pid].seconds > 0.1)
        alone = processors.used(shell.pid)
        assert alone is not None
        assert alone.seconds < 0.1
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    assert processors.used_below([shell.pid]) == {}
