"""How a start waits for its turn on a host, at the gateway and in virtual time: time-outs count what does not move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.agent import admission
from eg_distributed.errors import HostUnresponsive, KernelStartTimeout
from eg_distributed.kernel import RemoteKernel
from eg_distributed.launcher_files import Shipping
from eg_distributed.protocol import Queue, Queued, Ready, write_event
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed
from eg_distributed.spec_folder import SpecFolder, SpecFolders
from eg_distributed.transports import Transports
from eg_distributed.wire import Message, encode
from tests.simulation.gateways import SimEndpoints
from tests.simulation.loop import VirtualLoop
from tests.simulation.world import World

from .malformed_agent import described, honest, reply
from .test_node_in_time import Held

LAUNCH_TIMEOUT = 8.0


class Deliveries(SpecFolders):
    """Kernelspecs' folders that are on the node at once; how long each delivery might have taken."""

    def __init__(self) -> None:
        super().__init__(0)
        self.seconds: list[float] = []

    async def deliver(self, folder: SpecFolder, host: str, connect: Any, deadline: float) -> None:
        """Note what is left of the start's time."""
        self.seconds.append(deadline - asyncio.get_running_loop().time())


class Scene:
    """A node whose agent says what a test has it say, and a kernel that is started there."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Distributed(gateway_id="tests", ssh_config="", **settings)
        self.held = Held()
        self.starts: list[Message] = []
        self.held.answers = self._answer
        identity, self.folders = ("tests", "1"), Deliveries()
        self.kernel = RemoteKernel(
            "k1",
            self.settings,
            Path("/simulated/c"),
            identity,
            self.held.abandoned,
            self.folders,
            Transports(),
            SimEndpoints,
        )
        self.held.hear = self.kernel.hear  # type: ignore[method-assign]  # there is no cluster

    def _answer(self, request: Message) -> list[bytes]:
        if request["method"] == "start":
            self.starts.append(request)
            return []
        return honest(request)

    def say(self, *messages: bytes) -> None:
        """Have the agent say something."""
        for message in messages:
            self.held.links[-1].reader.feed_data(message)

    def tell(self, before: int, begun: int) -> None:
        """Have the agent tell where the start is in its queue."""
        self.say(encode(write_event(Queue([Queued("k1", self.kernel.attempt, before=before, begun=begun)]))))

    def begin(self) -> None:
        """Have the agent answer the last start, as soon as its process exists."""
        self.say(reply(self.starts[-1], described("k1", attempt=self.kernel.attempt, state="starting")))

    def be_ready(self) -> None:
        """Have the kernel be ready."""
        self.say(encode(write_event(Ready("k1", self.kernel.attempt, 7))))

    def refuse(self, kind: str) -> None:
        """Have the agent refuse the last start."""
        self.say(encode({"id": self.starts[-1]["id"], "error": "no", "kind": kind}))

    def start(self, shipping: Shipping | None = None) -> asyncio.Task[None]:
        """Begin to start the kernel."""
        request = StartRequest(
            kernel_id="k1", argv=["x", "{connection_file}"], hosts=("node1",), language="python", key="k",
            launch_timeout=LAUNCH_TIMEOUT, shipping=shipping or Shipping(),
        )  # fmt: skip
        deadline = asyncio.get_running_loop().time() + LAUNCH_TIMEOUT
        return asyncio.ensure_future(self.kernel.start_on(self.held.node, request, "a1", deadline))


def in_time(story: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    """Run *story* in virtual time."""

    async def live() -> None:
        scene = Scene()
        try:
            await scene.held.node.connect()
            await story(scene)
        finally:
            await scene.held.node.close()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    loop = VirtualLoop()
    try:
        loop.run_until_complete(live())
    finally:
        loop.close()


def test_a_queue_that_moves_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """However long it takes: the launch timeout counts from when the host begins with the start; the log tells where it waits."""
    caplog.set_level(logging.INFO)

    async def story(scene: Scene) -> None:
        starting = scene.start()
        await asyncio.sleep(0.01)
        assert scene.starts[0]["params"]["queues"] is True
        for second in range(100):
            scene.tell(before=20 - second // 5, begun=second // 5)
            await asyncio.sleep(1)
        assert not starting.done()
        scene.tell(before=-1, begun=21)
        await asyncio.sleep(1)
        scene.begin()
        await asyncio.sleep(LAUNCH_TIMEOUT - 2)
        assert not starting.done()
        scene.be_ready()
        await starting
        assert 99 < scene.kernel.place.seconds < 101
        assert len(scene.starts) == 1
        assert "kernel k1: waiting for its turn on node1, 20 before it" in caplog.text
        assert caplog.text.count("waiting for its turn") == 4

    in_time(story)


def test_the_launch_timeout_counts_from_the_start_s_turn() -> None:
    """A kernel that is not ready in its time fails as ever, whether its start has waited or not."""

    async def story(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        starting = scene.start()
        await asyncio.sleep(0.01)
        for second in range(30):
            scene.tell(before=0, begun=second)
            await asyncio.sleep(1)
        scene.tell(before=-1, begun=31)
        scene.begin()
        begun = loop.time()
        with pytest.raises(KernelStartTimeout, match="not ready within 8 s"):
            await starting
        assert LAUNCH_TIMEOUT - 1 < loop.time() - begun < LAUNCH_TIMEOUT + 1

    in_time(story)


def test_a_queue_that_does_not_move_fails_with_its_host() -> None:
    """Nothing has begun for the launch timeout: the error names the host, how many are before, and what to do."""

    async def story(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        starting = scene.start()
        await asyncio.sleep(0.01)
        began = loop.time()
        while not starting.done():
            scene.tell(before=5, begun=3)
            await asyncio.sleep(1)
        assert LAUNCH_TIMEOUT - 1 < loop.time() - began < LAUNCH_TIMEOUT + 2
        with pytest.raises(KernelStartTimeout, match="did not get its turn: 5 starts") as failed:
            await starting
        assert failed.value.host == "node1"
        assert "jupyter distributed kernels" in failed.value.remedy
        assert "stop" in scene.held.links[-1].asked

    in_time(story)


def test_no_host_makes_a_start_wait_for_ever() -> None:
    """One that says that its queue moves, and never comes to a start, is waited for an hour."""

    async def story(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        starting = scene.start()
        await asyncio.sleep(0.01)
        began, begun = loop.time(), 0
        while not starting.done():
            begun += 1
            scene.tell(before=1, begun=begun)
            await asyncio.sleep(2)
        assert 3600 <= loop.time() - began < 3610
        with pytest.raises(KernelStartTimeout, match="within 3600 s"):
            await starting

    in_time(story)


@pytest.mark.parametrize("has_told", [True, False], ids=["after a word", "without a word"])
def test_a_host_that_says_nothing_is_given_up(has_told: bool) -> None:
    """A start that waits is told of each second; without that the host counts as one that hangs, as ever."""

    async def story(scene: Scene) -> None:
        loop = asyncio.get_running_loop()
        starting = scene.start()
        await asyncio.sleep(0.01)
        if has_told:
            scene.tell(before=5, begun=3)
        began = loop.time()
        with pytest.raises(HostUnresponsive, match="No answer to 'start' within 5 s"):
            await starting
        assert 4.9 < loop.time() - began < 5.2

    in_time(story)


def test_a_place_that_a_cut_has_cost_is_asked_for_again() -> None:
    """Nothing has begun, so the start gets in line again once its host is back; the time of the cut counts for nothing else."""

    async def story(scene: Scene) -> None:
        starting = scene.start()
        await asyncio.sleep(0.01)
        scene.tell(before=5, begun=3)
        await asyncio.sleep(1)
        scene.held.links[-1].lose()
        await asyncio.sleep(1)
        assert len(scene.held.links) == 2
        assert [start["params"]["attempt"] for start in scene.starts] == ["a1", "a1"]
        scene.tell(before=-1, begun=9)
        scene.begin()
        scene.be_ready()
        await starting

    in_time(story)


def test_a_folder_is_brought_in_the_time_that_a_start_has_beside_the_queue() -> None:
    """An agent may say at the start's turn that the kernelspec's folder is missing: the wait takes nothing from bringing it."""

    async def story(scene: Scene) -> None:
        starting = scene.start(Shipping(folder=SpecFolder("/kernels/mine", "0" * 64, 1)))
        await asyncio.sleep(0.01)
        for second in range(30):
            scene.tell(before=0, begun=second)
            await asyncio.sleep(1)
        scene.tell(before=-1, begun=31)
        scene.refuse("folder")
        await asyncio.sleep(0.01)
        assert LAUNCH_TIMEOUT - 1 < scene.folders.seconds[0] <= LAUNCH_TIMEOUT
        assert len(scene.starts) == 2
        scene.begin()
        scene.be_ready()
        await starting

    in_time(story)


def test_a_start_that_had_begun_is_not_asked_for_again() -> None:
    """A cut in that moment fails on this host, as ever: whether there is a process is not known."""

    async def story(scene: Scene) -> None:
        starting = scene.start()
        await asyncio.sleep(0.01)
        scene.tell(before=5, begun=3)
        scene.tell(before=-1, begun=4)
        await asyncio.sleep(1)
        scene.held.links[-1].lose()
        with pytest.raises(HostUnresponsive):
            await starting
        assert len(scene.starts) == 1

    in_time(story)


def test_a_host_whose_queue_is_full_counts_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit there goes to another host, or fails and says so; the next start may go there as to any other."""
    monkeypatch.setattr(admission, "MOST", 3)
    world = World(1, hosts=2, gateways=1, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        for machine in world.machines.values():
            machine.processors = 1
        (gateway,), hosts = world.gateways, tuple(world.machines)
        at_first = await asyncio.gather(*(gateway.start(f"a{number}", hosts[:1]) for number in range(12)))
        assert at_first.count(True) == 1 + 3
        assert [gateway.cluster.host(name).node.last_error for name in hosts] == [None, None]
        for number in range(12):
            if not at_first[number]:
                await gateway.release(f"a{number}")
        both = await asyncio.gather(*(gateway.start(f"b{number}", hosts) for number in range(4)))
        assert all(both)
        assert [gateway.cluster.host(name).node.last_error for name in hosts] == [None, None]
        await world.settle(30.0)

    world.run(story)


def test_a_storm_on_one_host_fails_no_start(tmp_path: Path) -> None:
    """Sixty starts at a host of one processor are all ready, far behind their launch timeout of two seconds, none elsewhere."""
    world = World(1, hosts=1, gateways=2, folder=tmp_path, orphan_timeout=0.0)

    async def story(world: World) -> None:
        (machine,) = world.machines.values()
        machine.processors, machine.ready_seconds = 1, 0.4
        hosts = tuple(world.machines)
        began = world.loop.time()
        starts = [
            gateway.start(f"{gateway.name}-{number}", hosts, launch_timeout=2.0)
            for number in range(30)
            for gateway in world.gateways
        ]
        assert all(await asyncio.gather(*starts))
        assert 60 * 0.4 < world.loop.time() - began < 60 * 0.4 * 1.2
        assert len(machine.processes) == 60
        await world.settle(30.0)

    world.run(story)
