"""A client that takes its kernel's output more slowly than it comes: output waits on its way, and not in the server's memory.

jupyter_server writes what comes to a websocket, whose buffer has no bound: a hundred clients that read nothing, of a kernel that
prints, took nine gigabytes within a minute. Here no more is taken from such a client's channel until it has confirmed
(`service`) most of what it was sent. What follows then waits in ZMQ's short queue, in the stream to the node, and there
within the agent's budget (`agent/streams.py`). Where that is full as well the kernel's own ZMQ drops output of this client
alone, which the agent tells, and we tell the client.

Of a kernel without an agent no output is held: it would be dropped in the kernel, and nobody would tell. Only output is held:
replies are answers to what the client asked, and may come before output that waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import zmq

from .kept_messages import Kept

_QUEUE: Final = 30
"""Messages that ZMQ may hold of a channel; each may be large."""
_LOOK: Final = 0.25
"""Seconds between two looks whether a client that is held goes on."""
_MUTE_AFTER: Final = 10.0
"""Seconds without a confirmation after which what the system takes from us counts instead: something swallows pongs."""
_LATELY: Final = 5.0
"""Seconds since it was held within which a client lags behind."""


@contextlib.contextmanager
def with_short_queue(context: Any) -> Iterator[None]:
    """Have ZMQ sockets that are made of *context* meanwhile hold few messages; on the server's loop, which makes them all."""
    before = context.sockopts.get(zmq.RCVHWM)
    context.setsockopt(zmq.RCVHWM, _QUEUE)
    try:
        yield
    finally:
        context.sockopts.pop(zmq.RCVHWM, None)
        if before is not None:
            context.sockopts[zmq.RCVHWM] = before


def lose_nothing_by_flush(stream: Any) -> None:
    """Have the `flush` of a ZMQStream leave messages in its socket while nobody receives: it would take and drop them."""
    original = stream.flush

    def flush(flag: int = zmq.POLLIN | zmq.POLLOUT, limit: int | None = None) -> int:
        count = 0
        while stream.receiving() and (limit is None or count < limit) and original(flag, 1):
            count += 1
        return count

    stream.flush = flush


class Listener(Protocol):
    """What is needed of a connection."""

    channels: dict[str, Any]
    serving: bool
    closed: bool
    unconfirmed: Kept
    protocol: Any
    renew: Callable[[], None] | None

    @property
    def has_agent(self) -> bool:
        """Whether the kernel's output can wait on its node."""
        ...

    @property
    def has_kernel(self) -> bool:
        """Whether the server still has the kernel."""
        ...

    def process(self) -> object:
        """Return what is another object, or value, once the kernel has been started again."""
        ...

    def take(self, stream: Any, parts: list[bytes]) -> None:
        """Take a message that came on a channel."""
        ...

    def ask_what_came(self) -> None:
        """Have the client confirm what came."""
        ...


class Pace:
    """How fast one client is given its kernel's output, on the server's loop.

    Its *connection*'s `renew` is called when the kernel was started again while the client lagged behind.
    """

    def __init__(self, connection: Listener) -> None:
        self.is_held = False
        """Whether no more output is taken until the client has confirmed some."""
        self._connection = connection
        self._written: deque[tuple[int, int]] = deque()  # numbers and sizes of what was written, and not confirmed
        self._bytes = 0
        self._confirmed = -math.inf  # when it last confirmed something, on the loop's clock
        self._held = -math.inf  # when it was last held
        self._is_mute = False
        self._looking: asyncio.TimerHandle | None = None

    @property
    def lags(self) -> bool:
        """Whether the client is held, or was lately."""
        return self.is_held or asyncio.get_running_loop().time() - self._held < _LATELY

    @property
    def may_go_on(self) -> bool:
        """Whether the client may be sent more."""
        protocol = self._connection.protocol
        is_taking = self._is_mute and protocol is not None and not protocol.stream.writing()
        return is_taking or self._bytes <= self._connection.unconfirmed.room // 2

    def note_written(self, size: int) -> None:
        """A message of *size* bytes was written, the newest of `unconfirmed`: hold the output if the client lags behind."""
        self._written.append((self._connection.unconfirmed.number, size))
        self._bytes += size
        if not self._connection.has_agent:
            return
        iopub = self._connection.channels.get("iopub")
        # Before a connection is served its channel is somebody else's, who asks `may_go_on`.
        if self.is_held or not self._connection.serving or iopub is None or iopub.closed() or self.may_go_on:
            return
        iopub.stop_on_recv()
        self.is_held = True
        self._confirmed = max(self._confirmed, asyncio.get_running_loop().time())
        self._connection.ask_what_came()
        self._look_again()

    def note_confirmed(self, number: int) -> None:
        """The client has confirmed all messages up to *number*."""
        self._confirmed = asyncio.get_running_loop().time()
        self._is_mute = False
        while self._written and self._written[0][0] <= number:
            self._bytes -= self._written.popleft()[1]
        if self.is_held and self.may_go_on:
            self._go_on()

    async def catch_up(self) -> None:
        """Wait until the client may be sent more, or is gone."""
        loop = asyncio.get_running_loop()
        self._confirmed = max(self._confirmed, loop.time())
        while not (self.may_go_on or self._connection.closed):
            await asyncio.sleep(_LOOK / 4)
            self._is_mute = self._is_mute or loop.time() - self._confirmed > _MUTE_AFTER

    def forget(self) -> None:
        """What was written is somebody else's to confirm."""
        self._written.clear()
        self._bytes = 0

    def end(self) -> None:
        """Hold nothing any more, and take nothing either: somebody else does with the channel what they like."""
        if self.is_held:
            self.is_held = False
            self._held = asyncio.get_running_loop().time()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look_again(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_mute = self._is_mute or loop.time() - self._confirmed > _MUTE_AFTER
        connection, iopub = self._connection, self._connection.channels.get("iopub")
        process = connection.process() if connection.has_kernel else None
        if iopub is not None and process is not None and getattr(iopub, "process", process) != process:
            # ZMQ connects to it when the stream of the one before has ended, which may be hundreds of megabytes later.
            self.end()
            if connection.renew is not None:
                connection.renew()
        elif self.may_go_on:
            self._go_on()
        else:
            self._look_again()

    def _go_on(self) -> None:
        self.end()
        iopub = self._connection.channels.get("iopub")
        if self._connection.serving and iopub is not None and not iopub.closed():
            iopub.on_recv_stream(self._connection.take)
