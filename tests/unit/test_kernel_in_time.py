"""What a kernel's handle makes of what its node says, step by step and in virtual time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.errors import HostUnresponsive, KernelTaken
from eg_distributed.kernel import RemoteKernel, State, read_launcher_answer
from eg_distributed.protocol import ELSEWHERE, TAKEN_OVER, Exited, Found, Missing, Ready, Stalled, Taken
from eg_distributed.settings import Distributed
from eg_distributed.spec_folder import SpecFolders
from eg_distributed.transports import Transports
from eg_distributed.wire import Malformed, Message
from tests.simulation.gateways import SimEndpoints

from .malformed_agent import described, honest, reply
from .test_node_in_time import Held, in_time

ARGV = ("other", "{connection_file}")


class Kernel(RemoteKernel):
    """A handle on the node of *held*; adopted, and not heard of yet."""

    def __init__(self, held: Held, settings: Distributed | None = None) -> None:
        self.transports = Transports()
        folders = SpecFolders(0)
        settings = settings or Distributed(gateway_id="tests", ssh_config="")
        identity = ("tests", "1")
        super().__init__(
            "k1", settings, Path("/simulated/c"), identity, held.abandoned, folders, self.transports, SimEndpoints
        )
        self.be_adopted("a1", {"key": "k"}, None)
        self.node = held.node
        self.deaths: list[RemoteKernel] = []
        self.on_exit = self.deaths.append

    def found(self, **fields: Any) -> None:
        """Have the node say what it has found."""
        self.hear(Found.read(described("k1", **{"lease": 3, **fields})))


def with_kernel(story: Callable[[Held, Kernel], Coroutine[Any, Any, None]]) -> None:
    """Run *story* of a kernel that runs on a node which is connected, in virtual time."""

    async def live(held: Held) -> None:
        await held.node.connect()
        held.node.running = {"k1"}
        kernel = Kernel(held)
        kernel.found()
        await story(held, kernel)

    in_time(live)


def test_a_stall_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Clients hear of each one; the log, which a fast kernel would fill, of the first in a minute."""

    async def story(held: Held, kernel: Kernel) -> None:
        told = []
        kernel.on_stalled = lambda: told.append(1)
        for _ in range(5):
            kernel.hear(Stalled("k1", "a1", 1.0))
            await asyncio.sleep(11)
        assert len(told) == 5
        assert caplog.text.count("taken too slowly") == 1
        await asyncio.sleep(6)
        kernel.hear(Stalled("k1", "a1", 1.0))
        assert caplog.text.count("taken too slowly") == 2

    with_kernel(story)


def test_the_loss_of_many_streams_is_one_loss() -> None:
    """Each client has streams of its own; what the kernel's own end takes along is none."""

    async def story(held: Held, kernel: Kernel) -> None:
        told: list[str] = []
        kernel.on_loss = told.append
        assert kernel.endpoints.on_broken is not None
        for _ in range(4):
            kernel.endpoints.on_broken()
            await asyncio.sleep(1)
        assert len(told) == 1
        await asyncio.sleep(2)
        kernel.endpoints.on_broken()
        assert len(told) == 2
        await asyncio.sleep(10)
        kernel.hear(Exited("k1", "a1", exit_code=0))
        kernel.endpoints.on_broken()
        assert len(told) == 2

    with_kernel(story)


@pytest.mark.parametrize(
    ("lease", "attempt", "is_taken"), [(3, "a1", False), (4, "a1", True), (4, "a0", False)], ids=["old", "new", "other"]
)
def test_who_has_the_higher_number_has_the_kernel(lease: int, attempt: str, is_taken: bool) -> None:
    """A word that is older than ours, or about the attempt before, takes nothing."""

    async def story(held: Held, kernel: Kernel) -> None:
        kernel.hear(Taken("k1", attempt, "another", lease))
        assert kernel.taken_by == ("another" if is_taken else "")
        if is_taken:
            with pytest.raises(KernelTaken, match="another"):
                kernel.raise_if_taken()
        else:
            kernel.raise_if_taken()
            kernel.hear(Found.read(described("k1", attempt="", state=TAKEN_OVER, owner="another", lease=5)))
            assert kernel.taken_by == "another"

    with_kernel(story)


def test_an_adopted_kernel_is_late_when_its_host_was_long_silent() -> None:
    """A gateway that is asked for a kernel takes it from whoever has it; one that was asked long ago, from nobody."""

    async def story(held: Held, _: Kernel) -> None:
        settings = Distributed(gateway_id="tests", ssh_config="")
        kernel = Kernel(held, settings)
        await asyncio.sleep(600)
        assert not kernel.is_late  # it was not asked for yet
        kernel.note_asked()
        patience = settings.request_timeout + settings.connect_seconds()
        await asyncio.sleep(patience - 1)
        assert not kernel.is_late
        await asyncio.sleep(2)
        assert kernel.is_late
        kernel.found()
        assert not kernel.is_late

    with_kernel(story)


def test_an_attempt_that_was_replaced_is_ended_when_it_is_found() -> None:
    """It was out of sight when its kernel was started again: nobody else would end it."""

    async def story(held: Held, kernel: Kernel) -> None:
        kernel.found(attempt="a0", state="exited")
        await asyncio.sleep(1)
        assert "stop" not in held.links[-1].asked
        kernel.found(attempt="a0")
        await asyncio.sleep(1)
        (stop,) = [request["params"] for request in held.requests if request["method"] == "stop"]
        assert stop["attempt"] == "a0"
        assert (kernel.attempt, kernel.state) == ("a1", State.ALIVE)

    with_kernel(story)


def test_a_kernel_that_is_being_started_is_not_missing() -> None:
    """Its agent may not have begun with it; one that has run there and is missing has ended."""

    async def story(held: Held, kernel: Kernel) -> None:
        kernel._ready = False
        kernel.hear(Missing("k1"))
        assert (kernel.state, kernel.deaths) == (State.UNKNOWN, [])
        kernel._ready = True
        kernel.hear(Missing("k1"))
        assert (kernel.state, kernel.deaths) == (State.DEAD, [kernel])

    with_kernel(story)


def test_what_was_known_stays_where_the_node_does_not_say() -> None:
    """A number that an agent of an older release does not have, and that the kernel was ready before its agent was replaced."""

    async def story(held: Held, kernel: Kernel) -> None:
        kernel.found(lease=0, state="starting")
        assert (kernel.lease, kernel.state) == (3, State.ALIVE)
        kernel.found(lease=4)
        assert kernel.lease == 4

    with_kernel(story)


def test_an_adopted_kernel_is_what_its_node_says() -> None:
    """The attempt that a gateway had on disk may be the one before; whoever has taken the kernel since, has it in any case."""

    async def story(held: Held, _: Kernel) -> None:
        kernel = Kernel(held)
        assert not kernel.is_sure
        kernel.found(attempt="a2")
        assert (kernel.attempt, kernel.is_sure, kernel.state) == ("a2", True, State.ALIVE)
        other = Kernel(held)
        other.hear(Taken("k1", "a2", "another", 5))
        assert other.taken_by == "another"

    with_kernel(story)


@pytest.mark.parametrize(
    ("lease", "state", "is_ours"),
    [(3, "running", True), (0, "running", True), (3, "exited", True), (0, "exited", False)],
)
def test_a_dead_kernel_is_ours_by_its_number_alone(lease: int, state: str, is_ours: bool) -> None:
    """Another gateway may be about to start it again; one that runs, and that the agent has no number for, is nobody else's."""

    async def story(held: Held, _: Kernel) -> None:
        kernel, told = Kernel(held), list[int]()
        kernel.on_verified = lambda: told.append(1)
        for _again in range(2):
            kernel.found(lease=lease, state=state, exit_code=0 if state == "exited" else None)
        assert told == ([1] if is_ours else [])

    with_kernel(story)


def test_a_word_on_a_kernel_that_was_elsewhere_has_it_asked_for() -> None:
    """Its agent has it again, as an event shows, which is not all that there is to know."""

    async def story(held: Held, kernel: Kernel) -> None:
        kernel.found(state=ELSEWHERE)
        assert kernel.state is State.UNKNOWN
        before = held.asked("adopt")
        kernel.hear(Ready("k1", "a1", 7))
        assert kernel.state is State.UNKNOWN
        await asyncio.sleep(0.1)
        assert held.asked("adopt") == before + 1
        kernel.found()
        assert not kernel._elsewhere

    with_kernel(story)


def test_an_interrupt_is_for_the_attempt_that_it_was_meant_for() -> None:
    """While its host is asked whether it is there the kernel may have been started again: that one is not interrupted."""

    async def story(held: Held, kernel: Kernel) -> None:
        def restart(request: Message) -> list[bytes]:
            kernel.attempt = "a2"
            return honest(request)

        held.answers = restart
        assert await kernel.signal(signal.SIGINT) is False
        assert held.asked("signal") == 0
        held.answers = lambda request: [reply(request, True)] if request["method"] == "signal" else honest(request)
        assert await kernel.signal(signal.SIGINT) is True

    with_kernel(story)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_launcher_is_ended_with_its_own_attempt(is_replaced: bool) -> None:
    """A moment after a kernel was asked to end its launcher gets SIGTERM, unless the kernel has been started again by then."""

    async def story(held: Held, kernel: Kernel) -> None:
        ending = asyncio.ensure_future(kernel.end_launcher("a1"))
        await asyncio.sleep(0.1)
        assert held.asked("signal") == 0
        if is_replaced:
            kernel.attempt = "a2"
        await ending
        assert held.asked("signal") == (0 if is_replaced else 1)

    with_kernel(story)


def test_a_pid_may_change_when_a_kernel_is_ready() -> None:
    """The agent may have started it once more; one that does not say leaves it as it was told at the start."""

    async def story(held: Held, kernel: Kernel) -> None:
        assert kernel.pid == 7
        kernel.hear(Ready("k1", "a1", 9))
        kernel.hear(Ready("k1", "a1", 0))
        assert kernel.pid == 9

    with_kernel(story)


def test_a_death_is_told_with_the_last_words() -> None:
    """Those are the end of what it printed; only after SIGKILL is there a word on memory."""

    async def story(held: Held, kernel: Kernel) -> None:
        kernel.hear(Exited("k1", "a1", exit_code=1, log="first" + "x" * 3000 + "last\n"))
        assert kernel.death.endswith("xlast")
        assert "first" not in kernel.death
        assert "memory" not in kernel.death
        assert kernel.deaths == [kernel]

    with_kernel(story)


@pytest.mark.parametrize(
    ("seconds", "code", "choice"), [(1, 1, "tcp"), (10, 1, "ipc"), (1, -9, "ipc"), (1, -15, "ipc"), (1, 0, "ipc")]
)
def test_what_ends_soon_and_by_itself_may_need_ports(seconds: float, code: int, choice: str) -> None:
    """One that ran for a while, that was killed, or that ended well says nothing of UNIX sockets."""

    async def story(held: Held, kernel: Kernel) -> None:
        kernel._unproven, kernel._started_at = ARGV, asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        kernel.hear(Exited("k1", "a1", exit_code=code))
        assert kernel.transports.choose("auto", "python", ARGV) == choice

    with_kernel(story)


def test_since_when_a_host_is_out_of_reach() -> None:
    """It is known for a kernel that runs there; one that has ended is where it is, and one that is started has a deadline."""

    async def story(held: Held, kernel: Kernel) -> None:
        held.is_deaf = True
        assert kernel.out_of_reach_since is None
        await asyncio.sleep(6)
        assert kernel.out_of_reach_since is not None
        kernel._starting = True
        assert kernel.out_of_reach_since is None
        kernel._starting = False
        kernel.hear(Exited("k1", "a1", exit_code=0))
        await asyncio.sleep(6)
        assert kernel.out_of_reach_since is None

    with_kernel(story)


def test_a_host_that_was_not_heard_lately_has_two_seconds() -> None:
    """An interrupt is refused soon where people have been told already that the host does not answer."""

    async def story(held: Held, kernel: Kernel) -> None:
        loop = asyncio.get_running_loop()
        held.is_deaf = True
        await asyncio.sleep(6)
        began = loop.time()
        with pytest.raises(HostUnresponsive, match="so it was not sent"):
            await kernel.make_sure("it was not sent")
        assert 1.9 <= loop.time() - began <= 2.1
        held.is_deaf = False
        await kernel.make_sure("it was not sent")

    with_kernel(story)


@pytest.mark.parametrize("lease", [3, 0])
def test_forgetting_what_another_gateway_has_ends_what_was_ours(lease: int) -> None:
    """With a number of it the agent can tell the two apart; without, nothing is asked of it."""

    async def story(held: Held, kernel: Kernel) -> None:
        kernel.be_taken("another", 4)
        kernel.lease = lease
        await kernel.forget()
        stops = [request["params"]["lease"] for request in held.requests if request["method"] == "stop"]
        assert stops == ([3] if lease else [])
        assert kernel.node is None

    with_kernel(story)


PORTS = {f"{channel}_port": 1000 + at for at, channel in enumerate(("shell", "iopub", "stdin", "hb", "control"))}


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ({}, {}),
        ({"comm_port": 0}, {"comm_port": 0}),
        ({"comm_port": "5005"}, {"comm_port": 5005}),
        ({"hb_port": "1003"}, {"hb_port": 1003}),
    ],
)
def test_a_launchers_ports_may_be_text(said: dict[str, Any], understood: dict[str, Any]) -> None:
    """R has no whole numbers in JSON; a port for its own commands may be missing, or none."""
    info, pid = read_launcher_answer({**PORTS, **said, "pid": "77"})
    assert info == {**PORTS, **understood}
    assert pid == 77


@pytest.mark.parametrize("port", [-1, 65536, "70000", "\N{ARABIC-INDIC DIGIT THREE}", "0" * 11, "1.5", None, True])
def test_a_launchers_port_is_a_port(port: Any) -> None:
    """Whatever is no port is the launcher's fault, and is not passed on to the agent."""
    with pytest.raises(Malformed):
        read_launcher_answer({**PORTS, "hb_port": port})
