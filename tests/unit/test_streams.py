"""Nothing is lost or doubled, whatever happens to the links."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from eg_distributed.connections import Connection
from eg_distributed.streams import ACK, ACK_EVERY, CHUNK, DATA, FIN, WINDOW, Budget, Flow, Relay, StreamBroken
from tests.until import until

from .agents import DEADLINE

HEADER = struct.Struct(">BI")
BYTES = random.Random(7).randbytes(4 * CHUNK)


def ack(offset: int) -> bytes:
    return HEADER.pack(ACK, 8) + struct.pack(">Q", offset)


# -- Flow, without I/O -------------------------------------------------------------------------------------------


class End:
    """One end in the simulation: its flow, what was pushed into it and what it delivered, and what its link brings."""

    def __init__(self, limit: int) -> None:
        self.flow = Flow(limit)
        self.pushed = bytearray()
        self.delivered = bytearray()
        self.link: deque[bytes] = deque()  # from the peer, not read yet

    def push(self, size: int) -> None:
        start = len(self.pushed) % (3 * CHUNK)
        data = BYTES[start : start + size]
        self.flow.push(data)
        self.pushed += data

    def read(self, size: int, deliveries: int | None) -> None:
        """Take *size* bytes from the link; only the first *deliveries* payloads get delivered before a cancellation."""
        while self.link and size > 0:
            part = self.link.popleft()
            part, rest = part[:size], part[size:]
            if rest:
                self.link.appendleft(rest)
            size -= len(part)
            payloads = self.flow.feed(part)
            for payload in payloads[:deliveries]:
                self.delivered += payload
                self.flow.delivered(len(payload))
            if deliveries is not None and deliveries < len(payloads):
                return
            if self.flow.finish_pending:
                self.flow.deliver_finish()


class Interleavings(RuleBasedStateMachine):
    """Two ends and a link that may be cut at any byte, with whatever is under way on it lost."""

    @initialize(limit=st.sampled_from([1, 1000, CHUNK, 3 * CHUNK]))
    def begin(self, limit: int) -> None:
        self.ends = (End(limit), End(limit))

    def peer(self, end: End) -> End:
        return self.ends[0] if end is self.ends[1] else self.ends[1]

    @rule(which=st.integers(0, 1), size=st.sampled_from([1, 2, 13, 999, CHUNK - 1, CHUNK]))
    def push(self, which: int, size: int) -> None:
        if self.ends[which].flow.has_room:
            self.ends[which].push(size)

    @rule(which=st.integers(0, 1))
    def finish(self, which: int) -> None:
        self.ends[which].flow.finish()

    @rule(which=st.integers(0, 1), frames=st.integers(1, 3))
    def transmit(self, which: int, frames: int) -> None:
        end = self.ends[which]
        for _ in range(frames):
            frame = end.flow.next_frame()
            if frame is not None:
                self.peer(end).link.append(frame)

    @rule(which=st.integers(0, 1))
    def acknowledge(self, which: int) -> None:
        end = self.ends[which]
        if (frame := end.flow.acknowledge()) is not None:
            self.peer(end).link.append(frame)

    @rule(which=st.integers(0, 1), size=st.sampled_from([1, 3, 5, 6, 100, CHUNK, 4 * CHUNK]))
    def read(self, which: int, size: int) -> None:
        self.ends[which].read(size, None)

    @rule(arrive=st.tuples(st.integers(0, 3 * CHUNK), st.integers(0, 3 * CHUNK)), deliveries=st.integers(0, 2))
    def cut(self, arrive: tuple[int, int], deliveries: int) -> None:
        """The link is cut: some bytes still arrive, of which some payloads are still delivered; the rest is lost."""
        for end, size in zip(self.ends, arrive, strict=True):
            end.read(size, deliveries)
            end.link.clear()
        for end in self.ends:
            end.flow.attach(self.peer(end).flow.received)

    @invariant()
    @precondition(lambda self: hasattr(self, "ends"))
    def in_order_and_once(self) -> None:
        for end in self.ends:
            assert self.peer(end).pushed[: len(end.delivered)] == end.delivered
            assert end.flow.backlog <= end.flow.limit + CHUNK + 1
            if end.flow.over:
                assert end.delivered == self.peer(end).pushed
                assert self.peer(end).flow.finished

    def teardown(self) -> None:
        """At the end, an undisturbed link brings all that is missing."""
        if not hasattr(self, "ends"):
            return
        for _ in range(100):
            for end in self.ends:
                while (frame := end.flow.next_frame()) is not None:
                    self.peer(end).link.append(frame)
                end.read(1 << 30, None)
                if (frame := end.flow.acknowledge()) is not None:
                    self.peer(end).link.append(frame)
            if not any(end.link for end in self.ends):
                break
        for end in self.ends:
            end.read(1 << 30, None)
            assert end.delivered == self.peer(end).pushed
            assert end.flow.over == self.peer(end).flow.finished
            assert end.flow.complete == end.flow.finished
            assert end.flow.backlog == 0


def test_any_interleaving_loses_and_doubles_nothing() -> None:
    """Whatever the order of pushes, cuts, resumes and finishes: every byte is delivered once and in order."""
    quick = settings(max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Interleavings, settings=quick)


def test_a_flow_says_when_it_has_no_room() -> None:
    """Room ends at the limit, and comes back with the peer's acknowledgement."""
    flow = Flow(limit=1000)
    flow.push(BYTES[:999])
    assert flow.has_room
    flow.push(BYTES[:500])
    assert not flow.has_room
    assert flow.backlog == 1499
    flow.next_frame()
    flow.feed(ack(500))
    assert flow.has_room
    assert flow.backlog == 999


@pytest.mark.parametrize("count", [1, 2, 20, 200])
def test_all_flows_keep_no_more_than_their_budget(count: int) -> None:
    """However many there are when the flood comes, and all of them opened before it: together they stay within it."""
    budget = Budget(100 * CHUNK)
    flows = [Flow(limit=1 << 40, budget=budget) for _ in range(count)]
    wanting = True
    while wanting:
        wanting = False
        for flow in flows:
            if flow.has_room:
                flow.push(bytes(CHUNK // 4))
                wanting = True
    kept = sum(flow.backlog for flow in flows)
    assert kept == budget.kept
    own = count * CHUNK  # without which one whose reader keeps pace could not go on
    assert kept <= max(budget.limit, own) + CHUNK
    if count < 100:
        late = Flow(limit=1 << 40, budget=budget)
        assert late.has_room  # something is left for who comes later
        late.push(bytes(CHUNK))
        assert max(flow.backlog for flow in flows) - min(flow.backlog for flow in flows) <= CHUNK  # and nobody has all


def test_a_reader_that_keeps_pace_has_room_beside_those_that_do_not() -> None:
    """Forty flows that nobody acknowledges take what they can; one that is acknowledged may still keep many times as much."""
    budget = Budget(400 * CHUNK)
    stalled = [Flow(limit=1 << 40, budget=budget) for _ in range(40)]
    while any(flow.has_room for flow in stalled):
        for flow in stalled:
            if flow.has_room:
                flow.push(bytes(CHUNK))
    flow, acknowledged = Flow(limit=1 << 40, budget=budget), 0
    for _ in range(40):
        assert flow.has_room
        flow.push(bytes(CHUNK + CHUNK // 2))
        while flow.next_frame() is not None:
            pass
        acknowledged += CHUNK
        flow.feed(ack(acknowledged))
    assert flow.backlog == 20 * CHUNK
    assert budget.kept <= budget.limit


def test_a_flows_share_comes_back() -> None:
    """With an acknowledgement, a resume, the peer's word on the end, and when the stream is over with something unread."""
    budget = Budget(1 << 30)
    flow, left = Flow(budget=budget), Flow(budget=budget)
    for each in (flow, left):
        each.push(BYTES[:1000])
        each.finish()
        while each.next_frame() is not None:
            pass
    assert budget.kept == 2 * 1001
    flow.feed(ack(300))
    flow.attach(700)
    assert budget.kept == 301 + 1001
    flow.attach(1001)
    left.leave_budget()
    left.leave_budget()
    assert budget.kept == 0


@pytest.mark.parametrize("offset", [0, 99, 201])
def test_an_offset_that_is_not_kept_breaks_the_stream(offset: int) -> None:
    """A peer that asks for what was acknowledged and dropped, or for what never was, hears so at once."""
    flow = Flow()
    flow.push(BYTES[:200])
    flow.next_frame()
    flow.feed(ack(100))
    with pytest.raises(StreamBroken, match="kept are 100 to 200"):
        flow.attach(offset)


@pytest.mark.parametrize("offset", [3, 11])
def test_an_impossible_acknowledgement_breaks_the_stream(offset: int) -> None:
    """An acknowledgement that goes backward, or beyond what was sent, is no acknowledgement."""
    flow = Flow()
    flow.push(BYTES[:10])
    flow.next_frame()
    flow.feed(ack(4))
    with pytest.raises(StreamBroken, match="acknowledgement"):
        flow.feed(ack(offset))


@pytest.mark.parametrize(
    "nonsense",
    [HEADER.pack(DATA, CHUNK + 1), HEADER.pack(7, 0), HEADER.pack(ACK, 3) + b"abc"],
    ids=["oversized", "unknown kind", "short acknowledgement"],
)
def test_nonsense_breaks_the_stream(nonsense: bytes) -> None:
    """A frame that no peer of ours sends ends the stream, before memory is spent on it."""
    with pytest.raises(StreamBroken):
        Flow().feed(nonsense)


def test_no_frame_is_longer_than_a_peer_accepts() -> None:
    """However much is waiting, it leaves in frames of one chunk at most, and whole."""
    flow, peer = Flow(limit=1 << 30), Flow()
    for _ in range(5):
        flow.push(BYTES[: CHUNK - 1])
    got = b""
    while (frame := flow.next_frame()) is not None:
        assert len(frame) <= CHUNK + HEADER.size
        got += b"".join(peer.feed(frame))
    assert got == BYTES[: CHUNK - 1] * 5


def test_the_end_is_announced_once_and_after_all_data() -> None:
    """FIN follows the last byte, and again after a cut that lost it."""
    flow = Flow()
    flow.push(b"last")
    flow.finish()
    flow.finish()
    frames = [flow.next_frame(), flow.next_frame(), flow.next_frame()]
    assert frames == [HEADER.pack(DATA, 4) + b"last", HEADER.pack(FIN, 0), None]
    flow.attach(4)
    assert flow.next_frame() == HEADER.pack(FIN, 0)
    assert not flow.complete
    flow.feed(ack(5))
    assert flow.complete


def test_no_more_is_put_on_the_link_than_the_window() -> None:
    """Without an acknowledgement a peer is sent the window and less than a frame more; each one makes room, up to FIN."""
    flow, peer, data = Flow(1 << 40), Flow(), bytes(3 * WINDOW + 1)
    flow.push(data)
    flow.finish()
    got = 0
    while not peer.over:
        before = got
        while (frame := flow.next_frame()) is not None:
            got += sum(map(len, peer.feed(frame)))
        assert flow.is_held == (got < len(data))
        assert got - before < WINDOW + CHUNK
        peer.delivered(got - before)
        if peer.finish_pending:
            peer.deliver_finish()
        told = peer.acknowledge()
        assert told is not None
        flow.feed(told)
    assert got == len(data)
    assert flow.complete


def test_an_end_that_was_not_delivered_comes_again() -> None:
    """What a cut keeps from being delivered takes the end behind it along: a resumed stream is not over before its last byte."""
    flow, peer = Flow(), Flow()
    flow.push(b"last")
    flow.finish()
    assert peer.feed(b"".join(flow.next_frame() or b"" for _ in range(2))) == [b"last"]
    assert peer.finish_pending
    peer.attach(0)
    flow.attach(peer.received)
    assert peer.feed(flow.next_frame() or b"") == [b"last"]
    assert not peer.finish_pending
    peer.delivered(4)
    assert peer.feed(flow.next_frame() or b"") == []
    assert peer.finish_pending


def test_what_is_acknowledged_before_it_was_sent_is_not_sent() -> None:
    """A peer may say that it has what no frame of this link has brought: what follows begins where it says."""
    flow = Flow()
    flow.push(b"abcdef")
    flow.feed(ack(4))
    assert flow.next_frame() == HEADER.pack(DATA, 2) + b"ef"
    assert flow.next_frame() is None


def test_a_new_link_is_told_once_what_was_received() -> None:
    """The resumption says it, so no acknowledgement follows before anything else is delivered."""
    flow = Flow()
    flow.delivered(5)
    flow.attach(0)
    assert flow.acknowledge() is None
    flow.delivered(1)
    assert flow.acknowledge() == ack(6)


def test_a_tail_has_what_is_acknowledged_in_the_middle_of_a_read() -> None:
    """A peer acknowledges what it has delivered, which ends anywhere."""
    flow = Flow()
    flow.keep_tail(100)
    flow.push(b"abcdef")
    flow.next_frame()
    flow.feed(ack(4))
    begin, chunks = flow.kept()
    assert (begin, b"".join(chunks)) == (0, b"abcdef")


def test_what_was_acknowledged_is_kept_up_to_a_limit() -> None:
    """The tail has the newest of what the peer has, whole reads of it, and never the byte that stands for the end."""
    flow = Flow()
    flow.keep_tail(100)
    acknowledged = 0
    for part, kept in ((b"a" * 60, [b"a" * 60]), (b"b" * 40, [b"a" * 60, b"b" * 40]), (b"c", [b"b" * 40, b"c"])):
        flow.push(part)
        flow.next_frame()
        acknowledged += len(part)
        flow.feed(ack(acknowledged))
        assert flow.kept() == (acknowledged - sum(map(len, kept)), kept)
    flow.push(b"d")
    flow.finish()
    assert flow.kept() == (60, [b"b" * 40, b"c", b"d"])
    flow.drop_tail()
    assert flow.kept() == (101, [b"d"])


@pytest.mark.parametrize("say", [lambda flow: flow.feed(ack(0)), lambda flow: flow.attach(0)], ids=["ack", "resume"])
def test_a_reader_that_takes_nothing_does_not_keep_pace(say: Callable[[Flow], object]) -> None:
    """An acknowledgement, or a resume, with which nothing new was delivered gives no share of what readers in pace have."""
    budget = Budget(40 * CHUNK)
    hogging, flow = Flow(limit=1 << 40, budget=budget), Flow(limit=1 << 40, budget=budget)
    hogging.push(bytes(30 * CHUNK))
    flow.push(bytes(2 * CHUNK))
    flow.next_frame()
    say(flow)
    assert not flow.has_room
    flow.feed(ack(1))
    assert flow.has_room


# -- Relay, over real sockets ------------------------------------------------------------------------------------

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def joined() -> tuple[Ends, Ends]:
    """Return two ends of a connection."""
    one, other = socket.socketpair()
    return await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=other)


class Pair:
    """Two relays: *near* is what one application talks to, *far* what the other does; links between come and go."""

    def __init__(self, near: Ends, far: Ends, relays: tuple[Relay, Relay]) -> None:
        self.near, self.far, self.relays = near, far, relays
        self.running = [asyncio.ensure_future(relay.run()) for relay in relays]
        self.link: tuple[Ends, Ends] | None = None
        self.serving: list[asyncio.Task[None]] = []

    @classmethod
    async def make(cls, limit: int = 1 << 20) -> Pair:
        near, first = await joined()
        second, far = await joined()
        return cls(near, far, (Relay(*first, limit=limit), Relay(*second, limit=limit)))

    async def connect(self) -> None:
        """Bring a new link; the old one, if any, is gone already."""
        if self.serving:
            await asyncio.wait(self.serving)
        self.link = await joined()
        received = [relay.flow.received for relay in self.relays]
        self.serving = [
            asyncio.ensure_future(relay.serve(*end, told))
            for relay, end, told in zip(self.relays, self.link, reversed(received), strict=True)
        ]

    def cut(self) -> None:
        """Cut the link; what is under way on it is lost."""
        assert self.link is not None
        for _, writer in self.link:
            writer.transport.abort()

    async def close(self) -> None:
        for relay in self.relays:
            relay.close()
        await asyncio.wait([*self.running, *self.serving])
        for _, writer in (self.near, self.far):
            writer.close()


@contextlib.asynccontextmanager
async def pair(limit: int = 1 << 20) -> AsyncIterator[Pair]:
    made = await Pair.make(limit)
    try:
        yield made
    finally:
        await made.close()


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), 50_000):
        writer.write(data[start : start + 50_000])
        await writer.drain()


@pytest.mark.parametrize("seed", range(4))
async def test_megabytes_survive_cuts_in_both_directions(seed: int) -> None:
    """Links are cut again and again while megabytes flow both ways, and every byte arrives once and in order."""
    chance = random.Random(seed)
    there, back = chance.randbytes(6_000_000), chance.randbytes(5_000_000)
    # So small that acknowledgements set the pace, not the machine: the cuts then come as often everywhere.
    async with pair(limit=1 << 18) as streams:
        (near_reader, near_writer), (far_reader, far_writer) = streams.near, streams.far
        traffic = asyncio.gather(
            send(near_writer, there),
            send(far_writer, back),
            far_reader.readexactly(len(there)),
            near_reader.readexactly(len(back)),
        )
        cuts = 0
        while not traffic.done():
            await streams.connect()
            passed = streams.relays[0].flow.received + streams.relays[1].flow.received
            goal = passed + chance.randrange(1, 800_000)
            await until(
                "bytes pass",
                lambda: traffic.done() or sum(relay.flow.received for relay in streams.relays) >= goal,  # noqa: B023
            )
            streams.cut()
            cuts += 1
        _, _, arrived, returned = await traffic
    assert cuts > 2  # how many depends on the pace; more than one shows that a resumed stream resumes again
    assert arrived == there
    assert returned == back


async def test_the_end_of_a_socket_arrives_after_a_cut() -> None:
    """An application that closes while no link is up is seen to close, after its last byte."""
    async with pair() as streams:
        streams.near[1].write(b"last words")
        streams.near[1].close()
        await streams.connect()
        assert await asyncio.wait_for(streams.far[0].read(), DEADLINE) == b"last words"
        await asyncio.wait_for(asyncio.wait(streams.running), DEADLINE)
        assert streams.relays[0].flow.complete


async def test_an_unacknowledging_peer_stops_the_reading() -> None:
    """A peer that acknowledges nothing costs the limit and one chunk of memory, and the application waits."""
    limit = 1 << 20
    (near, local), (link, far) = await joined(), await joined()
    relay = Relay(*local, limit=limit)
    running = asyncio.ensure_future(relay.run())
    serving = asyncio.ensure_future(relay.serve(*link, 0))
    sending = asyncio.ensure_future(send(near[1], BYTES * 4))
    heard = bytearray()

    async def listen() -> None:
        while True:
            heard.extend(await far[0].read(CHUNK))

    listening = asyncio.ensure_future(listen())
    await until("the buffer is full", lambda: not relay.flow.has_room)
    await until("the link is idle", lambda: len(heard) >= relay.flow.backlog)
    assert relay.flow.backlog <= limit + CHUNK
    assert not sending.done()
    full = relay.flow.backlog
    far[1].write(ack(full))
    await until("it goes on after an acknowledgement", lambda: len(heard) > full + limit)
    for task in (listening, sending, running, serving):
        task.cancel()
    await asyncio.wait({listening, sending, running, serving})
    for _, writer in (near, far):
        writer.close()


@pytest.mark.parametrize("window", [ACK_EVERY // 2, ACK_EVERY - 1, ACK_EVERY, 1 << 20])
async def test_a_window_of_any_size_holds_nothing_up(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes both ways go through, whether acknowledgements are due at once or after a while when the window is full."""
    monkeypatch.setattr("eg_distributed.streams.WINDOW", window)
    sent = BYTES * 2
    async with pair(limit=1 << 28) as streams:
        await streams.connect()
        sending = [asyncio.ensure_future(send(end[1], sent)) for end in (streams.near, streams.far)]
        both = asyncio.gather(*(end[0].readexactly(len(sent)) for end in (streams.near, streams.far)))
        assert await asyncio.wait_for(both, DEADLINE) == [sent, sent]
        await asyncio.wait(sending)


async def test_room_that_others_leave_is_taken() -> None:
    """A stream that waits because others keep the budget's bytes goes on when one of them is over, without word from its peer."""
    budget = Budget(4 * CHUNK)
    hogging = Flow(limit=1 << 40, budget=budget)
    hogging.push(bytes(8 * CHUNK))
    near, local = await joined()
    relay = Relay(*local, 1 << 40, budget)
    running = asyncio.ensure_future(relay.run())
    sending = asyncio.ensure_future(send(near[1], bytes(3 * CHUNK)))
    await until("its own chunk is full", lambda: not relay.flow.has_room)
    assert CHUNK <= relay.flow.backlog < 2 * CHUNK
    hogging.leave_budget()
    await until("it goes on", lambda: relay.flow.backlog >= 2 * CHUNK)
    relay.close()
    await asyncio.wait_for(running, DEADLINE)
    assert budget.kept == 0
    assert not budget._waiting  # else the relay would be asked for ever, and never be freed
    sending.cancel()
    await asyncio.wait({sending})
    near[1].close()


async def test_a_stall_is_counted_while_it_lasts() -> None:
    """For how long a full buffer keeps the application waiting is known before the next link ends that, and told once."""
    async with pair(limit=1000) as streams:
        streams.near[1].write(BYTES[:5000])
        await until("the buffer is full", lambda: not streams.relays[0].flow.has_room)
        streams.near[1].write(BYTES[5000:6000])
        await until("the stall is counted", lambda: streams.relays[0].take_stalled() > 0)
        await streams.connect()
        assert await asyncio.wait_for(streams.far[0].readexactly(6000), DEADLINE) == BYTES[:6000]
        await until("it is over", lambda: streams.relays[0].flow.has_room and not streams.relays[0].take_stalled())


async def test_a_new_link_replaces_an_old_one() -> None:
    """A link that hangs does not keep the stream from a fresh one, and bytes on the old one are neither lost nor doubled."""
    near, local = await joined()
    relay = Relay(*local)
    running = asyncio.ensure_future(relay.run())
    (old, old_peer), (new, new_peer) = await joined(), await joined()
    first = asyncio.ensure_future(relay.serve(*old, 0))
    near[1].write(b"hello")
    assert await asyncio.wait_for(old_peer[0].readexactly(10), DEADLINE) == HEADER.pack(DATA, 5) + b"hello"
    second = asyncio.ensure_future(relay.serve(*new, 2))
    assert await asyncio.wait_for(new_peer[0].readexactly(8), DEADLINE) == HEADER.pack(DATA, 3) + b"llo"
    assert await asyncio.wait_for(old_peer[0].read(), DEADLINE) == b""
    await asyncio.wait_for(first, DEADLINE)
    assert relay.linked
    new_peer[1].write(HEADER.pack(DATA, 3) + b"bye")
    assert await asyncio.wait_for(near[0].readexactly(3), DEADLINE) == b"bye"
    relay.close()
    await asyncio.wait({running, second})
    for _, writer in (near, old_peer, new_peer):
        writer.close()


async def test_after_unlink_what_was_received_stays() -> None:
    """Bytes that an old link still has for us count before its end or never, so that a peer can be told a number."""
    near, local = await joined()
    relay = Relay(*local)
    (_, writer), (_, peer) = await joined()
    reader = asyncio.StreamReader()
    serving = asyncio.ensure_future(relay.serve(reader, writer, 0))
    await until("the link serves", lambda: relay.linked)
    for size in (1, 2, 3):
        reader.feed_data(HEADER.pack(DATA, size) + b"x" * size)
        await asyncio.sleep(0)
    reader.feed_data(HEADER.pack(DATA, 4) + b"late")
    await relay.unlink()
    told = relay.flow.received
    await asyncio.wait_for(serving, DEADLINE)
    reader.feed_data(HEADER.pack(DATA, 5) + b"later")
    for _ in range(10):
        await asyncio.sleep(0)
    assert relay.flow.received == told
    relay.close()
    near[1].close()
    peer.close()


async def test_of_several_new_links_the_last_one_stays() -> None:
    """Links that come at the same moment replace each other, so that never two carry the stream."""
    near, local = await joined()
    relay = Relay(*local)
    running = asyncio.ensure_future(relay.run())
    links = [await joined() for _ in range(4)]
    serving = [asyncio.ensure_future(relay.serve(*links[0][0], 0))]
    await until("the first link serves", lambda: relay.linked)
    serving += [asyncio.ensure_future(relay.serve(*link, 0)) for link, _ in links[1:]]
    await asyncio.wait_for(asyncio.wait(serving[:-1]), DEADLINE)
    near[1].write(b"hello")
    assert await asyncio.wait_for(links[-1][1][0].readexactly(10), DEADLINE) == HEADER.pack(DATA, 5) + b"hello"
    relay.close()
    await asyncio.wait({running, serving[-1]})
    for _, (_, writer) in links:
        writer.close()
    near[1].close()


async def test_a_resume_after_the_last_acknowledgement_was_lost_ends_the_stream() -> None:
    """If a cut took only the acknowledgement of the end, the resume ends the stream, without another round."""
    near, local = await joined()
    relay = Relay(*local)
    running = asyncio.ensure_future(relay.run())
    link, peer = await joined()
    serving = asyncio.ensure_future(relay.serve(*link, 0))
    near[1].write(b"bye")
    near[1].close()
    expected = HEADER.pack(DATA, 3) + b"bye" + HEADER.pack(FIN, 0)
    assert await asyncio.wait_for(peer[0].readexactly(len(expected)), DEADLINE) == expected
    peer[1].transport.abort()
    await asyncio.wait_for(serving, DEADLINE)
    assert not relay.closed.is_set()
    fresh, other = await joined()
    await asyncio.wait_for(relay.serve(*fresh, 4), DEADLINE)
    assert relay.closed.is_set()
    await asyncio.wait_for(running, DEADLINE)
    other[1].close()


async def test_a_peer_that_cannot_be_resumed_is_an_error() -> None:
    """`serve` raises StreamBroken for an offset that was never sent, so that its owner can report the loss."""
    _, local = await joined()
    link, _ = await joined()
    with pytest.raises(StreamBroken):
        await Relay(*local).serve(*link, 5)
    link[1].close()
    local[1].close()


async def test_the_end_is_acknowledged_before_the_link_goes() -> None:
    """A peer whose last bytes and end arrived hears so over that link: it need not come again to learn it."""
    near, local = await joined()
    relay = Relay(*local)
    running = asyncio.ensure_future(relay.run())
    link, peer = await joined()
    serving = asyncio.ensure_future(relay.serve(*link, 0))
    peer[1].write(HEADER.pack(DATA, 3) + b"bye" + HEADER.pack(FIN, 0))
    assert ack(4) in await asyncio.wait_for(peer[0].read(), DEADLINE)
    assert await asyncio.wait_for(near[0].read(), DEADLINE) == b"bye"
    await asyncio.wait_for(asyncio.wait({running, serving}), DEADLINE)
    near[1].close()
    peer[1].close()


async def test_an_acknowledged_end_is_the_end() -> None:
    """Once the peer has all that the application said, and its end, the stream is over, whatever the peer still might say."""
    near, local = await joined()
    relay = Relay(*local)
    running = asyncio.ensure_future(relay.run())
    link, peer = await joined()
    serving = asyncio.ensure_future(relay.serve(*link, 0))
    near[1].write(b"bye")
    near[1].close()
    expected = HEADER.pack(DATA, 3) + b"bye" + HEADER.pack(FIN, 0)
    assert await asyncio.wait_for(peer[0].readexactly(len(expected)), DEADLINE) == expected
    peer[1].write(ack(4))
    await asyncio.wait_for(running, DEADLINE)
    await asyncio.wait_for(serving, DEADLINE)
    peer[1].close()


async def test_closing_waits_for_no_application() -> None:
    """An application that reads nothing does not keep its socket, and what was meant for it, from going at once."""
    near, local = await joined()
    relay = Relay(*local)
    link, peer = await joined()
    serving = asyncio.ensure_future(relay.serve(*link, 0))
    sending = asyncio.ensure_future(send(peer[1], (HEADER.pack(DATA, CHUNK) + bytes(CHUNK)) * 8))
    await until("its buffers are full", lambda: local[1].transport.get_write_buffer_size() > 0)
    relay.close()
    await asyncio.wait_for(local[1].wait_closed(), DEADLINE)
    sending.cancel()
    await asyncio.wait({sending, serving})
    near[1].close()
    peer[1].close()


async def test_no_moment_of_a_stall_is_counted_twice() -> None:
    """However often it is asked for while it lasts, all that is told of a stall is no more than the time that passed."""
    async with pair(limit=1000) as streams:
        began = asyncio.get_running_loop().time()
        streams.near[1].write(BYTES[:5000])
        await until("it is stalled", lambda: streams.relays[0].take_stalled() > 0)
        told = sum(streams.relays[0].take_stalled() for _ in range(1000))
        assert told <= asyncio.get_running_loop().time() - began
        await streams.connect()
        await asyncio.wait_for(streams.far[0].readexactly(5000), DEADLINE)
        await until("it is over", lambda: streams.relays[0].flow.has_room)
        told += streams.relays[0].take_stalled()
        assert told <= asyncio.get_running_loop().time() - began


async def test_many_bytes_are_acknowledged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that has sent ACK_EVERY bytes hears of their delivery without waiting for the time of small ones."""
    monkeypatch.setattr("eg_distributed.streams.ACK_DELAY", 3600.0)
    near, local = await joined()
    relay = Relay(*local)
    link, peer = await joined()
    serving = asyncio.ensure_future(relay.serve(*link, 0))
    peer[1].write((HEADER.pack(DATA, CHUNK) + bytes(CHUNK)) * 4)
    reading = asyncio.ensure_future(near[0].readexactly(4 * CHUNK))
    told = 0
    while told <= 4 * CHUNK - 256 * 1024:
        kind, size = HEADER.unpack(await asyncio.wait_for(peer[0].readexactly(HEADER.size), DEADLINE))
        assert kind == ACK
        (told,) = struct.unpack(">Q", await peer[0].readexactly(size))
    await asyncio.wait_for(reading, DEADLINE)
    serving.cancel()
    await asyncio.wait({serving})
    for _, writer in (near, local, peer):
        writer.close()


def _has_come(link: Connection) -> bool:
    return bool(link._unread)


async def test_a_cut_hands_nothing_more_to_a_socket_that_is_full() -> None:
    """A new link is not read while the local socket still has what it was slow to take under the ones before."""
    near, other = socket.socketpair()
    other.setblocking(False)
    loop = asyncio.get_running_loop()
    _, local = await loop.create_unix_connection(Connection, sock=near)
    relay = Relay(local, local)
    running = asyncio.ensure_future(relay.run())
    kept = 0
    while not local.is_full:
        local.write(bytes(CHUNK))
        kept += CHUNK
    link: Connection
    for number in range(3):
        ours, theirs = socket.socketpair()
        _, link = await loop.create_unix_connection(Connection, sock=ours)
        theirs.send(HEADER.pack(DATA, 5) + b"hello")
        if number:  # it has come before the link is served, as behind the answer to its hello
            await until("it has come", functools.partial(_has_come, link))
        serving = asyncio.ensure_future(relay.serve(link, link, 0))
        await until("the link serves", lambda: relay.linked)
        for _ in range(10):
            await asyncio.sleep(0)
        assert relay.flow.received == 0
        if number < 2:
            theirs.close()
            await relay.unlink()
            await asyncio.wait({serving})
    got = bytearray()
    while len(got) < kept + 5:
        got += await asyncio.wait_for(loop.sock_recv(other, CHUNK), DEADLINE)
    assert got[kept:] == b"hello"
    relay.close()
    await asyncio.wait({running, serving})
    theirs.close()
    other.close()


async def test_a_link_whose_reader_has_a_defect_is_lost_and_the_stream_goes_on() -> None:
    """Whatever a link's reader raises, its owner hears of it as of a lost link, and brings the next one."""

    class Defective(asyncio.StreamReader):
        async def read(self, n: int = -1) -> bytes:
            raise ValueError("a defect")

    near, local = await joined()
    relay = Relay(*local)
    running = asyncio.ensure_future(relay.run())
    (_, writer), (_, peer) = await joined()
    with pytest.raises(ConnectionResetError, match="a defect"):
        await asyncio.wait_for(relay.serve(Defective(), writer, 0), DEADLINE)
    assert not relay.linked
    assert not relay.closed.is_set()
    relay.close()
    await asyncio.wait({running})
    near[1].close()
    peer.close()
