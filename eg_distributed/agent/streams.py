"""The streams that gateways have to this node's kernels: opened, resumed, limited, and closed when nobody comes back for them."""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import AbstractSet, Callable, Mapping, Optional

from ..clock import monotonic
from ..protocol import CHANNELS, Stalled, StreamAnswer, StreamHello
from ..streams import DEFAULT_LIMIT, Budget, Relay
from ..wire import LocalWriter, Reader, encode
from .kernels import EXITED, Kernel, Notify
from .leases import is_lost
from .memory import give_back_after_a_flood

STREAM_LINGER = 900.0
"""Seconds for which a stream without a link is kept for its gateway to come back."""
LOOK = 5.0
"""Seconds between two looks at all streams."""
STALL_TOLD = 0.5
"""Seconds, of the time between two ticks, from which on a stall is told: a PUB socket bridges shorter ones by its own queue."""
OUTPUT_LIMIT = 256 * 1024 * 1024
"""Bytes that are kept, at most, of each stream of a kernel's output. Many, since there is no back-pressure beyond: a PUB socket
drops what a reader hasn't taken once that is 1000 messages."""
TAIL_LIMITS = {"iopub": 2 * 1024 * 1024, "shell": 64 * 1024}
"""Bytes that are kept of what a gateway has acknowledged, on one stream of a kernel's output and on those of its replies: what
its process had not passed on yet is gone with it. ZMQ holds up to a thousand messages there."""
TAIL_SECONDS = 30.0
"""Seconds after the last acknowledgement for which they are kept: a gateway that lives has passed them on by then."""
LEFT_MOST = 64
"""Streams of a kernel's replies, at most, that are held for a gateway's next process."""
BUDGET = 512 * 1024 * 1024
"""Bytes that all streams may keep together, however many there are; see Budget."""


class Stream:
    """One resumable stream to a kernel's channel; *owner* is the gateway that it belongs to, and its incarnation."""

    def __init__(self, relay: Relay, kernel: Kernel, channel: str, owner: tuple[str, str]) -> None:
        self.relay = relay
        self.kernel = kernel
        self.channel = channel
        self.owner = owner
        self.unlinked_since = monotonic()
        self.left = False
        """Whether its gateway's process has ended, and what comes on it is kept for the next one."""
        self.collected = 0
        """Up to where, in bytes of the stream, replies were taken from it."""
        self.has_tail = False
        self._acknowledged = (0, 0.0)  # bytes, and since when
        self.running = asyncio.ensure_future(relay.run())

    def age_tail(self, now: float) -> None:
        """Drop the tail if nothing was acknowledged for a while; called every few seconds while it has a link."""
        acknowledged, since = self._acknowledged
        if acknowledged != self.relay.flow.acknowledged:
            self._acknowledged = (self.relay.flow.acknowledged, now)
        elif now - since > TAIL_SECONDS:
            self.relay.flow.drop_tail()


_KERNEL_DEADLINE = 3.0  # seconds for a kernel to take a connection; less than a gateway waits for the answer


class Streams:
    """All streams of an agent, by their ids; *notify* is the kernels' own. Owned by the agent, which calls `tick`.

    *keeps_output* says of a gateway whether output is to be kept for its next process.
    """

    def __init__(
        self, kernels: Mapping[str, Kernel], notify: Notify, keeps_output: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._kernels = kernels
        self._keeps_output = keeps_output
        self._notify = notify
        self._streams: dict[str, Stream] = {}
        self._budget = Budget(BUDGET)
        self._stalling: set[Stream] = set()  # those that are, or were since they were last looked at
        self._looked = 0.0  # when all were last looked at
        self._has_news = False  # one has ended: all are to be looked at
        self._tails: set[tuple[Kernel, tuple[str, str]]] = set()  # whose output has a stream that keeps a tail
        self.on_too_many: Callable[[Kernel], object] = lambda kernel: None
        """Called before streams of replies that were left are closed for being too many, to take what has come on them."""

    async def serve(self, hello: StreamHello, reader: Reader, writer: LocalWriter) -> None:
        """Carry the stream that *hello* opens or resumes over this connection, or say why it can't be.

        Raises StreamBroken, OSError.
        """
        stream, refusal = self._streams.get(hello.stream), ""
        kernel = self._kernels.get(hello.kernel)
        if kernel is not None and is_lost(kernel, hello.lease, (hello.gateway, hello.incarnation)):
            answer = StreamAnswer(ok=False, error="another gateway has taken the kernel over", taken=True)
            writer.write(encode(answer.write()))
            await writer.drain()
            return
        if stream is None:
            stream, refusal = await self._open(hello)
        if stream is None:
            writer.write(encode(StreamAnswer(ok=False, error=refusal).write()))
            await writer.drain()
            return
        relay = stream.relay
        await relay.unlink()
        answer = StreamAnswer(ok=True, received=relay.flow.received, stalled=relay.take_stalled())
        writer.write(encode(answer.write()))
        await relay.serve(reader, writer, hello.received)
        stream.unlinked_since = monotonic()

    async def _open(self, hello: StreamHello) -> tuple[Optional[Stream], str]:
        """Return a new stream, or the reason why there can be none."""
        kernel = self._kernels.get(hello.kernel)
        if hello.resume:
            return None, "the agent no longer has this stream"
        if kernel is None or not kernel.connection or kernel.state == EXITED or hello.channel not in CHANNELS:
            return None, "no such kernel or channel"
        try:
            reader, writer = await asyncio.wait_for(kernel.connect(hello.channel), _KERNEL_DEADLINE)
        except asyncio.TimeoutError:  # one that stands still, with all the connections that it may leave waiting
            return None, f"the kernel does not take a connection within {_KERNEL_DEADLINE:g} s"
        except OSError as error:
            return None, f"cannot connect to the kernel: {error}"
        earlier = self._streams.get(hello.stream)
        if earlier is not None:  # its gateway lost patience and came again, and that one was quicker
            writer.close()
            return earlier, ""
        limit = OUTPUT_LIMIT if hello.channel == "iopub" else DEFAULT_LIMIT
        owner = (hello.gateway, hello.incarnation)
        relay = Relay(reader, writer, limit, self._budget)
        stream = self._streams[hello.stream] = Stream(relay, kernel, hello.channel, owner)
        relay.on_stall = functools.partial(self._stalling.add, stream)
        stream.running.add_done_callback(self._note_end)
        self._keep_tail(stream)
        return stream, ""

    def _keep_tail(self, stream: Stream) -> None:
        """Have *stream* keep a tail if it carries replies, or is the only one of its gateway that does for the output."""
        if stream.channel not in TAIL_LIMITS or not self._keeps_output(stream.owner[0]):
            return
        if stream.channel == "iopub":
            if (stream.kernel, stream.owner) in self._tails:
                return
            self._tails.add((stream.kernel, stream.owner))
        stream.has_tail = True
        stream.relay.flow.keep_tail(TAIL_LIMITS[stream.channel])

    def _pass_tail_on(self, ended: Stream) -> None:
        """Have another stream of the same output keep a tail, now that *ended* is gone."""
        if ended.has_tail and ended.channel == "iopub":
            self._tails.discard((ended.kernel, ended.owner))
            for other in self._of(ended.kernel):
                if other.channel == "iopub" and other.owner == ended.owner:
                    self._keep_tail(other)

    def _note_end(self, _: object) -> None:
        self._has_news = True

    def tick(self, kept: Callable[[Kernel, str], bool] = lambda *_: False) -> None:
        """Tell of output that waits for too slow a reader; close what nobody came back for, and forget what has ended.

        Called each second. A hundred idle kernels have hundreds of streams: those that have stalled are looked at each time, all
        of them every few seconds, and when one has ended. For *kept* see `close_earlier_lives`.
        """
        give_back_after_a_flood(self._budget)
        for stream in list(self._stalling):
            if stream.relay.linked:
                stalled = stream.relay.take_stalled()
                # The other channels have back-pressure, which loses nothing.
                if stalled >= STALL_TOLD and stream.channel == "iopub":
                    self._notify(stream.kernel, Stalled(stream.kernel.id, stream.kernel.attempt, stalled))
            if not stream.relay.is_stalled and (stream.relay.linked or stream.running.done()):
                self._stalling.discard(stream)
        now = monotonic()
        if self._has_news or now - self._looked >= LOOK:
            self._has_news, self._looked = False, now
            self._look_at_all(now, kept)

    def _look_at_all(self, now: float, kept: Callable[[Kernel, str], bool]) -> None:
        left: set[Kernel] = set()
        for stream_id, stream in list(self._streams.items()):
            if stream.relay.linked:
                stream.unlinked_since = now
                stream.age_tail(now)
            elif not stream.left and now - stream.unlinked_since > STREAM_LINGER:
                if stream.channel in TAIL_LIMITS and kept(stream.kernel, stream.channel):
                    stream.left = True
                    left.add(stream.kernel)
                else:
                    stream.relay.close()
            if stream.running.done():
                del self._streams[stream_id]
                self._pass_tail_on(stream)
        self._hold_few(left)

    def kernels(self) -> set[str]:
        """Return the ids of kernels with a stream that its gateway uses, or may come back for."""
        return {stream.kernel.id for stream in self._streams.values() if not stream.running.done()}

    def close_of(self, kernel: Kernel) -> None:
        """Close all streams to *kernel*."""
        for stream in self._streams.values():
            if stream.kernel is kernel:
                stream.relay.close()

    def close_earlier_lives(self, owner: str, living: AbstractSet[str], kept: Callable[[Kernel, str], bool]) -> None:
        """Close the streams of processes of the gateway *owner* that are not among *living*: nobody is left to resume them.

        Those of output and replies stay, where *kept* says of a kernel and a channel that it is kept for the next process.
        """
        left: set[Kernel] = set()
        for stream in self._streams.values():
            if stream.owner[0] == owner and stream.owner[1] not in living:
                if stream.channel in TAIL_LIMITS and kept(stream.kernel, stream.channel):
                    stream.left = True
                    left.add(stream.kernel)
                elif not stream.left:
                    stream.relay.close()
        self._hold_few(left)

    def sever(self, kernel: Kernel, owner: tuple[str, str], kept: Callable[[Kernel, str], bool]) -> None:
        """Have *owner* alone use *kernel* from now on: others neither send to it any more nor hear of it.

        What their streams of output and replies still bring is left for *owner*, where *kept* says so of kernel and channel.
        """
        for stream in self._of(kernel):
            if stream.owner == owner:
                continue
            if stream.channel in TAIL_LIMITS and kept(kernel, stream.channel):
                stream.left = True
                stream.relay.drop_link()
            elif not stream.left:
                stream.relay.close()
        self._hold_few({kernel})

    def leave(self, kernel: Kernel, owner: tuple[str, str]) -> None:
        """Note that the process *owner* has ended, and that another one takes what its streams to *kernel* still bring."""
        for stream in self._of(kernel):
            if stream.owner == owner and stream.channel in TAIL_LIMITS:
                stream.left = True
        self._hold_few({kernel})

    def _hold_few(self, kernels: set[Kernel]) -> None:
        """Close the oldest of the streams of replies that were left of each of *kernels*, where there are too many."""
        if not kernels:
            return
        shells: dict[Kernel, list[Stream]] = {kernel: [] for kernel in kernels}
        for stream in self._streams.values():
            if stream.left and stream.channel == "shell" and stream.kernel in kernels:
                shells[stream.kernel].append(stream)
        for kernel, streams in shells.items():
            if len(streams) > LEFT_MOST:
                self.on_too_many(kernel)
            for stream in streams[:-LEFT_MOST]:
                text = f"kernel {kernel.id}: more than {LEFT_MOST} streams of replies were left; what comes on the oldest is lost"
                print(text, file=sys.stderr, flush=True)
                stream.left = False
                stream.relay.close()

    def give_back(self, kernel: Kernel, owner: tuple[str, str]) -> None:
        """Note that the process *owner* is there after all, and that its streams to *kernel* are its own as before."""
        for stream in self._of(kernel):
            if stream.left and stream.owner == owner:
                stream.left = False
                stream.unlinked_since = monotonic()

    def _of(self, kernel: Kernel) -> list[Stream]:
        return [stream for stream in self._streams.values() if stream.kernel is kernel]

    def left_of(self, kernel: Kernel, channel: str) -> list[Stream]:
        """Return the streams on *channel* that ended processes of gateways have left."""
        return [stream for stream in self._of(kernel) if stream.left and stream.channel == channel]

    def kernels_with_left(self) -> set[Kernel]:
        """Return the kernels that have streams of replies which ended processes of gateways have left."""
        return {stream.kernel for stream in self._streams.values() if stream.left and stream.channel == "shell"}

    def close_left(self, kernel: Kernel, channel: str) -> None:
        """Close those streams: what they brought has been taken."""
        for stream in self.left_of(kernel, channel):
            stream.left = False
            stream.relay.close()
