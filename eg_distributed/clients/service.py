"""A connection that serves: what is kept for its client is sent, then all that comes, and each message is kept until it came."""

from __future__ import annotations

import asyncio
import functools
import uuid
from typing import Any

from . import channels, kept_output, notebooks, sessions
from .connection import MARK, Connection
from .frames import Header, header_of, parent_of
from .kept_messages import KEPT_BYTES, Kept, size_of


def serve(connection: Connection) -> None:
    """Send what is kept for the client, then all that comes."""
    connection.serving = True
    connection.renew = functools.partial(_renew_output, connection)
    if connection.has_kernel and connection.has_agent:
        kept_output.note_there(connection.kernel_id, connection.session)
    kept, connection.unsent = connection.unsent, Kept()
    connection.miss(kept.missed)
    if kept:
        connection.log.info("Replaying %s kept messages for %s", len(kept), connection.session_key)
    if kept.lost:
        _tell_lost(connection, kept)
    for stream in connection.channels.values():
        stream.on_recv_stream(connection.take)  # comes into force when the loop goes on
    for channel, parts in kept:
        pass_on(connection, channel, parts)
    give_replies(connection)


def pass_on(connection: Connection, channel: str, parts: list[bytes]) -> None:
    """Send a client a message that was kept for it."""
    try:
        connection.take(connection.channels[channel], parts)
    except Exception:
        # Whatever is wrong with one message (of before a restart that changed the key, say) is an error of that one.
        connection.log.warning("A message on %s cannot be passed on", channel, exc_info=True)


def pass_through(connection: Connection, stream: Any, parts: list[bytes]) -> None:
    """Send a client a message of a channel; what is written to it is kept until it says that it came."""
    message = (stream.channel, parts)
    if connection.closed or not connection.is_writable:
        connection.unsent.append(message)  # its end is on its way
        return
    if connection.given and stream.channel == "iopub" and kept_output.id_of(parts) in connection.given:
        return  # the agent's copy has come before
    if connection.missed and stream.channel == "iopub":
        _tell_missed(connection, header_of(parent_of(parts)))
    connection.unconfirmed.append(message)
    size = size_of(parts)
    connection.write(stream, parts)
    connection.ask_what_came_soon()
    connection.pace.note_written(size)


def note_cell(connection: Connection, stream: Any, parts: list[bytes]) -> None:
    """Have *connection* know what its last message on iopub belonged to: as a rule the cell that runs."""
    if getattr(stream, "channel", None) == "iopub" and (parent := parent_of(parts)):
        connection.last_parent = parent


def note_pong(connection: Connection, data: bytes) -> None:
    """Drop what the client has confirmed; any pong is a sign of life."""
    if data.startswith(MARK) and data[len(MARK) :].isdigit():
        connection.heard = asyncio.get_running_loop().time()
        came = connection.unconfirmed.drop_to(int(data[len(MARK) :]))
        connection.note_came(came)
        channels.note_delivered(connection, came)
        connection.pace.note_confirmed(int(data[len(MARK) :]))
        if connection.settled is not None and not connection.settled.done() and not connection.unconfirmed:
            connection.settled.set_result(None)


def _renew_output(connection: Connection) -> None:
    """Have *connection* hear the kernel that was started again; what the one before printed last waits for a slow client."""
    if not connection.serving or not connection.has_kernel:
        return
    connection.serving = False
    connection.miss("Output may be missing here: what came before the kernel was started again was not taken in time.")
    sessions.close_channels({"iopub": connection.channels["iopub"]})
    channels.connect(connection, "iopub", uuid.uuid4().hex.encode())
    connection.nudging = asyncio.create_task(channels.nudge(connection))
    connection.nudging.add_done_callback(lambda nudging: _serve_renewed(connection, nudging))


def _serve_renewed(connection: Connection, nudging: asyncio.Task[None]) -> None:
    """Serve again what comes of the kernel, unless the connection has ended meanwhile, or another one has its channels."""
    if nudging.cancelled() or connection.closed or connection.replaced:
        return
    connection.nudging = None
    if nudging.exception() is not None:
        text = "Kernel %s: its client hears it no more"
        connection.log.warning(text, connection.kernel_id, exc_info=nudging.exception())
        connection.send_away()  # it comes again
        return
    serve(connection)


def give_replies(connection: Connection) -> None:
    """Give a client that is served the replies to what it asked the server's earlier process for, if there are any."""
    adopted = kept_output.adopted(connection.kernel_id)
    if adopted is None or not connection.serving:
        return

    async def give(channel: str, parts: list[bytes]) -> None:
        pass_on(connection, channel, parts)

    task = asyncio.create_task(adopted.give_replies(connection.session, give))
    connection.replying.add(task)
    task.add_done_callback(connection.replying.discard)


def note_replied(kernel_id: str) -> None:
    """Give all clients of the kernel the replies to what they asked the server's earlier process for."""
    for connection in sessions.of_kernel(kernel_id):
        give_replies(connection)


def tell(connection: Connection, text: str) -> None:
    """Show *text* as the kernel's stderr in the cell that ran last, so that one that is cut off just now is told as well.

    It goes the way of the kernel's own output. One whose connection has ended, or has just begun, or that has heard of no cell
    yet, is told in the next cell that it hears of.
    """
    cell, iopub = notebooks.last_cell(connection), connection.channels.get("iopub")
    is_cell = cell.get("msg_type") == "execute_request"
    if connection.serving and is_cell and iopub is not None and not iopub.closed():
        iopub.flush()  # what the kernel itself had said comes first
        session = connection.ends.session
        said = session.msg("stream", {"name": "stderr", "text": f"{text}\n"}, parent=cell)
        pass_on(connection, "iopub", session.serialize(said, ident=b"stream.stderr"))
    else:
        connection.miss(text)


def tell_next(connection: Connection, kind: str, content: dict[str, Any]) -> None:
    """Send the client a message of *kind* on iopub once it has connected again; for one that is about to be closed."""
    session = connection.ends.session
    said = session.msg(kind, content)
    connection.unsent.append(("iopub", session.serialize(said, ident=kind.encode())))


# --- what is missing


def note_dropped(kernel_id: str) -> None:
    """Have those clients told that lag behind: their kernel may have dropped output. Called on the server's loop."""
    for connection in sessions.of_kernel(kernel_id):
        if connection.pace.lags:
            connection.miss(
                "Output may be missing here: it came faster than this client took it, for longer than its node could keep it."
            )


def _tell_lost(connection: Connection, kept: Kept) -> None:
    """Say in the cell's own output how many messages are missing."""
    if not connection.is_writable:
        connection.unsent.lost += kept.lost  # for the next connection to tell
        return
    parents = (header_of(parent_of(parts)) for channel, parts in kept if channel == "iopub")
    text = f"{kept.lost} messages are missing here: more than {KEPT_BYTES >> 20} MiB came while the client was away."
    connection.ends.write_stderr(text, next(parents, {}))


def _tell_missed(connection: Connection, parent: Header) -> None:
    """Say what is missing as soon as a cell is heard of: nobody sees what belongs to none."""
    if parent.get("msg_type") == "execute_request":
        text, connection.missed = connection.missed, ""
        connection.say(text, parent)


def tell_loss(kernels: Any, kernel_id: str, text: str) -> None:
    """Say in each notebook of the kernel that output is missing; *kernels* has it. Called on the server's loop."""
    for connection in sessions.of_kernel(kernel_id):
        tell(connection, text)
    for away in sessions.away.values():
        if away.kernel_id == kernel_id:
            away.kept.miss(text)
    buffered = kernels._kernel_buffers.get(kernel_id, {}).get("buffer")
    if isinstance(buffered, Kept):
        buffered.miss(text)
