"""A client's channels to its kernel: how they are made, and how it is seen that they bring what the kernel says."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any, Final

import zmq

from . import kept_output
from .connection import Connection
from .frames import header_of, parent_of
from .kept_messages import Message
from .slow_clients import lose_nothing_by_flush, with_short_queue

log = logging.getLogger(__name__)

NAMES: Final = ("iopub", "shell", "control", "stdin")
_NUDGE_AGAIN: Final = 0.5
"""Seconds without an answer after which a kernel is asked again: its sockets may have been connected after the question."""
_LAST_NUDGE: Final = 5.0
"""Seconds between two questions, at most, to a kernel that is asked patiently."""
_SHELL_LATE: Final = 1.0
"""Seconds after an answer on the control channel within which a kernel that runs no cell answers on the shell channel."""


def take_many_sockets(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Let the server's ZMQ have as many sockets as ZMQ can: two of each kernel, and four of each of its clients.

    Its default of 1023 is over with 250 clients, and a server that finds more than 510 kernels again ends at its start, with
    "Too many open files". It counts only if it is said before the first socket is made.
    """
    if len(context._sockets):
        log.warning(
            "other kernels came first, so that ZMQ keeps to %d sockets: 510 kernels, or 250 clients",
            context.get(zmq.MAX_SOCKETS),
        )
    context.set(zmq.MAX_SOCKETS, context.get(zmq.SOCKET_LIMIT))


def make(connection: Connection) -> None:
    """Make the four channels, under a name that no other connection has.

    jupyter_server names them by the session. A kernel may learn of the end of a connection later than of the next one's
    beginning, and ignores the second of one name.
    """
    identity = uuid.uuid4().hex.encode()  # of shell and stdin alike: the kernel asks for input where the cell came from
    for channel in NAMES:
        connect(connection, channel, identity)


def connect(connection: Connection, channel: str, identity: bytes) -> None:
    """Give *connection* a channel to the kernel as it is now."""
    kernel = connection.kernels.get_kernel(connection.kernel_id)
    connecting = getattr(connection.kernels, f"connect_{channel}")
    if channel == "iopub" and connection.has_agent:
        with with_short_queue(kernel.context):
            stream = connecting(connection.kernel_id, identity=identity)
        lose_nothing_by_flush(stream)
    else:
        stream = connecting(connection.kernel_id, identity=identity)
        if channel == "iopub":
            lose_nothing_by_flush(stream)
    stream.channel = channel
    stream.ports, stream.process = kernel.ports, connection.process()
    connection.channels[channel] = stream


async def nudge(connection: Connection, *, patiently: bool = False) -> None:
    """Ask the kernel who it is until it answers and its output comes: then the subscription is there, and no output is missed.

    Unlike jupyter_server's, this ends for good when the channels go to another connection, and keeps output that is not about
    its own questions. After `kernel_info_timeout` the client is served all the same: cut off, it would come again for the same.
    *patiently*: also while it runs a cell, and less often, since somebody else sees to the client meanwhile.
    """
    kernels, kernel_id, iopub = connection.kernels, connection.kernel_id, connection.channels["iopub"]
    kernel, loop = kernels.get_kernel(kernel_id), asyncio.get_running_loop()
    if getattr(kernel, "execution_state", None) == "busy" and not patiently:
        return  # it would answer at the end of the cell
    on_shell, answered, heard = loop.create_future(), loop.create_future(), loop.create_future()
    questions: set[str] = set()
    ports = kernel.ports

    def settle(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def on_shell_reply(_: object) -> None:
        settle(on_shell)
        settle(answered)

    def on_iopub(parts: list[bytes]) -> None:
        settle(heard)
        connection.first_heard = connection.first_heard or kept_output.id_of(parts)
        if header_of(parent_of(parts)).get("msg_id") not in questions:
            connection.unsent.append(("iopub", parts))
        elif not connection.unsent and not patiently:
            # What was there before is none of its business: should the server end now, it is given what comes from here on.
            note_delivered(connection, [("iopub", parts)])

    # Channels of its own: the client is not to see the answers.
    asked = {"shell": kernel.connect_shell(), "control": kernel.connect_control()}
    deadline = loop.time() + connection.ends.kernel_info_timeout
    again = _NUDGE_AGAIN
    # One that was found again, and whose host has not answered yet, would have all these questions to answer at once.
    patiently_asked = patiently or getattr(kernel, "execution_state", None) == "unknown"
    try:
        iopub.on_recv(on_iopub)
        asked["shell"].on_recv(on_shell_reply)
        asked["control"].on_recv(lambda _: settle(answered))
        while not (answered.done() and heard.done()):
            gone = connection.closed or connection.protocol.is_closing() or kernel_id not in kernels
            gone = gone or kernel.ports != ports  # started again, where these channels do not lead
            if gone or any(stream.closed() for stream in (*asked.values(), iopub)):
                return
            if loop.time() > deadline:
                connection.log.warning("Kernel %s does not answer; serving its client all the same", kernel_id)
                return
            for channel, stream in asked.items():
                request = connection.ends.session.send(stream, "kernel_info_request")
                questions.add(kept_output.note_question(channel, request))
            await asyncio.wait({answered, heard}, timeout=again)
            again = min(2 * again, _LAST_NUDGE) if patiently_asked else again
    finally:
        adopted = kept_output.adopted(kernel_id)
        if adopted is not None and answered.done() and not on_shell.done():
            loop.call_later(_SHELL_LATE, _end_questions, asked, on_shell, adopted)
        else:
            _end_questions(asked)
        if not (connection.replaced or connection.closed or iopub.closed()):
            iopub.stop_on_recv()  # what comes now waits in the socket until the client is served


def _end_questions(
    asked: dict[str, Any], on_shell: asyncio.Future[None] | None = None, adopted: kept_output.Adopted | None = None
) -> None:
    """Close channels that were for questions alone; a kernel of before that has answered on one of two by now runs a cell."""
    for stream in asked.values():
        if not stream.closed():
            stream.close()
    if adopted is not None and on_shell is not None and not on_shell.done():
        adopted.note_running()


def note_delivered(connection: Connection, came: list[Message]) -> None:
    """Note that the client has got *came*, unless the kernel has ended, with which all such notes go, or none is kept of it."""
    if connection.has_kernel and connection.has_agent:
        kept_output.note_delivered(connection.kernel_id, connection.session, came)
