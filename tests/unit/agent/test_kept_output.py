"""What an agent keeps of a kernel's output: in order, up to a limit, by the next agent too, and for the right gateway alone."""

from __future__ import annotations

import asyncio
import os
import struct
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from eg_distributed.agent import kept_output
from eg_distributed.agent import streams as streams_module
from eg_distributed.agent.kept_output import HEARD, RECORD, Keeping, KeptOutput, Spool, Total
from eg_distributed.agent.kernels import Kernel
from eg_distributed.agent.streams import Streams
from eg_distributed.agent.zmtp import DELIM
from eg_distributed.kept_output import Kept, Records
from eg_distributed.protocol import OutputPart
from eg_distributed.streams import DATA, Flow
from tests.unit.agent.pub import Publishing, encoded, message
from tests.unit.agents import Refusal, Visitor, own_agent, standin
from tests.until import until

GATEWAY, NEXT_LIFE = ("gateway", "1"), ("gateway", "2")
LIMIT = 1 << 20


def record(number: int, size: int = 100) -> bytes:
    """Return a record of *size* bytes in all."""
    return RECORD.pack(HEARD, number, size - RECORD.size) + bytes(size - RECORD.size)


def all_of(spool: Spool, position: int = 0) -> tuple[int, bytes]:
    """Return where what *spool* has from *position* on begins, and that."""
    start, data = spool.read(position, 50)
    read = bytearray(data)
    while data:
        _, data = spool.read(start + len(read), 50)
        read += data
    return start, bytes(read)


def test_a_spool_gives_back_what_it_was_given(tmp_path: Path) -> None:
    """Records come back in their order, also from the middle, and by the next agent, which goes on with the numbers."""
    records = [record(number, 100 + number) for number in range(50)]
    spool = Spool(tmp_path / "s", 1 << 20, Total())
    for start in range(0, 50, 7):
        spool.append(records[start : start + 7])
    assert all_of(spool) == (0, b"".join(records))
    assert all_of(spool, 100) == (100, b"".join(records[1:]))
    with next((tmp_path / "s").iterdir()).open("ab") as file:
        file.write(record(50)[:60])  # an agent was killed while it wrote
    again = Spool(tmp_path / "s", 1 << 20, Total())
    assert again.restore()[0] == 50
    again.append([record(50)])
    assert all_of(again) == (0, b"".join([*records, record(50)]))


def test_a_spool_keeps_the_newest(tmp_path: Path) -> None:
    """Past the limit whole files of the oldest give way; a reader that stood there goes on with the oldest that is left."""
    total = Total()
    spool = Spool(tmp_path / "s", 8000, total)
    for number in range(1000):
        spool.append([record(number)])
    start, data = all_of(spool)
    numbers = [RECORD.unpack_from(data, at)[1] for at in range(0, len(data), 100)]
    assert numbers == list(range(numbers[0], 1000))
    assert 7000 <= len(data) <= 8000
    assert start == 100 * numbers[0]
    assert total.bytes == len(data) == sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert spool.find(b"none") is None
    spool.remove()
    spool.append([record(1)])
    assert (total.bytes, (tmp_path / "s").exists()) == (0, False)


def test_all_spools_have_one_bound(tmp_path: Path) -> None:
    """Where all of them together have too much, the one that is written to gives way."""
    total = Total(10_000)
    spools = [Spool(tmp_path / str(number), 8000, total) for number in range(3)]
    for number in range(300):
        for spool in spools:
            spool.append([record(number)])
    assert total.bytes <= 10_000 + 3 * 1100


def test_a_full_disk_costs_what_was_written_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way raises, and neither what was there nor what comes later is harmed; it can be written again."""
    spool = Spool(tmp_path / "s", 1 << 20, Total())
    spool.append([record(0)])
    pwrite = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) <= 60:
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data[:60], offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        left = [record(1)]
        with pytest.raises(OSError, match="No space"):
            spool.append(left)
    assert left == [record(1)]
    spool.append(left)
    assert left == []
    spool.append([record(2)])
    assert all_of(spool) == (0, record(0) + record(1) + record(2))
    again = Spool(tmp_path / "s", 1 << 20, Total())
    assert again.restore()[0] == 3


def test_a_file_that_somebody_removes_costs_what_was_in_it(tmp_path: Path) -> None:
    """It is not made again with zeros in it: what comes later is read, and where it stands tells what is missing."""
    total = Total()
    spool = Spool(tmp_path / "s", 1 << 20, total)
    spool.append([record(0), record(1)])
    (only,) = (tmp_path / "s").iterdir()
    only.unlink()
    assert all_of(spool)[1] == b""
    spool.append([record(2)])
    assert all_of(spool) == (200, record(2))
    assert total.bytes == len(record(2))


class Site:
    """An agent's part that keeps output, and one kernel."""

    def __init__(self, folder: Path) -> None:
        self.kernel = Publishing(folder)
        self.events: list[Any] = []
        self.streams = Streams({}, self._notify)
        self.kept = KeptOutput(self.streams, self._notify)

    def _notify(self, kernel: Kernel, event: Any) -> None:
        self.events.append(event)

    @property
    def its(self) -> Kernel:
        """The kernel, as the agent's code sees it."""
        return cast("Kernel", self.kernel)

    async def begun(self, limit: int = LIMIT) -> None:
        """Begin to keep, and wait until the kernel is listened to."""
        self.kept.begin(self.its, GATEWAY, limit)
        await until("the kernel is listened to", lambda: self.kernel.subscribers)

    @property
    def keeping(self) -> Keeping:
        """What is kept."""
        return self.kept._keeping[self.kernel.id]

    async def taken(self, after: str = "") -> list[Kept]:
        """Take all that is kept."""
        records, found, is_all = Records(), list[Kept](), False
        while not is_all:
            part = await self.kept.take(self.its, "", records.position, after if not records.position else "")
            found += records.take(part)
            is_all = part.is_all
            await asyncio.sleep(0.001)
        return found


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A kernel that can be kept."""
    site = Site(tmp_path)
    yield site
    site.kept.drop(site.its)
    site.kernel.end()
    await asyncio.sleep(0)


def ids(kept: list[Kept]) -> list[str]:
    """Return the ids of messages."""
    headers = [each.parts[each.parts.index(DELIM) + 2] for each in kept if each.parts]
    return [header.decode().split('"')[3] for header in headers]


async def test_the_next_life_gets_what_came_meanwhile(site: Site) -> None:
    """All that was published is taken, in its order and as often as it is asked for, until it is forgotten."""
    await site.begun()
    for number in range(500):
        site.kernel.publish(f"m{number}")
    await until("all is heard", lambda: site.keeping.number == 500)
    site.kept.adopt(site.its, NEXT_LIFE, LIMIT)
    for _ in range(2):
        assert ids(await site.taken()) == [f"m{number}" for number in range(500)]
    assert ids(await site.taken(after="m480")) == [f"m{number}" for number in range(481, 500)]
    assert ids(await site.taken(after="m4")) == [f"m{number}" for number in range(5, 500)]
    site.kept.forget(site.its)
    assert await site.taken() == []
    await until("nothing is left on disk", lambda: list(site.kernel.directory.iterdir()) == [])
    await until(
        "nobody listens", lambda: all(writer.is_closing() for writer in site.kernel.subscribers) or publishes(site)
    )


def publishes(site: Site) -> bool:
    """Publish something, which shows closed connections; return False."""
    site.kernel.publish("m")
    return False


async def test_the_life_that_lost_its_connection_needs_nothing(site: Site) -> None:
    """A gateway that was cut off goes on with its streams, so that what was kept is forgotten; one that can't take it, too."""
    for by, limit in ((GATEWAY, LIMIT), (NEXT_LIFE, 0)):
        await site.begun()
        site.kernel.publish("m1")
        await until("it is heard", lambda: site.keeping.number == 1)
        site.kept.adopt(site.its, by, limit)
        assert await site.taken() == []
        site.kernel.end()


async def test_what_does_not_fit_is_counted(site: Site) -> None:
    """Messages that gave way, and such as are larger than may be, are told by their number."""
    await site.begun(limit=100_000)
    site.kernel.publish("large", bytes(60_000))
    for number in range(1000):
        site.kernel.publish(f"m{number}", b"x" * 500)
    await until("all is heard", lambda: site.keeping.number == 1001)
    found = await site.taken()
    assert ids(found)[-1] == "m999"
    assert sum(each.lost for each in found) == 1001 - len(ids(found))
    assert 50 < len(ids(found)) < 200


async def test_output_waits_for_a_disk_that_is_full_for_a_while(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is written once there is room again, in order and once."""
    await site.begun()
    site.kernel.publish("m0")
    await until("it is written", lambda: site.keeping._spool._files)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        for number in range(1, 6):
            site.kernel.publish(f"m{number}")
        await until("writing has failed", lambda: "No space" in site.keeping._failure and site.keeping.number == 6)
    site.kernel.publish("m6")
    await until("it is heard", lambda: site.keeping.number == 7)
    found = await site.taken()
    assert ids(found) == [f"m{number}" for number in range(7)]
    assert not any(each.lost for each in found)


async def test_output_waits_for_threads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login that may have no more threads for a while loses nothing by that."""
    await site.begun()
    site.kernel.publish("m0")
    await until("it is written", lambda: site.keeping._spool._files)

    def none(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        site.kernel.publish("m1")
        await until("writing has failed", lambda: "no thread" in site.keeping._failure)
    assert ids(await site.taken()) == ["m0", "m1"]


async def test_a_disk_that_stays_full_is_told_in_numbers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes output is not kept waiting for the disk: what is not written is counted as lost, up to a limit in memory."""
    monkeypatch.setattr(kept_output, "PENDING", 500)
    await site.begun()
    site.kernel.publish("m0")
    await until("it is written", lambda: site.keeping._spool._files)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        for number in range(1, 21):
            site.kernel.publish(f"m{number}")
        await until("writing has failed", lambda: "No space" in site.keeping._failure and site.keeping.number == 21)
        assert sum(each.lost for each in await site.taken()) == 20
        assert site.keeping._pending_bytes <= 500
    found = await site.taken()
    assert ids(found)[0] == "m0"
    assert ids(found)[-1] == "m20"
    assert sum(each.lost for each in found) == 21 - len(ids(found)) > 0


async def test_output_that_nobody_wants_is_not_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is forgotten, no task waits for a disk that is full."""
    await site.begun()
    monkeypatch.setattr(os, "pwrite", full)
    site.kernel.publish("m0")
    keeping = site.keeping
    await until("writing has failed", lambda: "No space" in keeping._failure)
    site.kept.forget(site.its)
    await until("nobody writes any more", lambda: keeping._writing.done())


def full(*_: object) -> int:
    """Do what os.pwrite does on a disk that is full."""
    raise OSError(28, "No space left on device")


async def test_the_next_agent_goes_on_with_what_was_kept(site: Site) -> None:
    """What an agent that was killed had written is given by the next one, with how long nobody listened in between."""
    await site.begun()
    for number in range(3):
        site.kernel.publish(f"m{number}")
    await until("all is heard", lambda: site.keeping.number == 3)
    await until("all is written", lambda: site.keeping._writing.done())
    site.keeping._listening.cancel()
    site.kernel.end()
    later = KeptOutput(site.streams, site._notify)
    later.find(site.its)
    await until("the kernel is listened to again", lambda: site.kernel.subscribers)
    site.kernel.publish("m3")
    site.kept._keeping, later._keeping = later._keeping, site.kept._keeping
    await until("all is heard", lambda: site.keeping.number == 4)
    found = await site.taken()
    assert ids(found) == ["m0", "m1", "m2", "m3"]
    assert [each.unheard is not None for each in found] == [False, False, False, True, False]


async def test_a_kernel_that_said_nothing_is_kept_by_the_next_agent(site: Site) -> None:
    """The agent was killed before the kernel said anything: the next one listens, and says for how long nobody did at most."""
    await site.begun()
    await until("the folder is there", lambda: list(site.kernel.directory.iterdir()))
    await until("all is written", lambda: site.keeping._writing.done())
    site.keeping._listening.cancel()
    site.kernel.end()
    (folder,) = site.kernel.directory.iterdir()
    an_hour_ago = time.time() - 3600
    os.utime(folder, (an_hour_ago, an_hour_ago))
    later = KeptOutput(site.streams, site._notify)
    later.find(site.its)
    await until("the kernel is listened to again", lambda: site.kernel.subscribers)
    site.kernel.publish("m1")
    site.kept._keeping = later._keeping
    await until("it is heard", lambda: site.keeping.number == 1)
    silence, heard = await site.taken()
    assert ids([heard]) == ["m1"]
    assert silence.unheard is not None
    assert 3600 <= silence.unheard < 3660


async def test_a_message_that_is_larger_than_what_may_wait_is_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the disk has a bound, and one message may be larger than that."""
    monkeypatch.setattr(kept_output, "PENDING", 1000)
    await site.begun()
    site.kernel.publish("m1", bytes(2000))
    await until("it is heard", lambda: site.keeping.number == 1)
    assert ids(await site.taken()) == ["m1"]


async def test_output_of_before_that_takes_long_to_find_is_taken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks meanwhile is told to come again, and the work is not begun anew."""
    monkeypatch.setattr(kept_output, "_DEADLINE", 0.05)
    monkeypatch.setattr(kept_output, "_SETTLING", -1.0)
    begun, go = list[int](), threading.Event()

    def slow(*_: object) -> bytes:
        begun.append(1)
        assert go.wait(30)
        return b""

    monkeypatch.setattr(kept_output, "records_of", slow)
    await site.begun()
    await until("it is listened to", lambda: site.keeping._subscribed_at is not None)
    for _ in range(3):
        assert not (await site.kept.take(site.its, "", 0, "")).is_all
    go.set()
    monkeypatch.setattr(kept_output, "_DEADLINE", 30.0)
    assert await site.taken() == []
    assert len(begun) == 1


async def test_what_a_gateway_left_is_its_next_lifes_alone(home: Path) -> None:
    """Another gateway can neither take nor end it; the next life gets output and each session's replies, late ones as well."""
    async with own_agent(home) as (agent, keeper):
        first = await Visitor.at(keeper.link, *GATEWAY, keep_output=LIMIT)
        await first.ready("k1", standin())
        _, reader, writer = await first.stream("k1", "shell")  # what it is sent comes back, as a kernel's replies would
        for name, session in (("r1", "tab"), ("r2", "other tab")):
            reply = encoded(message(name, parent=b'{"session": "%s"}' % session.encode()))
            writer.write(struct.pack(">BI", DATA, len(reply)) + reply)
        await asyncio.wait_for(reader.readexactly(2 * len(reply)), 30)
        writer.close()
        first.close()
        await until("its output is kept", lambda: agent.kept_output._keeping)

        other = await Visitor.at(keeper.link, "other", keep_output=LIMIT)
        second = await Visitor.at(keeper.link, *NEXT_LIFE, keep_output=LIMIT)
        assert second.hello["keeps_output"]
        assert list(await second.request("adopt", kernels=["k1"])) == ["k1"]
        with pytest.raises(Refusal, match="another gateway's"):
            await other.request("output", kernel="k1")
        await other.request("forget_output", kernel="k1")
        assert agent.kept_output._keeping

        async def replies(session: str, position: int = 0) -> tuple[list[str], int]:
            part = OutputPart.read(await second.request("output", kernel="k1", session=session, position=position))
            return ids(list(Records().take(part))), part.position

        assert (await replies("tab"))[0] == ["r1"]
        assert (await replies("tab"))[0] == ["r1"]
        found, position = await replies("other tab")
        assert found == ["r2"]
        assert (await replies("other tab", position))[0] == []
        assert (await replies("other tab"))[0] == []
        assert (await replies("nobody"))[0] == []
        await second.request("forget_output", kernel="k1")
        assert not agent.kept_output._keeping
        assert (await replies("tab"))[0] == ["r1"]

        third = await Visitor.at(keeper.link, *GATEWAY)  # of an older release: it takes nothing
        second.close()
        await until("its output is kept", lambda: agent.kept_output._keeping)
        await third.request("adopt", kernels=["k1"])
        assert not agent.kept_output._keeping
        await until("no stream is left", lambda: not agent.streams._streams)
        for visitor in (other, third):
            visitor.close()


async def test_a_blip_of_the_next_life_costs_no_reply(home: Path) -> None:
    """The next life loses its connection for a moment: what the kernel replies to clients of the life before still comes."""
    async with own_agent(home) as (agent, keeper):
        first = await Visitor.at(keeper.link, *GATEWAY, keep_output=LIMIT)
        await first.ready("k1", standin())
        _, reader, writer = await first.stream("k1", "shell")
        early = encoded(message("r1", parent=b'{"session": "tab"}'))
        writer.write(struct.pack(">BI", DATA, len(early)) + early)
        await asyncio.wait_for(reader.readexactly(len(early)), 30)
        writer.close()
        first.close()
        await until("its output is kept", lambda: agent.kept_output._keeping)
        second = await Visitor.at(keeper.link, *NEXT_LIFE, keep_output=LIMIT)
        await second.request("adopt", kernels=["k1"])
        await second.request("forget_output", kernel="k1")
        second.close()
        await until("the output is kept again", lambda: agent.kept_output._keeping)
        second = await Visitor.at(keeper.link, *NEXT_LIFE, keep_output=LIMIT)
        await second.request("adopt", kernels=["k1"])
        assert not agent.kept_output._keeping
        assert [stream.owner for stream in agent.streams.left_of(agent.kernels["k1"], "shell")] == [GATEWAY]
        part = OutputPart.read(await second.request("output", kernel="k1", session="tab"))
        assert ids(list(Records().take(part))) == ["r1"]
        second.close()


@pytest.mark.parametrize("is_told_by_greeting", [False, True])
async def test_replies_that_have_come_outlive_their_streams(
    home: Path, monkeypatch: pytest.MonkeyPatch, is_told_by_greeting: bool
) -> None:
    """Where an ended process had more clients than streams of replies are held, only what comes later on the oldest is lost."""
    monkeypatch.setattr(streams_module, "LEFT_MOST", 1)
    async with own_agent(home) as (agent, keeper):
        first = await Visitor.at(keeper.link, *GATEWAY, keep_output=LIMIT)
        await first.ready("k1", standin())
        writers = []
        for number in range(3):
            _, reader, writer = await first.stream("k1", "shell", f"s{number}")
            writers.append(writer)
            sent = encoded(message(f"r{number}", parent=b'{"session": "tab"}'))
            writer.write(struct.pack(">BI", DATA, len(sent)) + sent)
            await asyncio.wait_for(reader.readexactly(len(sent)), 30)
        for writer in writers:
            writer.close()
        first.close()
        await until("its output is kept", lambda: agent.kept_output._keeping)
        if not is_told_by_greeting:
            monkeypatch.setattr(agent.streams, "close_earlier_lives", lambda *_: None)
        second = await Visitor.at(keeper.link, *NEXT_LIFE, keep_output=LIMIT)
        await second.request("adopt", kernels=["k1"])
        assert len(agent.streams.left_of(agent.kernels["k1"], "shell")) == 1
        part = OutputPart.read(await second.request("output", kernel="k1", session="tab"))
        assert ids(list(Records().take(part))) == ["r0", "r1", "r2"]
        second.close()


async def test_a_second_crash_costs_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the process that adopted a kernel is gone as well, what is kept waits for the next one, however long."""
    await site.begun()
    site.kernel.publish("m1")
    await until("it is heard", lambda: site.keeping.number == 1)
    site.kept.adopt(site.its, NEXT_LIFE, LIMIT)
    site.kept.begin(site.its, NEXT_LIFE, LIMIT)
    monkeypatch.setattr(kept_output, "ADOPTED_KEPT", -1.0)
    site.kept.tick()
    assert ids(await site.taken()) == ["m1"]
    site.kept.adopt(site.its, ("gateway", "3"), LIMIT)
    site.kept.tick()
    assert await site.taken() == []


async def test_what_is_being_taken_is_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may be slow: the time after which what nobody took is forgotten counts from when somebody last took of it."""
    await site.begun()
    site.kernel.publish("m1")
    await until("it is heard", lambda: site.keeping.number == 1)
    site.kept.adopt(site.its, NEXT_LIFE, LIMIT)
    assert site.keeping.adopted_at is not None
    site.keeping.adopted_at -= 1000
    assert ids(await site.taken()) == ["m1"]
    site.kept.tick()
    assert ids(await site.taken()) == ["m1"]
    site.keeping.adopted_at -= 1000
    site.kept.tick()
    assert await site.taken() == []


async def test_no_stream_of_output_is_left_for_nobody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a later process left is closed once the agent's own copy is all that counts; and so is one that nobody resumed."""
    monkeypatch.setattr(kept_output, "_NEVER_SETTLED", -1.0)
    async with own_agent(home) as (agent, keeper):
        first = await Visitor.at(keeper.link, *GATEWAY, keep_output=LIMIT)
        await first.ready("k1", standin())
        kernel = agent.kernels["k1"]
        _, reader, writer = await first.stream("k1", "shell")
        early = encoded(message("r1", parent=b'{"session": "tab"}'))
        writer.write(struct.pack(">BI", DATA, len(early)) + early)
        await asyncio.wait_for(reader.readexactly(len(early)), 30)
        writer.close()
        first.close()
        await until("its output is kept", lambda: agent.kept_output._keeping)
        keeping = agent.kept_output._keeping["k1"]
        await keeping.prepare(agent.streams)
        second = await Visitor.at(keeper.link, *NEXT_LIFE, keep_output=LIMIT)
        await second.request("adopt", kernels=["k1"])
        await second.stream("k1", "iopub", "s2")
        second.close()
        third = await Visitor.at(keeper.link, "gateway", "3", keep_output=LIMIT)
        await until("it has left its stream", lambda: agent.streams.left_of(kernel, "iopub"))
        agent.kept_output.tick()
        assert agent.streams.left_of(kernel, "iopub") == []
        await third.request("adopt", kernels=["k1"])
        await third.request("output", kernel="k1", session="tab")  # which has the reply be taken from its stream
        await third.request("forget_output", kernel="k1")

        _, _, writer = await third.stream("k1", "iopub", "s3")
        assert agent.kept_output._replies
        await until("its stream is there", lambda: agent.streams._of(kernel))
        writer.close()
        (stream,) = [each for each in agent.streams._of(kernel) if each.owner[1] == "3"]
        await until("its link is gone", lambda: not stream.relay.linked)
        monkeypatch.setattr(streams_module, "STREAM_LINGER", -1.0)
        monkeypatch.setattr(streams_module, "LOOK", 0.0)
        agent.streams.tick(agent.kept_output.is_keeping)
        await until("it is closed", stream.running.done)
        third.close()


def test_a_flow_keeps_a_tail_of_what_was_acknowledged() -> None:
    """What the peer has is kept up to a limit, in front of what it has not; nothing else about the flow changes."""
    flow = Flow(1 << 20)
    flow.keep_tail(40_000)
    for number in range(10):
        flow.push(bytes([number]) * 10_000)
    while flow.next_frame():
        pass
    flow.attach(75_000)
    begin, chunks = flow.kept()
    data = b"".join(chunks)
    assert begin + len(data) == 100_000
    assert 75_000 - 40_000 <= begin <= 75_000
    assert data == b"".join(bytes([number]) * 10_000 for number in range(10))[begin:]
    assert flow.backlog == 25_000
    flow.drop_tail()
    assert flow.kept()[0] == 75_000


OTHER = ("other", "1")


async def test_a_kernel_that_is_handed_to_and_fro_loses_no_output(site: Site) -> None:
    """Who takes a kernel over is given what its clients missed, also one that had it before: it did not get what came between."""
    site.kept.hand_over(site.its, GATEWAY, LIMIT)
    site.kept.adopt(site.its, OTHER, LIMIT)
    await until("the kernel is listened to", lambda: site.kernel.subscribers)
    for number, (of, by) in enumerate([(OTHER, GATEWAY), (GATEWAY, OTHER), (OTHER, GATEWAY)]):
        site.kernel.publish(f"m{number}")
        await until("it is heard", lambda number=number: site.keeping.number == number + 1)  # type: ignore[misc]
        site.kept.hand_over(site.its, of, LIMIT)
        site.kept.adopt(site.its, by, LIMIT)
        assert ids(await site.taken()) == [f"m{each}" for each in range(number + 1)]
    assert ids(await site.taken(after="m1")) == ["m2"]
    site.kept.forget(site.its)
    assert await site.taken() == []


async def test_what_a_gateway_had_not_passed_on_is_the_new_owners(home: Path) -> None:
    """A gateway that is there loses its kernel: its streams carry nothing more to it, and replies on them are the other one's."""
    async with own_agent(home) as (agent, keeper):
        first = await Visitor.at(keeper.link, *GATEWAY, keep_output=LIMIT)
        await first.ready("k1", standin())
        _, reader, writer = await first.stream("k1", "shell")
        _, stdin, _ = await first.stream("k1", "stdin", "s2")
        reply = encoded(message("r1", parent=b'{"session": "tab"}'))
        writer.write(struct.pack(">BI", DATA, len(reply)) + reply)
        await asyncio.wait_for(reader.readexactly(len(reply)), 30)
        second = await Visitor.at(keeper.link, *OTHER, keep_output=LIMIT)
        await second.request("adopt", kernels=["k1"])
        for each in (reader, stdin):
            while await asyncio.wait_for(each.read(1 << 16), 30):
                pass
        part = OutputPart.read(await second.request("output", kernel="k1", session="tab"))
        assert ids(list(Records().take(part))) == ["r1"]
        with pytest.raises(Refusal, match="another gateway's"):
            await first.request("output", kernel="k1", session="tab")
        assert agent.kept_output.is_keeping(agent.kernels["k1"], "iopub")
        for visitor in (first, second):
            visitor.close()
