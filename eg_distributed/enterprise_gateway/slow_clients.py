"""A client that takes its kernel's output more slowly than it comes: output waits on its way, and not in the gateway's memory.

jupyter_server writes what comes to a websocket, whose buffer has no bound: a hundred clients that read nothing, of a kernel that
prints, took nine gigabytes within a minute. Here no more is taken from such a client's channel until it has confirmed
(`reconnects`) most of what it was sent. What follows then waits in ZMQ's short queue, in the stream to the node, and there
within the agent's budget (`agent/streams.py`). Where that is full as well the kernel's own ZMQ drops output of this client
alone, which the agent tells, and we tell the client.

Only output is held: replies are answers to what the client asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import zmq

from . import notebooks

_QUEUE: Final = 30
"""Messages that ZMQ may hold of a channel; each may be large."""
_LOOK: Final = 0.1
"""Seconds between two looks whether a client that is held goes on."""
_MUTE_AFTER: Final = 10.0
"""Seconds without a confirmation after which what the system takes from us counts instead: something swallows pongs."""


@contextlib.contextmanager
def with_short_queue(context: Any) -> Iterator[None]:
    """Have ZMQ sockets that are made of *context* meanwhile hold few messages; on the gateway's loop, which makes them all."""
    context.setsockopt(zmq.RCVHWM, _QUEUE)
    try:
        yield
    finally:
        context.sockopts.pop(zmq.RCVHWM, None)


class Pace:
    """How fast one websocket is given its kernel's output, on the gateway's loop.

    *handler* is jupyter_server's; *connection* is what `reconnects` notes of it: `serving`, `unconfirmed`, `protocol`; *ask* has
    the client confirm what came.
    """

    def __init__(self, handler: Any, connection: Any, ask: Callable[[], None]) -> None:
        self.is_held = False
        """Whether no more output is taken until the client has confirmed some."""
        self._handler = handler
        self._connection = connection
        self._ask = ask
        self._confirmed = -math.inf  # when it last confirmed something, on the loop's clock
        self._is_mute = False
        self._looking: asyncio.TimerHandle | None = None

    def keep(self) -> None:
        """Hold the output if the client lags behind; called when a message was written."""
        iopub = self._handler.channels.get("iopub")
        if self.is_held or iopub is None or iopub.closed() or self._may_go_on():
            return
        iopub.stop_on_recv()
        self.is_held = True
        self._ask()
        loop = asyncio.get_running_loop()
        self._confirmed = max(self._confirmed, loop.time())
        self._looking = loop.call_later(_LOOK, self._look)

    def note_confirmed(self) -> None:
        """The client has confirmed something."""
        self._confirmed = asyncio.get_running_loop().time()
        self._is_mute = False
        if self.is_held and self._may_go_on():
            self._go_on()

    def end(self) -> None:
        """Hold nothing any more, and take nothing either: somebody else does with the channel what they like."""
        self.is_held = False
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _may_go_on(self) -> bool:
        protocol = self._connection.protocol
        is_taking = self._is_mute and protocol is not None and not protocol.stream.writing()
        return is_taking or not self._connection.unconfirmed.is_half_full

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_mute = self._is_mute or loop.time() - self._confirmed > _MUTE_AFTER
        if self._may_go_on():
            self._go_on()
        else:
            self._looking = loop.call_later(_LOOK, self._look)

    def _go_on(self) -> None:
        self.end()
        iopub = self._handler.channels.get("iopub")
        if self._connection.serving and iopub is not None and not iopub.closed():
            iopub.on_recv_stream(self._handler._on_zmq_reply)


_DROPPED: Final = (
    "Output may be missing here: it came faster than this client took it, for longer than its node could keep it."
)


def note_dropped(kernel_id: str) -> None:
    """Have those clients of a kernel told that lag behind: the kernel may have dropped output of theirs."""
    for handler in notebooks.clients(kernel_id):
        connection = vars(handler).get("_distributed")
        pace = getattr(connection, "pace", None)
        if connection is not None and pace is not None and pace.is_held:
            connection.missed = _DROPPED
