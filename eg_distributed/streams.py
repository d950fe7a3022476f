"""Resumable byte streams: nothing is lost or doubled when the link under them is cut.

Both ends of a stream (the gateway's and the agent's) run the same code. `Flow` is the bookkeeping without I/O: what has
been read from the local socket is kept until the other end says that it delivered it, so that after a cut everything
unacknowledged is sent again, and what had arrived already is skipped. `Relay` joins a Flow to a local socket and
to one link after another. Standard library only, since the agent carries this file to its node.

A link carries frames: kind (1 byte), length (4 bytes), payload. DATA is payload in order; ACK says how many bytes have
been delivered locally; FIN ends the stream after all data (it counts as one byte, so that it is acknowledged as well).
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from typing import Callable, Optional

from .connections import AT_ONCE, Incoming, handing_over, telling
from .wire import LocalWriter, Reader, Writer

DATA, ACK, FIN = 0, 1, 2
CHUNK = 256 * 1024
"""Bytes of the largest frame, and those that are put on a link before it is waited for."""
ACK_EVERY = 256 * 1024
"""Delivered bytes after which an acknowledgement is due at once; fewer wait for ACK_DELAY."""
ACK_DELAY = 0.05
"""Seconds that a small acknowledgement may wait for company; it only bounds the other end's replay buffer."""
DEFAULT_LIMIT = 16 * 1024 * 1024
"""Bytes that one end keeps for replay before it stops reading its local socket."""
WINDOW = DEFAULT_LIMIT
"""Bytes on the link that the peer has not acknowledged, from which on no more are put there. Far more than ACK_EVERY, so that a
peer acknowledges long before. A stream that keeps more than this for replay (a kernel's output) would else put all of it on a
link where nothing stops it, such as a bridge's channel with other streams on it."""

PACE = 2 * CHUNK
"""Bytes that a flow may take without an acknowledgement before its reader counts as one that does not keep pace: an
acknowledgement is due after ACK_EVERY."""

_MERGED = 16 * 1024
"""Bytes up to which small reads are kept as one: what is sent again after a long cut is searched chunk by chunk."""
_HEADER = struct.Struct(">BI")
_OFFSET = struct.Struct(">Q")


class StreamBroken(Exception):
    """The peer violated the stream's protocol, or asks for bytes that are no longer kept."""


class Budget:
    """What many flows may keep together: *limit* bytes, however many they are.

    Each may keep as much as all of them leave free. So one alone gets half of it, n that want more get 1/(n+1) each, and there
    is always something left for one that comes later. A limit that is fixed when a flow begins cannot do that: those that began
    before a flood would have been promised all of it, each. A quarter is for flows whose readers keep pace, since those whose
    readers are gone would leave them nothing. CHUNK is every flow's own.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept = 0
        self.most = 0
        """The most that was kept; whoever looks at it may set it anew."""
        self._waiting: set[Callable[[], None]] = set()  # what to call when there is more room

    def share(self, in_pace: bool) -> int:
        """Return what a flow may keep now; *in_pace*: whether its reader has taken some of it lately, see PACE."""
        limit = self.limit if in_pace else self.limit - self.limit // 4
        return max(limit - self.kept, CHUNK)

    def take(self, count: int) -> None:
        """A flow keeps *count* bytes more."""
        self.kept += count
        if self.kept > self.most:
            self.most = self.kept

    def give_back(self, count: int) -> None:
        """A flow keeps *count* bytes less: those that wait may look whether they have room."""
        self.kept -= count
        if count:
            for look in list(self._waiting):
                look()

    def wait(self, look: Callable[[], None]) -> None:
        """Call *look* whenever room comes back, until `leave`."""
        self._waiting.add(look)

    def leave(self, look: Callable[[], None]) -> None:
        """Call *look* no more."""
        self._waiting.discard(look)


class Flow:
    """One end of a resumable stream, without I/O: fed by its caller, asked for what to send.

    *limit* is in bytes; *budget* is shared with others. All offsets count payload bytes from the stream's beginning.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, budget: Optional[Budget] = None) -> None:
        self.limit = limit
        self.budget = budget
        self.received = 0  # delivered to the local socket: what a resume tells the peer
        self.over = False  # the peer's FIN came, and all before it is delivered
        self.finish_pending = False  # the peer's FIN came
        self._chunks: deque[bytes] = deque()  # unacknowledged, from offset _acked on
        self._acked = 0
        self._end = 0
        self._unanswered = 0  # bytes that were taken since the peer last acknowledged some
        self.finished = False  # the local socket is at its end
        self._sent = 0  # next offset to put on the link
        self._acknowledged = 0  # last `received` that the peer was told
        self._partial = (
            bytearray()
        )  # of a frame from the link: its header, or an acknowledgement, as far as it has come
        self._within = 0  # bytes of a DATA frame that are still to come
        self._tail: deque[bytes] = deque()  # acknowledged, before offset _acked
        self._tail_bytes = 0
        self._tail_limit = 0
        self.on_moved: Optional[Callable[[int, int], None]] = None
        """Called with how many bytes were read from the local socket, and how many were written to it."""

    def keep_tail(self, limit: int) -> None:
        """Keep the last *limit* bytes of what the peer has acknowledged as well: a peer that is killed takes them along."""
        self._tail_limit = limit
        self._trim_tail(limit)

    def drop_tail(self) -> None:
        """Forget what the peer has acknowledged by now: it has passed that on."""
        self._trim_tail(0)

    def _trim_tail(self, limit: int) -> None:
        while self._tail_bytes > limit:
            self._tail_bytes -= len(self._tail.popleft())

    def kept(self) -> tuple[int, list[bytes]]:
        """Return what is kept, tail included, as chunks, and the offset of the first."""
        chunks = [*self._tail, *self._chunks]
        if self.finished and self._chunks:
            chunks.pop()  # FIN's
        return self._acked - self._tail_bytes, chunks

    def _keep_in_tail(self, chunk: bytes) -> None:
        if self._tail_limit:
            self._tail.append(chunk)
            self._tail_bytes += len(chunk)
            self._trim_tail(self._tail_limit)

    @property
    def acknowledged(self) -> int:
        """Bytes that the peer has delivered, as far as it has said."""
        return self._acked

    @property
    def backlog(self) -> int:
        """Bytes kept because the peer has not acknowledged them."""
        return self._end - self._acked

    @property
    def has_room(self) -> bool:
        """Whether more may be read from the local socket."""
        limit = self.limit
        if self.budget is not None:
            limit = min(limit, self.budget.share(self._unanswered < PACE))
        return not self.finished and self.backlog < limit

    @property
    def is_held(self) -> bool:
        """Whether the peer has to acknowledge something before more is put on the link."""
        return self._sent - self._acked >= WINDOW

    @property
    def complete(self) -> bool:
        """Whether our side has finished and the peer has acknowledged all of it."""
        return self.finished and self._acked == self._end

    @property
    def unacknowledged(self) -> int:
        """Bytes delivered here that the peer does not know of yet."""
        return self.received - self._acknowledged

    def push(self, data: bytes) -> None:
        """Take *data*, read from the local socket, for the peer."""
        if data:
            if self._chunks and len(self._chunks[-1]) + len(data) <= _MERGED:
                self._chunks[-1] += data
            else:
                self._chunks.append(data)
            self._extend(len(data))
            if self.on_moved is not None:
                self.on_moved(len(data), 0)

    def _extend(self, count: int) -> None:
        self._end += count
        self._unanswered += count
        if self.budget is not None:
            self.budget.take(count)

    def leave_budget(self) -> None:
        """The stream is over, and what it keeps will be gone with it: leave its share to the others."""
        budget, self.budget = self.budget, None
        if budget is not None:
            budget.give_back(self.backlog)

    def finish(self) -> None:
        """The local socket is at its end: send FIN after all data."""
        if not self.finished:
            self.finished = True
            self._chunks.append(b"\0")  # FIN's byte in the count; never sent as data
            self._extend(1)

    def attach(self, peer_received: int) -> None:
        """A new link is up, and the peer has delivered *peer_received* bytes: go on from there."""
        if not self._acked <= peer_received <= self._end:
            raise StreamBroken(f"the peer asks for offset {peer_received}, kept are {self._acked} to {self._end}")
        self._drop(peer_received)
        self._sent = peer_received
        self._acknowledged = self.received
        self.finish_pending = False
        self._partial.clear()
        self._within = 0

    def _drop(self, offset: int) -> None:
        """Forget what lies before *offset*: the peer has it."""
        before = self._acked
        while self._chunks and self._acked + len(self._chunks[0]) <= offset:
            chunk = self._chunks.popleft()
            self._acked += len(chunk)
            self._keep_in_tail(chunk)
        if self._acked < offset:
            self._keep_in_tail(self._chunks[0][: offset - self._acked])
            self._chunks[0] = self._chunks[0][offset - self._acked :]
            self._acked = offset
        self._sent = max(self._sent, self._acked)
        if self._acked > before:
            self._unanswered = 0
        if self.budget is not None:
            self.budget.give_back(self._acked - before)

    def next_frame(self) -> bytes | None:
        """Return the next DATA or FIN frame for the link, or None if all has been sent, or as much as the peer may be sent."""
        if self.is_held:
            return None
        data_end = self._end - 1 if self.finished else self._end
        if self._sent < data_end:
            payload = self._slice(self._sent, min(self._sent + AT_ONCE, data_end))
            self._sent += len(payload)
            return _HEADER.pack(DATA, len(payload)) + payload
        if self.finished and self._sent == data_end:
            self._sent += 1
            return _HEADER.pack(FIN, 0)
        return None

    def _slice(self, start: int, stop: int) -> bytes:
        """Return the kept bytes from *start*, at most up to *stop*."""
        last = self._chunks[-1]
        begin = self._end - len(last)
        if start >= begin:  # as a rule: what has come just now
            return last[start - begin : stop - begin]
        offset = self._acked
        parts = []
        for chunk in self._chunks:
            chunk_end = offset + len(chunk)
            if chunk_end > start:
                parts.append(chunk[max(start - offset, 0) : stop - offset])
            if chunk_end >= stop:
                break
            offset = chunk_end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def acknowledge(self) -> bytes | None:
        """Return an ACK frame for all that was delivered here, or None if the peer knows already."""
        if not self.unacknowledged:
            return None
        self._acknowledged = self.received
        return _HEADER.pack(ACK, _OFFSET.size) + _OFFSET.pack(self.received)

    def feed(self, data: bytes) -> list[bytes]:
        """Take *data* from the link and return the payloads in it, to be written to the local socket in order.

        A payload that has not come whole is passed on as far as it has: a large one would be copied again with each piece.
        The caller reports each by `delivered()` the moment it is written, and then, if `finish_pending` is set, the
        stream's end by `deliver_finish()`.
        """
        payloads = []
        position = 0
        if self._within:
            payloads.append(data[: self._within])
            position = len(payloads[0])
            self._within -= position
        if self._partial:
            data = bytes(self._partial) + data
            self._partial.clear()
        size = len(data)
        while size - position >= _HEADER.size:
            kind, length = _HEADER.unpack_from(data, position)
            if length > CHUNK:
                raise StreamBroken(f"a frame of {length} bytes")
            start = position + _HEADER.size
            end = start + length
            if kind == DATA:
                if payload := data[start:end]:
                    payloads.append(payload)
                self._within = length - len(payload)
                position = start + len(payload)
                continue
            if end > size:
                break
            if kind == ACK:
                self._take_ack(data[start:end])
            elif kind == FIN:
                self.finish_pending = True
            else:
                raise StreamBroken(f"a frame of kind {kind}")
            position = end
        self._partial += data[position:]
        return payloads

    def _take_ack(self, payload: bytes) -> None:
        if len(payload) != _OFFSET.size:
            raise StreamBroken(f"an acknowledgement of {len(payload)} bytes")
        (offset,) = _OFFSET.unpack(payload)
        if not self._acked <= offset <= self._end:
            raise StreamBroken(f"an acknowledgement of {offset}, kept are {self._acked} to {self._end}")
        self._drop(offset)

    def delivered(self, count: int) -> None:
        """*count* payload bytes have been written to the local socket."""
        self.received += count
        if self.on_moved is not None:
            self.on_moved(0, count)

    def deliver_finish(self) -> None:
        """All before the peer's FIN has been written to the local socket."""
        if not self.over:
            self.over = True
            self.received += 1


class Relay:
    """Joins a local socket to a chain of links, one at a time; owned by the endpoint that accepted or opened the socket.

    `run()` lives as long as the local socket, whose bytes it takes; `serve(...)` lives as long as one link. Both are coroutines
    that their owner runs as tasks. What comes passes through by calls, in the turn of the loop in which it came: no task is woken
    for it. `closed` is set when the stream is over in both senses: nothing is left to deliver.
    """

    def __init__(
        self,
        reader: Reader,
        writer: LocalWriter,
        limit: int = DEFAULT_LIMIT,
        budget: Optional[Budget] = None,
    ) -> None:
        self.flow = Flow(limit, budget)
        self.on_stall: Optional[Callable[[], None]] = None
        """Called when a full buffer begins to keep us from reading the local socket."""
        self.closed = asyncio.Event()
        self._stalled = 0.0  # see take_stalled
        self._full_since: Optional[float] = None  # in the loop's time, while the local socket is not read
        self._waits_at = budget
        self._source = handing_over(reader)
        self._writer = writer
        self._sink = telling(writer)
        self._sink.on_room = self._local_took
        self._is_behind = False  # the local socket takes no more: the link is not read
        self._wake = asyncio.Event()
        self._serving: Optional[asyncio.Task[None]] = None
        self._link: Optional[Writer] = None
        self._brings: Optional[Incoming] = None  # what the link brings
        self._link_over: Optional[asyncio.Future[Optional[StreamBroken]]] = None
        self._undrained = 0  # bytes put on the link since it was last waited for
        self._ack_timer: Optional[asyncio.TimerHandle] = None

    async def run(self) -> None:
        """Take what comes from the local socket until its end, as far as the replay buffer has room.

        Cancellation: closes the local socket; what the peer has not acknowledged is lost.
        """
        try:
            if not self.closed.is_set():
                self._source.listen(self._push, self._finish)
                self._stall_if_full()
                await self.closed.wait()
        finally:
            self.close()

    def _push(self, data: bytes) -> None:
        """Take *data* from the local socket."""
        self.flow.push(data)
        self._transmit()
        self._stall_if_full()

    def _finish(self) -> None:
        """Take the local socket's end; one that was reset has ended as well."""
        self.flow.finish()
        self._transmit()

    def _stall_if_full(self) -> None:
        """Read no more of the local socket until the peer has acknowledged enough, or others have left enough of the budget."""
        if self._full_since is None and not self.flow.finished and not self.flow.has_room:
            self._full_since = asyncio.get_running_loop().time()
            self._source.pause_reading()
            if self._waits_at is not None:
                self._waits_at.wait(self._room_if_any)
            if self.on_stall is not None:
                self.on_stall()

    def _room_if_any(self) -> None:
        """Read on, if that was stopped and there is room again."""
        if self._full_since is not None and self.flow.has_room:
            self._end_stall()
            self._source.resume_reading()

    def _end_stall(self) -> None:
        if self._full_since is not None:
            self._stalled += asyncio.get_running_loop().time() - self._full_since
            self._full_since = None
            if self._waits_at is not None:
                self._waits_at.leave(self._room_if_any)

    @property
    def linked(self) -> bool:
        """Whether a link is being served now."""
        return self._serving is not None

    @property
    def is_stalled(self) -> bool:
        """Whether a full buffer keeps us from reading the local socket now."""
        return self._full_since is not None

    def take_stalled(self) -> float:
        """Return the seconds, since this was last called, for which a full buffer kept us from reading the local socket.

        What writes there may have dropped something meanwhile. A wait that still goes on counts up to now.
        """
        if self._full_since is not None:
            now = asyncio.get_running_loop().time()
            self._stalled += now - self._full_since
            self._full_since = now
        stalled, self._stalled = self._stalled, 0.0
        return stalled

    async def unlink(self) -> None:
        """End the link that is being served, if any, so that what has been received stays as it is.

        To be awaited before a peer is told that number: until an old link has ended, it may still deliver.
        """
        while self._serving is not None:  # again, if another link was quicker than the one that waits here
            self._serving.cancel()
            await asyncio.wait({self._serving})

    def drop_link(self) -> None:
        """End the link that is being served, if any, as if it were lost. Waits for nothing."""
        if self._serving is not None:
            self._serving.cancel()

    async def serve(self, reader: Reader, writer: Writer, peer_received: int) -> None:
        """Carry the stream over one link until the link ends or the stream is over; a new link replaces an old one.

        Raises StreamBroken if the peer cannot be resumed or talks nonsense. Cancellation: leaves the stream resumable.
        """
        await self.unlink()
        try:
            self.flow.attach(peer_received)
        except StreamBroken:
            writer.close()
            raise
        if self.flow.complete:  # only the peer's last acknowledgement had been lost
            self._shut()
            writer.close()
            return
        self._room_if_any()
        self._link, self._undrained = writer, 0
        serving = self._serving = asyncio.ensure_future(self._both(handing_over(reader), writer))
        try:
            # wait(), since awaiting it directly would make its cancellation by a newer link look like ours.
            await asyncio.wait({serving})
            if not serving.cancelled():
                serving.result()
        finally:
            if not serving.done():
                serving.cancel()
                await asyncio.wait({serving})
            if self._serving is serving:
                self._serving = self._link = None
            writer.close()

    def _transmit(self) -> None:
        """Put what there is on the link, if one is up and keeps pace; else the sender does when it is.

        Called wherever something new comes up rather than by waking a task, which would double a small message's time.
        """
        link = self._link
        if link is None:
            return
        try:
            while self._undrained < CHUNK:
                frame = self.flow.next_frame()
                if frame is None:
                    return
                ack = self.flow.acknowledge()
                link.write(ack + frame if ack else frame)
                self._undrained += len(frame)
        except OSError:
            return  # the link is gone: its receiver sees that too
        self._wake.set()

    async def _both(self, brings: Incoming, writer: Writer) -> None:
        """Carry both directions until one ends; a failure of either is raised.

        Begins both itself: of a link that is replaced before this begins nothing lives on.
        """
        over = self._link_over = asyncio.get_running_loop().create_future()
        sender = asyncio.ensure_future(self._send(writer))
        # What the local socket was slow to take under the link before, it still has: each cut would add to that.
        self._brings, self._is_behind = brings, self._sink.is_full
        try:
            brings.listen(self._take, self._end_link, is_paused=self._is_behind)
            await asyncio.wait({sender, over}, return_when=asyncio.FIRST_COMPLETED)
            if over.done() and not sender.done():
                # The stream is over or the link is lost; the sender then has an ACK of FIN to write at most.
                await asyncio.wait({sender}, timeout=ACK_DELAY)
        finally:
            brings.leave()
            self._brings = None
            sender.cancel()
            await asyncio.wait({sender})
        if over.done() and (broken := over.result()) is not None:
            raise broken
        if brings.failure is not None:
            raise ConnectionResetError(f"the link cannot be read: {brings.failure!r}") from brings.failure
        if not sender.cancelled():
            sender.result()

    def _end_link(self, why: Optional[StreamBroken] = None) -> None:
        """Have the link be over: nothing more comes, or nothing that would make sense."""
        if self._link_over is not None and not self._link_over.done():
            self._link_over.set_result(why)

    async def _send(self, writer: Writer) -> None:
        """Wait for the link whenever it does not keep pace, and end with an acknowledgement when the stream is over."""
        try:
            while True:
                self._wake.clear()
                self._transmit()
                if self.flow.over:
                    self._acknowledge()
                    await writer.drain()
                    return
                if self._undrained >= CHUNK:
                    await writer.drain()
                    self._undrained = 0
                else:
                    await self._wake.wait()
        except OSError:
            return  # the link is gone; the owner brings the next one

    def _acknowledge(self) -> None:
        """Tell the peer what has been delivered here."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._link is None:
            return  # the next link begins with it
        ack = self.flow.acknowledge()
        if ack is not None:
            with contextlib.suppress(OSError):  # the link is gone: its receiver sees that too
                self._link.write(ack)

    def _take(self, data: bytes) -> None:
        """Deliver what the link brings to the local socket; no more is read while that one is slow."""
        if self._link_over is None or self._link_over.done():
            return  # it ended with what came before
        was_held = self.flow.is_held
        try:
            payloads = self.flow.feed(data)
        except StreamBroken as error:
            self._end_link(error)
            return
        if was_held:
            self._transmit()
        if payloads:
            payload = payloads[0] if len(payloads) == 1 else b"".join(payloads)
            # Suppressed: the local socket is gone. Its own end is seen as well, and finishes the stream.
            with contextlib.suppress(OSError):
                self._sink.write(payload)
                self.flow.delivered(len(payload))
        self._room_if_any()
        if self._sink.is_full:
            self._is_behind = True
            if self._brings is not None:
                self._brings.pause_reading()
        else:
            self._settle()

    def _local_took(self) -> None:
        """The local socket has taken what it was slow to take, or is gone: go on with what the link brings."""
        if self._is_behind:
            self._is_behind = False
            if self._brings is not None:
                self._settle()
                self._brings.resume_reading()

    def _settle(self) -> None:
        """Do what is due once all that came is delivered: the end, or an acknowledgement."""
        if self.flow.finish_pending or self.flow.complete:
            if self.flow.finish_pending:
                self.flow.deliver_finish()
            self._shut()
            self._end_link()
        elif self.flow.unacknowledged >= ACK_EVERY:
            self._acknowledge()
        elif self.flow.unacknowledged and self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(ACK_DELAY, self._acknowledge)

    def _shut(self) -> None:
        self.closed.set()
        self._source.leave()
        self._end_stall()
        self.flow.leave_budget()
        self._wake.set()
        self._writer.close()

    def close(self) -> None:
        """End the stream at once, at this end; called by its owner when the kernel or the stream's peer is gone."""
        if not self.closed.is_set():
            self._writer.transport.abort()  # a socket that nobody reads would never finish a polite close
        self._shut()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._serving is not None:
            self._serving.cancel()
