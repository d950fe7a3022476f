"""The agent: its gateways, streams and kernels, and its own end."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eg_distributed.agent.kernels import Kernel
from eg_distributed.agent.processes import start_time
from eg_distributed.agent.server import Agent, Unclaimed, socket_path
from eg_distributed.link.connect import connect
from eg_distributed.link.links import LocalLink
from eg_distributed.protocol import PROTOCOL
from eg_distributed.settings import Distributed
from eg_distributed.streams import CHUNK, DATA, DEFAULT_LIMIT, FIN, Flow
from eg_distributed.wire import Writer, encode, read_message
from tests.unit.agents import DEADLINE, Refusal, Visitor, alive, echoed, own_agent, standin
from tests.until import until

HEADER = struct.Struct(">BI")


def frame(data: bytes) -> bytes:
    return HEADER.pack(DATA, len(data)) + data


async def again(settings: Distributed, owner: str = "tests", incarnation: str = "") -> Visitor:
    """Connect anew, as another process unless *incarnation* says otherwise."""
    return await Visitor.at(await connect("localhost", settings), owner, incarnation or secrets.token_hex(4))


# -- visitors ----------------------------------------------------------------------------------------------------


async def test_a_gateway_is_greeted_with_what_runs_here(visitor: Visitor, settings: Distributed) -> None:
    """The greeting has the protocol's version and all kernels by id and state, whoever started them; a list says the rest."""
    await visitor.ready("k1", standin())
    other = await again(settings, "another")
    assert other.hello["protocol"] == PROTOCOL
    assert other.hello["kernels"] == [{"kernel": "k1", "state": "running"}]
    (kernel,) = await other.request("list")
    assert (kernel["kernel"], kernel["owner"], kernel["state"], kernel["host_set"]) == (
        "k1",
        "tests",
        "running",
        "here",
    )
    other.close()


async def test_every_gateway_hears_the_load(visitor: Visitor, settings: Distributed) -> None:
    """What balancing counts is pushed to all; a kernel's own events only go to who answers for it."""
    other = await again(settings, "another")
    await visitor.ready("k1", standin())
    await visitor.request("stop", kernel="k1", grace=0)

    def loads() -> list[list[str]]:
        return [event["kernels"] for event in other.events if event["event"] == "load"]

    await until("start and end are told", lambda: loads() == [["k1"], []])
    assert {event["event"] for event in other.events} == {"load"}
    other.close()


async def test_adopting_tells_what_became_of_a_kernel(visitor: Visitor, settings: Distributed) -> None:
    """A gateway that comes back hears of each kernel: running, exited with its log, or nothing if it is gone."""
    await visitor.ready("running", standin())
    await visitor.start("ended", standin("say:the end", "leave:4"))
    await visitor.event("exited", "ended")
    visitor.close()
    back = await again(settings)
    found = await back.request("adopt", kernels=["running", "ended", "unknown"])
    assert found["running"]["state"] == "running"
    assert (found["ended"]["exit_code"], found["ended"]["log"]) == (4, "the end\n")
    assert "unknown" not in found
    await back.request("stop", kernel="running", grace=0)
    await back.event("exited", "running")
    back.close()


async def test_a_kernel_without_its_gateway_is_listed_as_unclaimed(visitor: Visitor, settings: Distributed) -> None:
    """An operator sees which kernels nobody answers for."""
    await visitor.ready("k1", standin())
    operator = await again(settings, "operator")
    assert [kernel["claimed"] for kernel in await operator.request("list")] == [True]
    visitor.close()
    await visitor.ended()
    assert [kernel["claimed"] for kernel in await operator.request("list")] == [False]
    operator.close()


async def test_an_orphan_is_ended_after_its_time(settings: Distributed) -> None:
    """A kernel that nobody answers for ends by itself, one with a gateway or without a limit does not."""
    visitor, keeper = await again(settings), await again(settings, "keeper")
    orphan = (await visitor.ready("orphan", standin(), orphan_timeout=0.5))["pid"]
    forever = (await visitor.ready("forever", standin(), orphan_timeout=0))["pid"]
    kept = (await keeper.ready("kept", standin(), orphan_timeout=0.5))["pid"]
    visitor.close()
    await until("the orphan has ended", lambda: not alive(orphan))
    assert alive(forever)
    assert alive(kept)
    keeper.close()


async def test_kernels_of_a_gateway_that_is_gone_for_good_end_soon(settings: Distributed) -> None:
    """Where the gateway's process has ended that cannot come back, its own limit counts, and not the kernels' longer one."""
    link = await connect("localhost", settings)
    visitor = await Visitor.at(link, "short", "1", gone_timeout=0.5)
    ended = (await visitor.ready("ended", standin(), orphan_timeout=900))["pid"]
    assert alive(ended)
    visitor.close()
    await until("the kernel has ended", lambda: not alive(ended))


def test_a_kernel_waits_longer_for_a_gateway_that_may_be_cut_off() -> None:
    """Of two limits the sooner one counts, and the gateway's only where it is gone; without any the kernel stays."""
    assert Unclaimed(0.0, 60.0).is_orphan(900.0, 61.0)
    assert Unclaimed(0.0, 60.0).is_orphan(0.0, 61.0)
    assert Unclaimed(0.0, 60.0).is_orphan(30.0, 31.0)
    assert not Unclaimed(0.0).is_orphan(900.0, 61.0)
    assert not Unclaimed(0.0).is_orphan(0.0, 1e9)


async def test_an_unknown_method_is_refused_and_the_connection_stays(visitor: Visitor) -> None:
    """A gateway that asks for what this agent can't do hears so."""
    with pytest.raises(Refusal, match="no method 'dance'"):
        await visitor.request("dance")
    assert (await visitor.request("ping"))["running"] == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"\0",
        b"\xff\xff\xff\xff",
        b"\0\0\0\1x",
        b"\0\0\0\2[]",
        encode({"type": "control"}),
        encode({"type": "stream"}),
    ],
)
async def test_nonsense_ends_only_its_own_connection(visitor: Visitor, nonsense: bytes) -> None:
    """Whatever a visitor says, the others go on."""
    reader, writer = await visitor.link.open()
    writer.write(nonsense)
    if not nonsense.startswith(b"\0\0\0") or len(nonsense) < 5:
        getattr(writer, "write_eof", lambda: None)()
    assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
    writer.close()
    assert (await visitor.request("ping"))["pid"]


# -- streams -----------------------------------------------------------------------------------------------------


async def test_a_stream_reaches_the_kernels_channel(visitor: Visitor) -> None:
    """Bytes go to the channel and come back."""
    await visitor.ready("k1", standin())
    answer, reader, writer = await visitor.stream("k1")
    assert answer == {"ok": True, "received": 0, "stalled": 0.0, "taken": False}
    assert await echoed(reader, writer, b"ping") == b"ping"
    writer.close()


@pytest.mark.parametrize(
    ("kernel", "channel", "resume", "why"),
    [
        ("k2", "shell", False, "no such kernel or channel"),
        ("k1", "stdout", False, "no such kernel or channel"),
        ("k1", "shell", True, "no longer has this stream"),
    ],
)
async def test_a_stream_that_cannot_be_is_refused(
    visitor: Visitor, kernel: str, channel: str, *, resume: bool, why: str
) -> None:
    """A refusal says why, and a resume never begins anew, since that would hide a loss."""
    await visitor.ready("k1", standin())
    answer, _, writer = await visitor.stream(kernel, channel, resume=resume)
    assert answer["ok"] is False
    assert why in answer["error"]
    writer.close()


async def test_a_stream_resumed_under_fire_loses_and_doubles_nothing(visitor: Visitor) -> None:
    """New links come while the old ones still bring data, as after a cut that the node has not noticed."""
    await visitor.ready("k1", standin())
    chance = random.Random(3)
    left = sent = chance.randbytes(1 << 20)
    flow, got = Flow(), bytearray()
    old: list[Writer] = []
    while len(got) < len(sent):
        answer, reader, writer = await visitor.stream("k1", received=flow.received, resume=bool(old))
        old.append(writer)
        assert answer["ok"], answer
        flow.attach(answer["received"])
        for _ in range(chance.randrange(1, 4)):
            size = chance.randrange(1, 40_000)
            flow.push(left[:size])
            left = left[size:]
            while (data := flow.next_frame()) is not None:
                writer.write(data)
        goal = min(len(got) + chance.choice([0, 1, 30_000]), len(sent) - len(left))
        while len(got) < goal:
            for payload in flow.feed(await asyncio.wait_for(reader.read(chance.randrange(1, 50_000)), DEADLINE)):
                got += payload
                flow.delivered(len(payload))
    assert bytes(got) == sent
    for writer in old:
        writer.close()


async def test_output_that_may_be_lost_is_told_with_the_next_link(visitor: Visitor) -> None:
    """A stream that was full while no link was up says for how long in its very next answer."""
    await visitor.ready("k1", standin())
    _, reader, writer = await visitor.stream("k1")
    flow, sent = Flow(4 * DEFAULT_LIMIT), 0
    while sent < 2 * DEFAULT_LIMIT:  # it echoes: nobody reads, and so the agent's buffer fills
        flow.push(b"x" * CHUNK)
        while (frame := flow.next_frame()) is not None:
            writer.write(frame)
        sent += CHUNK
    full = 0
    while full < DEFAULT_LIMIT:  # what the link holds was read; nothing of it is acknowledged
        for payload in flow.feed(await asyncio.wait_for(reader.read(CHUNK), DEADLINE)):
            full += len(payload)
    writer.close()
    answers = [await visitor.stream("k1", resume=True), await visitor.stream("k1", resume=True)]
    assert answers[0][0]["stalled"] > 0
    for _, _, link in answers:
        link.close()


async def test_a_new_life_of_a_gateway_ends_the_streams_of_the_old(visitor: Visitor, settings: Distributed) -> None:
    """After a gateway's crash nobody can resume its streams: the kernel sees them close."""
    await visitor.ready("k1", standin())
    _, reader, writer = await visitor.stream("k1")
    visitor.close()
    await visitor.ended()
    back = await again(settings)
    assert await asyncio.wait_for(reader.read(), DEADLINE) in (b"", HEADER.pack(FIN, 0))
    back.close()
    writer.close()


# -- life --------------------------------------------------------------------------------------------------------


async def test_a_restarted_agent_finds_its_kernels(visitor: Visitor, settings: Distributed) -> None:
    """The agent may be killed: its kernels live on, the next agent knows them, and they answer."""
    pid = (await visitor.ready("k1", standin()))["pid"]
    old = (await visitor.request("ping"))["pid"]
    os.kill(old, signal.SIGKILL)
    await visitor.ended()
    back = await again(settings)
    assert (await back.request("ping"))["pid"] != old
    assert [kernel["kernel"] for kernel in back.hello["kernels"]] == ["k1"]
    (kernel,) = await back.request("list")
    assert (kernel["kernel"], kernel["pid"], kernel["state"]) == ("k1", pid, "running")
    assert alive(pid)
    answer, reader, writer = await back.stream("k1")
    assert answer["ok"]
    assert await echoed(reader, writer, b"still there?") == b"still there?"
    writer.close()
    await back.request("adopt", kernels=["k1"])
    assert await back.request("signal", kernel="k1", signum=signal.SIGTERM)
    # It is not this agent's child: Linux tells its code from 6.15 on.
    assert (await back.event("exited", "k1"))["exit_code"] in (None, -signal.SIGTERM)
    back.close()


async def test_a_restarted_agent_knows_what_ended_meanwhile(visitor: Visitor, settings: Distributed) -> None:
    """A kernel that ended while no agent watched is exited, not running, even if its pid is taken."""
    pid = (await visitor.ready("k1", standin()))["pid"]
    old = (await visitor.request("ping"))["pid"]
    os.kill(old, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    await visitor.ended()
    await until("the kernel has ended", lambda: not alive(pid))
    back = await again(settings)
    assert [kernel["state"] for kernel in back.hello["kernels"]] == ["exited"]
    back.close()


async def orphaned(visitor: Visitor, home: Path, **changes: object) -> Path:
    """Kill the agent, change the record of its only kernel, and return that."""
    agent = (await visitor.request("ping"))["pid"]
    os.kill(agent, signal.SIGKILL)
    await visitor.ended()
    await until("it has ended", lambda: not alive(agent))
    (path,) = home.glob("eg-distributed/*/k/*/record.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


async def test_a_kernel_with_an_endless_folder_for_temporary_files_outlives_its_agent(
    visitor: Visitor, settings: Distributed, home: Path
) -> None:
    """A TMPDIR that no system could have is left out of the kernel's record, which the next agent reads."""
    pid = (await visitor.ready("k1", standin(), env={"TMPDIR": "/" + "x" * 5000}))["pid"]
    await orphaned(visitor, home)
    back = await again(settings)
    assert (await back.request("adopt", kernels=["k1"]))["k1"]["pid"] == pid
    await back.request("stop", kernel="k1", grace=0)
    await back.event("exited", "k1")
    back.close()


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process in the place of another agent."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


async def test_kernels_of_an_agent_that_ends_slowly_are_taken_over(
    visitor: Visitor, settings: Distributed, home: Path, other: subprocess.Popen[bytes]
) -> None:
    """While another agent still has a kernel it is elsewhere, not missing; once that agent has ended it is ours, and is told."""
    pid = (await visitor.ready("k1", standin()))["pid"]
    await orphaned(visitor, home, agent=[other.pid, start_time(other.pid)])
    back = await again(settings)
    assert back.hello["kernels"] == []
    found = await back.request("adopt", kernels=["k1", "never was"])
    assert {kernel: (it["state"], it["attempt"], it["pid"]) for kernel, it in found.items()} == {
        "k1": ("elsewhere", "a1", pid)
    }
    assert await back.request("list") == []
    other.kill()
    other.wait()
    assert (await back.event("ready", "k1"))["pid"] == pid
    (kernel,) = await back.request("list")
    assert (kernel["state"], kernel["pid"], kernel["claimed"]) == ("running", pid, True)
    answer, reader, writer = await back.stream("k1")
    assert answer["ok"]
    assert await echoed(reader, writer, b"hello") == b"hello"
    writer.close()
    back.close()


async def test_what_is_unwanted_ends_when_it_is_taken_over(
    visitor: Visitor, settings: Distributed, home: Path, other: subprocess.Popen[bytes]
) -> None:
    """A kernel that its gateway forgot while another agent had it ends as soon as it is ours."""
    pid = (await visitor.ready("k1", standin()))["pid"]
    path = await orphaned(visitor, home, agent=[other.pid, start_time(other.pid)])
    back = await again(settings)
    await back.request("stop", kernel="k1", attempt="a1", grace=0, forget=True)
    assert alive(pid)
    other.kill()
    other.wait()
    await until("it has ended, and its folder is gone", lambda: not alive(pid) and not path.parent.exists())
    assert await back.request("list") == []
    back.close()


@pytest.mark.parametrize("name", ["a", "z"])
async def test_of_two_records_of_a_kernel_the_one_that_runs_counts(
    visitor: Visitor, settings: Distributed, home: Path, name: str
) -> None:
    """What is left of an ended attempt, whatever its folder's name, hides none that runs, and goes."""
    pid = (await visitor.ready("k1", standin(), attempt="a2"))["pid"]
    path = await orphaned(visitor, home)
    old = path.parent.with_name(name) / path.name
    old.parent.mkdir()
    record = json.loads(path.read_text())
    old.write_text(
        json.dumps({**record, "attempt": "a1", "state": "exited", "start_time": 1, "log_path": f"{home}/none"})
    )
    back = await again(settings)
    (kernel,) = await back.request("list")
    assert (kernel["attempt"], kernel["state"], kernel["pid"]) == ("a2", "running", pid)
    await until("the old attempt's files are gone", lambda: not old.parent.exists())
    assert path.exists()
    back.close()


async def test_a_broken_record_stops_nobody(visitor: Visitor, settings: Distributed, home: Path) -> None:
    """A record that a full disk cut short is passed over; the agent comes up."""
    os.kill((await visitor.request("ping"))["pid"], signal.SIGKILL)
    await visitor.ended()
    (base,) = home.glob("eg-distributed/*")
    for name, content in {"a": "", "b": "{", "c": "[]", "d": json.dumps({"agent": [1, None]})}.items():
        (base / "k" / name).mkdir(parents=True)
        (base / "k" / name / "record.json").write_text(content)
    back = await again(settings)
    assert back.hello["kernels"] == []
    await back.ready("k1", standin())
    back.close()


async def test_a_stop_that_ends_late_leaves_the_next_attempt_alone(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that ended is forgotten once: its stop may go on while the next one runs, which stays whole."""
    stop, ended, go = Kernel.stop, asyncio.Event(), asyncio.Event()

    async def late(kernel: Kernel, grace: float) -> None:
        await stop(kernel, grace)
        if kernel.attempt == "a1":
            ended.set()
            await go.wait()

    monkeypatch.setattr(Kernel, "stop", late)
    async with own_agent(short) as (agent, visitor):
        await visitor.start("k1", standin())
        stopping = asyncio.ensure_future(visitor.request("stop", kernel="k1", attempt="a1", grace=0, forget=True))
        await asyncio.wait_for(ended.wait(), DEADLINE)
        started = await visitor.start("k1", standin(), attempt="a2")
        go.set()
        assert (await stopping)["stopped"] is True
        (listed,) = await visitor.request("list")
        assert (listed["attempt"], listed["pid"], listed["claimed"]) == ("a2", started["pid"], True)
        assert agent.kernels["k1"].directory.is_dir()
        assert (await visitor.request("stop", kernel="k1", attempt="a1", forget=True))["stopped"] is False
        assert alive(started["pid"])


async def test_files_that_go_late_are_not_the_next_attempts(short: Path) -> None:
    """What runs after a kernel's end puts off the removal of its files; it comes, and takes none of the next attempt's."""
    async with own_agent(short) as (agent, visitor):
        await visitor.start("k1", standin(), on_exit=["sh", "-c", f"until [ -e {short}/go ]; do sleep 0.01; done"])
        old = agent.kernels["k1"]
        await visitor.request("stop", kernel="k1", attempt="a1", grace=0, forget=True)
        await visitor.start("k1", standin(), attempt="a2")
        new = agent.kernels["k1"]
        assert new.directory != old.directory
        (short / "go").touch()
        await until("the old attempt's files have gone", lambda: old.discarded)
        assert not old.directory.exists()
        assert (new.directory / "record.json").exists()


async def test_a_start_waits_for_the_end_of_the_attempt_before_it(visitor: Visitor) -> None:
    """A start that comes right behind the stop of an earlier attempt, which takes its time, succeeds."""
    first = await visitor.ready("k1", standin("ignore:SIGTERM"))
    stopping = visitor.request("stop", kernel="k1", attempt="a1", grace=0.5, forget=True)
    stopped, second = await asyncio.gather(stopping, visitor.start("k1", standin(), attempt="a2"))
    assert stopped["stopped"] is True
    assert not alive(first["pid"])
    (listed,) = await visitor.request("list")
    assert (listed["attempt"], listed["pid"]) == ("a2", second["pid"])


async def test_a_start_that_waits_can_be_stopped(visitor: Visitor) -> None:
    """A start that is given up while it waits for the end of an earlier attempt starts nothing."""
    await visitor.ready("k1", standin("ignore:SIGTERM"))
    stopping = asyncio.ensure_future(visitor.request("stop", kernel="k1", attempt="a1", grace=0.5, forget=True))
    starting = asyncio.ensure_future(visitor.start("k1", standin(), attempt="a2"))
    withdrawn = asyncio.ensure_future(visitor.request("stop", kernel="k1", attempt="a2", grace=0, forget=True))
    assert (await withdrawn)["stopped"] is True
    with pytest.raises(Refusal, match="was stopped before it began"):
        await starting
    await stopping
    assert await visitor.request("list") == []


async def test_many_starts_and_stops_of_one_kernel_leave_what_was_started_last(visitor: Visitor, home: Path) -> None:
    """Starts and stops that overlap lose no kernel, leave none behind, and leave one folder for the one that runs."""
    for number in range(20):
        behaviours = ["ignore:SIGTERM"] if number % 2 else []
        stopping = visitor.request("stop", kernel="k1", attempt=f"a{number - 1}", grace=0, forget=True)
        starting = visitor.start("k1", standin(*behaviours), attempt=f"a{number}")
        await asyncio.gather(stopping, starting)
    (listed,) = await visitor.request("list")
    assert listed["attempt"] == "a19"
    assert alive(listed["pid"])
    await until("one folder is left", lambda: len(list(home.glob("eg-distributed/*/k/*"))) == 1)


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_a_folder_that_is_removed_is_made_again(short: Path, transport: str) -> None:
    """Whoever empties the cache while an agent runs takes no kernel: folder, socket and records come back, and so do visitors.

    They also reach kernels whose own sockets have lost their names by it.
    """
    folder = short / "agent"
    folder.mkdir()
    async with own_agent(folder) as (agent, visitor):
        described = await visitor.ready("k1", standin(), transport=transport)
        identity = (folder / "identity").read_text()
        shutil.rmtree(folder)
        await until("it listens again", socket_path(folder).exists)
        other = await Visitor.at(LocalLink(str(socket_path(folder))), "other")
        assert other.hello["kernels"] == [{"kernel": "k1", "state": "running"}]
        assert other.hello["agent"]["id"] == identity.strip()
        assert (folder / "identity").read_text() == identity
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        record = json.loads((agent.kernels["k1"].directory / "record.json").read_text())
        assert (record["kernel"], record["pid"]) == ("k1", described["pid"])
        assert json.loads((agent.kernels["k1"].directory / "connection.json").read_text()) == record["connection"]
        answer, reader, writer = await other.stream("k1")
        assert answer["ok"]
        assert await echoed(reader, writer, b"hello") == b"hello"
        writer.close()
        assert (await visitor.request("ping"))["running"] == 1  # nobody was cut off
        other.close()
        (agent.kernels["k1"].directory / "record.json").unlink()  # as cleaners do, one old file after the other
        await until("the record is there again", (agent.kernels["k1"].directory / "record.json").exists)


async def test_the_folder_of_an_ended_kernel_that_is_back_is_removed_again(short: Path) -> None:
    """A disk that was hidden while a kernel ended has its folder still, once it is back; that of one that runs stays."""
    folder = short / "agent"
    folder.mkdir()
    async with own_agent(folder) as (agent, visitor):
        await visitor.ready("k1", standin())
        await visitor.ready("k2", standin())
        kernels = dict(agent.kernels)  # as whatever still has to do with a kernel holds it
        ended, runs = (kernels[name].directory for name in ("k1", "k2"))
        shutil.copytree(ended, short / "kept", ignore=shutil.ignore_patterns("s-*"))
        await visitor.request("stop", kernel="k1", grace=0, forget=True)
        await until("its folder is gone", lambda: not ended.exists())
        shutil.move(short / "kept", ended)
        assert (ended / "record.json").exists()
        await until("it is gone again", lambda: not ended.exists())
        assert (runs / "record.json").exists()


async def test_an_agent_whose_name_is_taken_hands_its_kernels_over(
    visitor: Visitor, settings: Distributed, home: Path
) -> None:
    """It serves who is connected to it, and then leaves its kernels to the agent that has its place; both say whose they are."""
    pid = (await visitor.ready("k1", standin()))["pid"]
    first = (await visitor.request("ping"))["pid"]
    (folder,) = home.glob("eg-distributed/*")
    os.kill(first, signal.SIGSTOP)
    shutil.rmtree(folder)
    back = await again(settings, incarnation="2")
    os.kill(first, signal.SIGCONT)
    assert (await back.request("ping"))["pid"] != first
    assert back.hello["agent"]["id"] != visitor.hello["agent"]["id"]

    async def is_seen() -> bool:
        found = await back.request("adopt", kernels=["k1"])
        return bool(found) and found["k1"]["state"] == "elsewhere"

    await until("the first agent has written its record again", is_seen, pause=0.1)
    assert (await visitor.request("ping"))["running"] == 1
    visitor.close()
    await until("the first agent has left", lambda: not alive(first))
    assert (await back.event("ready", "k1"))["pid"] == pid
    assert [kernel["pid"] for kernel in await back.request("list")] == [pid]
    assert alive(pid)
    back.close()


async def test_an_agent_leaves_when_told_and_not_needed(visitor: Visitor, home: Path) -> None:
    """`leave` is refused while a kernel is here; afterwards the agent ends and its socket is gone."""
    pid = (await visitor.request("ping"))["pid"]
    await visitor.ready("k1", standin())
    assert await visitor.request("leave") is False
    await visitor.request("stop", kernel="k1", grace=0, forget=True)
    assert await visitor.request("leave") is True
    await until("the agent has left", lambda: not alive(pid))
    assert list(home.glob("eg-distributed/*/*.sock*")) == []


async def test_an_agent_ends_although_a_disk_hangs(visitor: Visitor, settings: Distributed, home: Path) -> None:
    """One that is told to end does so while a read of a log hangs, which nothing can cut short; its kernels go on."""
    kernel = (await visitor.ready("k1", standin(), log_dir="~/logs"))["pid"]
    log = home / "logs" / "kernel-k1.log"
    log.unlink()
    os.mkfifo(log)  # who opens it to read waits for a writer
    with pytest.raises(Refusal, match="the disk with the log of kernel k1 does not answer"):
        await visitor.request("log_part", kernel="k1", attempt="a1")
    agent = (await visitor.request("ping"))["pid"]
    os.kill(agent, signal.SIGTERM)
    await until("the agent has ended", lambda: not alive(agent))
    assert alive(kernel)
    log.unlink()
    again = await Visitor.at(await connect("localhost", settings))
    assert (await again.request("stop", kernel="k1", grace=5, forget=True))["stopped"]
    again.close()


async def test_a_gateway_may_know_the_machine_by_two_names(visitor: Visitor, settings: Distributed) -> None:
    """A second connection of a gateway that has another name for this machine leaves the first one alone."""
    link = await connect("localhost", settings)
    other = await Visitor.at(link, incarnation="1", host="10.0.0.1")
    assert (await visitor.request("ping"))["pid"] == (await other.request("ping"))["pid"]
    successor = await Visitor.at(link, incarnation="1", host="10.0.0.1")
    await other.ended()
    assert (await visitor.request("ping"))["pid"] == (await successor.request("ping"))["pid"]
    successor.close()


async def test_an_idle_agent_leaves(short: Path) -> None:
    """Without a kernel and a visitor an agent ends by itself, and takes its socket's name with it."""
    path = socket_path(short)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    await asyncio.wait_for(Agent(short, "d", idle=0.0).run(listening), DEADLINE)
    assert not path.exists()


async def test_a_new_connection_of_a_gateway_replaces_the_old(visitor: Visitor, settings: Distributed) -> None:
    """A half-open connection of the same process is closed, and its end orphans nothing that its successor has claimed."""
    await visitor.ready("k1", standin())
    successor = await again(settings, incarnation="1")
    await successor.request("adopt", kernels=["k1"])
    await visitor.ended()
    assert [kernel["claimed"] for kernel in await successor.request("list")] == [True]
    successor.close()


async def test_two_visitors_can_talk_at_once(visitor: Visitor) -> None:
    """A slow request, such as a stop with its grace, holds up no other."""
    await visitor.ready("k1", standin("ignore:SIGTERM"))
    stopping = asyncio.ensure_future(visitor.request("stop", kernel="k1", grace=1.0))
    assert (await visitor.request("ping"))["running"] == 1
    assert not stopping.done()
    await stopping


async def test_an_agent_reads_a_hello_that_comes_in_pieces(visitor: Visitor) -> None:
    """Packets end where they want."""
    reader, writer = await visitor.link.open()
    for byte in encode({"type": "control", "gateway": "g", "incarnation": "1"}):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    hello = await asyncio.wait_for(read_message(reader), DEADLINE)
    assert hello is not None
    assert hello["ok"]
    writer.close()
