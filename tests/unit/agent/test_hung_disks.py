"""Disks that hang: what one user's kernel waits for holds up neither other kernels nor the agent."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from eg_distributed.agent import aside as aside_module
from eg_distributed.agent import kernels, server, spawning
from eg_distributed.agent.aside import EACH, aside
from eg_distributed.agent.disk import Disk
from eg_distributed.link.connect import connect
from eg_distributed.settings import Distributed
from tests.unit.agents import DEADLINE, Refusal, Visitor, echoed, own_agent, pythons, standin
from tests.unit.conftest import Hosts
from tests.until import until


class Mount:
    """A mount that does not answer until it is `back`; asks for it are counted."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.asked = 0

    def ask(self) -> str:
        """Wait for the mount, as a system call does."""
        self.asked += 1
        assert self.back.wait(DEADLINE)
        return ""


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    """A mount at /hung, in which no folder can be looked at, and starts that take 6 s at most."""
    mount, look = Mount(), spawning._not_enterable
    monkeypatch.setattr(
        spawning, "_not_enterable", lambda path: mount.ask() if path.startswith("/hung") else look(path)
    )
    monkeypatch.setattr(kernels, "START_DEADLINE", 6.0)
    monkeypatch.setattr(kernels, "_LEAST", 0.1)
    yield mount
    mount.back.set()


async def test_a_working_directory_that_hangs_is_that_start_s_trouble_alone(short: Path, mount: Mount) -> None:
    """However many starts wait for a mount that hangs, they fail in time and blame no host, and others start."""
    async with own_agent(short) as (_, visitor):
        starts = [visitor.start(f"h{number}", standin(), cwd=f"/hung/{number}") for number in range(20)]
        failed = await asyncio.gather(*starts, return_exceptions=True)
        for number, error in enumerate(failed):
            assert isinstance(error, Refusal)
            assert str(error) == f"working directory /hung/{number} does not answer"
            assert error.kind == "start"
        assert mount.asked == 20
        with pytest.raises(Refusal, match="does not answer"):
            await visitor.start("again", standin(), cwd="/hung/1")
        await visitor.ready("k1", standin())
        assert [kernel["kernel"] for kernel in await visitor.request("list")] == ["k1"]


async def test_what_starts_too_late_is_ended(short: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that comes to be after its start was given up does not live on."""
    ended: list[subprocess.Popen[bytes]] = []
    end = spawning._end

    def note(spawned: tuple[subprocess.Popen[bytes], str]) -> None:
        end(spawned)
        ended.append(spawned[0])

    monkeypatch.setattr(spawning, "_end", note)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: popen(*args, **{**kwargs, "cwd": "/"}))
    async with own_agent(short) as (_, visitor):
        with pytest.raises(Refusal, match="does not answer"):
            await visitor.start("k1", ["sleep", "60"], cwd="/hung/1")
        mount.back.set()
        await until("the late process was ended", lambda: ended)
        assert ended[0].returncode == -signal.SIGKILL


popen = subprocess.Popen


@contextlib.contextmanager
def leased(path: Path) -> Iterator[None]:
    """Hold a lease on *path*: whoever opens or executes it waits for us."""
    earlier = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how we would hear of them
    descriptor = os.open(path, os.O_RDONLY)
    # A lease for writing breaks with any opening of the file, one for reading with those that write.
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        pytest.skip(f"no leases on this file system: {error}")
    try:
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(descriptor)
        signal.signal(signal.SIGIO, earlier)


@pytest.mark.parametrize("python", pythons("3.9", "3.10", "3.13"))
async def test_a_program_on_a_disk_that_hangs_does_not_stop_the_agent(
    hosts: Hosts, settings: Distributed, home: Path, python: str
) -> None:
    """While a kernel's program can't be read, the agent answers and starts others; that start fails in time."""
    await hosts("node1")
    settings.python = python
    link = await connect("node1", settings)
    visitor = await Visitor.at(link)
    program = home / "program"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    with leased(program):
        starting = asyncio.ensure_future(visitor.start("k1", [str(program)]))
        await visitor.ready("k2", standin())
        with pytest.raises(Refusal, match=f"the program '{program}', does not answer"):
            await starting
    assert [kernel["kernel"] for kernel in await visitor.request("list")] == ["k2"]
    visitor.close()
    link.close()


# -- threads -----------------------------------------------------------------------------------------------------


async def test_calls_of_one_key_share_few_threads_and_hold_up_no_other() -> None:
    """Of what hangs for one reason, only a few threads hang; another key's call has its own."""
    mount = Mount()
    calls = [asyncio.ensure_future(aside("hung", 0.2, mount.ask)) for _ in range(3 * EACH)]
    assert await aside("other", DEADLINE, lambda: 1) == 1
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, asyncio.TimeoutError)
    assert mount.asked == EACH
    mount.back.set()
    assert await aside("hung", DEADLINE, mount.ask) == ""


async def test_threads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where too much hangs, the next call is refused at once."""
    await until("what tests before this one have left is over", lambda: not aside_module._running)
    monkeypatch.setattr(aside_module, "MOST", 1)
    mount = Mount()
    hanging = asyncio.ensure_future(aside("hung", DEADLINE, mount.ask))
    await until("it hangs", lambda: mount.asked)
    with pytest.raises(OSError, match="1 calls hang"):
        await aside("other", DEADLINE, lambda: 1)
    mount.back.set()
    await hanging


async def test_what_a_cancelled_call_returns_is_not_lost() -> None:
    """The result of a call that nobody waits for any more is handed to whoever tidies up."""
    mount, tidied = Mount(), threading.Event()
    call = asyncio.ensure_future(aside("hung", None, mount.ask, late=lambda _: tidied.set()))
    await until("it hangs", lambda: mount.asked)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not tidied.is_set()
    mount.back.set()
    await until("it was tidied up", tidied.is_set)


async def test_a_home_that_hangs_holds_up_no_kernel(visitor: Visitor, home: Path) -> None:
    """While the agent's own folder takes no write, kernels are heard and ended, ends are told, and a start says why it fails."""
    await visitor.ready("k1", standin())
    pid = (await visitor.ready("k2", standin()))["pid"]
    (record,) = home.glob("eg-distributed/*/k/k2/record.json")
    fifo = record.with_name("record.json.new")
    os.mkfifo(fifo)  # who opens it to write waits for a reader, as long as it takes
    os.kill(pid, signal.SIGKILL)
    assert (await visitor.event("exited", "k2"))["exit_code"] == -signal.SIGKILL
    assert (await visitor.request("ping"))["running"] == 2
    answer, reader, writer = await visitor.stream("k1")
    assert answer["ok"]
    assert await echoed(reader, writer, b"hello") == b"hello"
    with pytest.raises(Refusal, match="does not answer: the disk that the kernel's files would be on hangs") as refusal:
        await visitor.start("k3", standin())
    assert refusal.value.kind == "host"
    assert (await visitor.request("stop", kernel="k1", grace=0, forget=True))["stopped"]
    assert json.loads(await asyncio.to_thread(fifo.read_bytes))["state"] == "exited"  # it answers again
    await visitor.ready("k3", standin())
    await until("what ended meanwhile is gone", lambda: not record.parent.with_name("k1").exists())


async def test_files_that_cannot_be_removed_go_once_they_can(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is read-only when a kernel ends keeps its files for so long: then they go, and its log is kept."""
    monkeypatch.setattr(server, "SWEEP", 0.05)
    monkeypatch.setattr(server, "TICK", 0.05)
    async with own_agent(short) as (agent, visitor):
        await visitor.ready("k1", standin())
        kernel = agent.kernels["k1"]
        with monkeypatch.context() as read_only:
            read_only.setattr(kernels, "keep", lambda *_, **__: None)
            read_only.setattr(shutil, "rmtree", lambda *_, **__: None)
            await visitor.request("stop", kernel="k1", grace=0, forget=True)
            await until("its end is over", lambda: kernel.discarded)
            assert (kernel.directory / "record.json").exists()
            # What is started meanwhile is another one's files.
            await visitor.ready("k1", standin(), attempt="a2")
            new = agent.kernels["k1"]
        await until("the files have gone", lambda: not kernel.directory.exists())
        assert len(list((short / "logs").glob("k1-*.log"))) == 1
        assert (new.directory / "record.json").exists()


async def test_of_what_waits_for_a_home_only_the_newest_is_written(tmp_path: Path) -> None:
    """However often a record changes while the disk hangs, it takes the room of one, and is written before what follows it."""
    disk = Disk()
    record, other = tmp_path / "record.json", tmp_path / "other"
    os.mkfifo(record.with_name("record.json.new"))
    disk.put(record, b"0")
    assert not await disk.settle(0.1)
    for number in range(1, 1000):
        disk.put(record, b"%d" % number)
    disk.do(lambda: other.write_bytes(record.read_bytes()))
    disk.do(lambda: (tmp_path / "none" / "file").write_bytes(b""))  # one that fails holds up nothing
    assert await asyncio.to_thread(record.with_name("record.json.new").read_bytes) == b"0"
    assert await disk.settle(DEADLINE)
    assert record.read_bytes() == other.read_bytes() == b"999"
    with pytest.raises(OSError, match="No such file"):
        await disk.done(DEADLINE, (tmp_path / "none").iterdir().__next__)


async def test_a_stop_that_overtakes_a_start_on_a_slow_disk_counts(visitor: Visitor) -> None:
    """A start and its stop that come at once end with nothing: the stop finds it, however far it is."""
    starting = asyncio.ensure_future(visitor.start("k1", standin()))
    await asyncio.sleep(0)  # it is sent
    stopped = await visitor.request("stop", kernel="k1", attempt="a1", grace=0, forget=True)
    assert stopped["stopped"]
    with contextlib.suppress(Refusal):
        await starting
    assert await visitor.request("list") == []


async def test_what_no_thread_can_be_had_for_is_done_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user has as many threads as it may, nothing of a kernel's files is dropped."""
    real = threading.Thread.start
    refused: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    disk = Disk()
    disk.put(tmp_path / "record.json", b"1")
    assert refused
    disk.put(tmp_path / "record.json", b"2")
    assert await disk.settle(DEADLINE)
    assert (tmp_path / "record.json").read_bytes() == b"2"


async def test_an_agent_that_is_told_to_end_leaves_a_record_of_each_kernel(
    visitor: Visitor, settings: Distributed, home: Path
) -> None:
    """Starts that are under way at its end are on record or never were: the next agent has every kernel that runs."""
    agent = (await visitor.request("ping"))["pid"]
    starts = [asyncio.ensure_future(visitor.start(f"k{number}", standin())) for number in range(6)]
    await until("the first have begun", lambda: list(home.glob("eg-distributed/*/k/*/record.json")))
    os.kill(agent, signal.SIGTERM)
    await visitor.ended()
    for start in starts:
        start.cancel()
    again = await Visitor.at(await connect("localhost", settings), incarnation="2")
    known = {kernel["pid"] for kernel in await again.request("list")}
    running = {int(path.name) for path in Path("/proc").glob("[0-9]*") if str(home).encode() in command_line(path)}
    assert running - known - {(await again.request("ping"))["pid"]} == set()
    folders = {path.parent for path in home.glob("eg-distributed/*/k/*/connection.json")}
    assert len(folders) == len(known)
    again.close()


def command_line(process: Path) -> bytes:
    """Return the command line of a process by its folder in /proc, empty where it has ended."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
