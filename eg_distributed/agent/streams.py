"""The streams that gateways have to this node's kernels: opened, resumed, limited, and closed when nobody comes back for them."""

from __future__ import annotations

import asyncio
from typing import AbstractSet, Mapping, Optional

from ..clock import monotonic
from ..protocol import CHANNELS, Stalled, StreamAnswer, StreamHello
from ..streams import DEFAULT_LIMIT, Budget, Relay
from ..wire import encode
from .kernels import EXITED, Kernel, Notify

STREAM_LINGER = 900.0
"""Seconds for which a stream without a link is kept for its gateway to come back."""
STALL_TOLD = 0.5
"""Seconds, of the time between two ticks, from which on a stall is told: a PUB socket bridges shorter ones by its own queue."""
OUTPUT_LIMIT = 256 * 1024 * 1024
"""Bytes that are kept, at most, of each stream of a kernel's output. Many, since there is no back-pressure beyond: a PUB socket
drops what a reader hasn't taken once that is 1000 messages."""
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
        self.running = asyncio.ensure_future(relay.run())


_KERNEL_DEADLINE = 3.0  # seconds for a kernel to take a connection; less than a gateway waits for the answer


class Streams:
    """All streams of an agent, by their ids; *notify* is the kernels' own. Owned by the agent, which calls `tick`."""

    def __init__(self, kernels: Mapping[str, Kernel], notify: Notify) -> None:
        self._kernels = kernels
        self._notify = notify
        self._streams: dict[str, Stream] = {}
        self._budget = Budget(BUDGET)

    async def serve(self, hello: StreamHello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry the stream that *hello* opens or resumes over this connection, or say why it can't be.

        Raises StreamBroken, OSError.
        """
        stream, refusal = self._streams.get(hello.stream), ""
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
        return stream, ""

    def tick(self) -> None:
        """Close what nobody came back for, forget what has ended, and tell of output that waits for too slow a reader."""
        now = monotonic()
        for stream_id, stream in list(self._streams.items()):
            if stream.relay.linked:
                stream.unlinked_since = now
                stalled = stream.relay.take_stalled()
                # The other channels have back-pressure, which loses nothing.
                if stalled >= STALL_TOLD and stream.channel == "iopub":
                    self._notify(stream.kernel, Stalled(stream.kernel.id, stream.kernel.attempt, stalled))
            elif now - stream.unlinked_since > STREAM_LINGER:
                stream.relay.close()
            if stream.running.done():
                del self._streams[stream_id]

    def kernels(self) -> set[str]:
        """Return the ids of kernels with a stream that its gateway uses, or may come back for."""
        return {stream.kernel.id for stream in self._streams.values() if not stream.running.done()}

    def close_of(self, kernel: Kernel) -> None:
        """Close all streams to *kernel*."""
        for stream in self._streams.values():
            if stream.kernel is kernel:
                stream.relay.close()

    def close_earlier_lives(self, owner: str, living: AbstractSet[str]) -> None:
        """Close the streams of processes of the gateway *owner* that are not among *living*: nobody is left to resume them."""
        for stream in self._streams.values():
            if stream.owner[0] == owner and stream.owner[1] not in living:
                stream.relay.close()
