"""A client that connects to its kernel again finds what it left: how a connection begins, whatever was before it.

A client names its session in the websocket's address. When it comes again with the same session, the connection before may be
open still: JupyterLab's server opens one, drops it and opens the next within a second; a laptop wakes up, and nothing has
told the server that the old connection is dead. jupyter_server 1.x then closes the old connection and waits for its end:
five seconds for a peer that is gone, or for ever if it was not open yet. At its end the old connection leaves its channels to
the next, but goes on using them: its first handshake with the kernel takes the next one's callbacks away, and messages end in
a closed websocket. A connection that was never open leaves no channels at all (`KeyError: 'iopub'`). Channels that are made
instead have the session for their ZMQ identity, as the old ones had, and a kernel's ROUTER ignores the second of one name.
In each case the first cell of a notebook waits for ever. jupyter_server 2 ends the old connection at once, and what was
written to it is lost, with all that comes until the next one listens.

    arrives   ──►  asks the kernel  ──►  opens             ──►  serves                   ──►  ends
    is now the     (up to a minute)      takes what is left     keeps each message until     leaves its channels and what
    latest of                            of its session, or     the client's pong says       was not delivered to the next
    its session                          makes channels         that it came                 of its session, or closes them

Here the connection before serves until the next one opens. Then the next takes over, in one step of the loop:

- its channels, so what is in them or on its way to them stays in order, and a reply finds the way that its request came;
- what was sent to it, and the client did not confirm. A connection that is cut without a word swallows all that is sent for
  minutes, and only the client's answers to our pings tell what came. A client that is still there is asked once more before;
  what one that was cut off got in its last 50 ms, and could not confirm any more, comes twice.

The first connection of a session after a restart of the server gets what the agent kept meanwhile (`kept_output`).

A connection that ends before the next one comes leaves both behind: if the kernel has no other client in jupyter_server's own
buffer, which gets a bound here, and otherwise, if it was cut off, in one of ours (`sessions.Away`).

The order of arrival counts: a connection that was slower than a later one of its session does not serve. But of two that come
within seconds of each other (twins) the second may have overtaken the first, on its way or in a thread that resolves names; and
one that JupyterLab's server has dropped stays open, and answers pings like any other. So a twin that was replaced stays open
for a moment. If it says something it is the client's, and gets everything back: a dropped one says nothing. Channels are used
as long as none is closed and the kernel has the ports that they were made for.

Rejected: new channels for each connection, which lose the answer to whatever was asked over the old ones; waiting for the end
of the old connection, with whatever deadline, which is waiting for a peer that is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from . import channels, kept_output, sessions
from .connection import Connection
from .giving import give_kept
from .kept_messages import Kept
from .service import serve

_TWINS: Final = 5.0
"""Seconds between two arrivals of one session up to which their order says nothing, and for which the one that was replaced
stays open."""


async def open_connection(connection: Connection) -> None:
    """Take over what is left of the session, or make channels; then serve, as soon as the kernel answers on them.

    Called once tornado has opened the websocket, whose messages it reads when this has returned.
    """
    connection.listen_for_goodbye(connection.handler.ws_connection)
    await _begin(connection)


async def _begin(connection: Connection) -> None:
    """Have *connection* serve, unless a later one of its session has come meanwhile."""
    kernel_id = connection.kernel_id
    predecessor = sessions.serving.get(connection.session_key)
    if predecessor is not None:
        await predecessor.settle()
        if predecessor.said > connection.arrived and _are_twins(predecessor, connection):
            sessions.note_arrival(predecessor)  # it has said something meanwhile, so that it is the client's after all
    latest = sessions.latest_of(connection)
    if connection.closed or latest is not connection:
        # Its client has gone already, or has come again since.
        connection.log.info("Not opening a connection that a later one has replaced: %s", connection.session_key)
        if predecessor is not None and predecessor.serving and not predecessor.settling:
            serve(predecessor)
        _dismiss(connection, latest)
        return
    try:
        serving = _take_over(connection)
    except connection.refusals as error:
        # The kernel ended meanwhile. Websockets know no such answer, so the connection ends as well.
        connection.log.warning("Error opening stream: %s", error)
        connection.close()
        return
    sessions.sign_on(connection)
    if not serving:
        adopted = kept_output.adopted(kernel_id)
        if adopted is not None and adopted.waits_for(connection.session):
            preparing = give_kept(connection, adopted)
        else:
            preparing = channels.nudge(connection)
        connection.nudging = asyncio.create_task(preparing)
        await asyncio.wait({connection.nudging})
        if not connection.nudging.cancelled():
            connection.nudging.result()
        connection.nudging = None
    if not _has_ended(connection):
        if (adopted := kept_output.adopted(kernel_id)) is not None:
            connection.miss(adopted.missed(connection.session))
        serve(connection)


def _has_ended(connection: Connection) -> bool:
    """Return True if there is nobody to be served: much may have happened while the kernel was asked."""
    return connection.closed or connection.replaced or connection.lost_kernel


def _take_over(connection: Connection) -> bool:
    """Give *connection* channels, and what its session did not get so far; return True if the kernel has answered on them.

    Raise one of its server's refusals if the kernel has ended.
    """
    kernels, kernel_id, session_key = connection.kernels, connection.kernel_id, connection.session_key
    kernel = kernels.get_kernel(kernel_id)
    connection.ends.session.key = (
        kernel.session.key
    )  # a restart while this connection was on its way may have changed it
    kernels.notify_connect(kernel_id)
    connection.opened = True
    predecessor = sessions.serving.get(session_key)
    sessions.serving[session_key] = connection
    serving = False
    if connection.is_doubted:  # it is back, and was not the one that got it
        others = [*connection.doubted, *(predecessor.doubted if predecessor is not None else ())]
        connection.take_doubtful([each for each in others if each is not connection])
    sessions.note_if_replaced(kernels, kernel_id, session_key)
    buffered = kernels.get_buffer(kernel_id, session_key)  # drops what is there of another session
    if buffered:
        connection.log.info("Restoring connection for %s", session_key)
        connection.channels = buffered["channels"]
        _keep_buffered(connection.unsent, buffered["buffer"])
        serving = True
    away = sessions.away.pop(session_key, None)
    if away:
        connection.log.info("Restoring connection for %s", session_key)
        sessions.close_channels(connection.channels)
        connection.channels, serving = away.taken(), True
        connection.unsent.take(away.kept)
    if predecessor is not None and predecessor is not connection and predecessor.opened:
        connection.log.info("Replacing connection: %s", session_key)
        serving = predecessor.serving
        sessions.close_channels(connection.channels)
        connection.channels = _hand_over(predecessor, connection, connection.unsent)
    if not sessions.are_usable(connection.channels, kernel.ports):
        sessions.close_channels(connection.channels)
        connection.channels = {}
        channels.make(connection)
        return False
    adopted = kept_output.adopted(kernel_id)
    if adopted is not None and adopted.waits_for(connection.session):
        serving = False  # a connection before this one may have ended while it was given what was kept
    # ZMQ connects to a kernel that was started again on the same ports, but not at once.
    iopub, process = connection.channels["iopub"], connection.process()
    serving = serving and getattr(iopub, "process", None) == process
    iopub.process = process
    return serving


def _keep_buffered(kept: Kept, buffered: Any) -> None:
    """Keep what came while no client was there: ours, or jupyter_server's list from before the adapter."""
    if isinstance(buffered, Kept):
        kept.take(buffered)
    else:
        for message in buffered:
            kept.append(message)


def _hand_over(connection: Connection, successor: Connection, unsent: Kept) -> dict[str, Any]:
    """Return the channels of *connection*, which serves no more, and add to *unsent* what its client did not get.

    What its client had sent already is still passed on: the closing handshake comes after it, and both use the same channels.
    """
    connection.stop()
    connection.opened = False
    for stream in connection.channels.values():
        if not stream.closed():
            stream.on_recv(None)
    unsent.take(connection.left())
    successor.given, successor.missed = connection.given, connection.missed
    sessions.sign_off(connection)
    _dismiss(connection, successor)
    return connection.channels


# --- twins


def _are_twins(one: Connection, other: Connection) -> bool:
    """Return True if the order in which two connections of a session arrived says nothing."""
    return abs(one.arrived - other.arrived) <= _TWINS


def _dismiss(connection: Connection, successor: Connection) -> None:
    """Close *connection*, since *successor* serves; if they are twins, after a moment in which it may say something.

    So may those that it had replaced itself within that moment.
    """
    connection.replaced = True
    for earlier in connection.doubted:
        if earlier.is_doubted and earlier is not successor:
            successor.doubt(earlier)
    connection.doubted = []
    if connection.closed or not _are_twins(connection, successor):
        connection.close()  # tornado cuts it after five seconds without an answer; no one waits for that
    else:
        connection.leaving = asyncio.get_running_loop().call_later(_TWINS, _end_twin, connection)
        successor.doubt(connection)


def _end_twin(connection: Connection) -> None:
    """Close a connection that had its moment, and said nothing."""
    connection.leaving = None
    connection.trust()
    connection.close()


async def _come_back(connection: Connection) -> None:
    """Have *connection* serve again, which was replaced and is the client's after all."""
    connection.log.info("A connection that was replaced is the client's after all: %s", connection.session_key)
    connection.stop()
    connection.replaced = False
    # What it was sent before comes again, and is no forgery: of clients of the older protocol each signature is looked at.
    connection.ends.session.digest_history.clear()
    sessions.note_arrival(connection)
    connection.channels = {}  # they are its successor's now
    await _begin(connection)


def give_up(connection: Connection) -> None:
    """Take note that *connection* has ended, or will never open: its latest twin that is there still is the client's then.

    Unless the client has said goodbye: who was never the client's is cut off, or ends before it is open.
    """
    sessions.forget(connection)
    twins = [each for each in connection.doubted if each.is_doubted and not each.closed]
    connection.doubted = []
    # One that has spoken is just coming back.
    back = next((each for each in twins if each.leaving is None and sessions.latest_of(each) is each), None)
    if back is None and not connection.said_goodbye():
        back = next((each for each in reversed(twins) if each.leaving is not None), None)
        if back is not None:
            returning = asyncio.ensure_future(_return(back))
            _returning.add(returning)
            returning.add_done_callback(_returning.discard)
    for each in twins:
        if back is not None and each is not back:
            back.doubt(each)


_returning: set[asyncio.Future[None]] = set()


async def _return(twin: Connection) -> None:
    if twin.leaving is not None and not twin.closed:  # else it has come back by itself
        try:
            await _come_back(twin)
        except Exception:
            # A server's own errors are anybody's guess. Nobody waits for this task, and the client comes again.
            twin.log.warning("A connection cannot serve again: %s", twin.session_key, exc_info=True)
            twin.send_away()


# --- what the client says


def hear(connection: Connection, message: Any, original: Callable[[Any], Any]) -> Any:
    """Have *original* take a client's message. A connection that was replaced uses its successor's channels, which may be closed.

    Returns what tornado is to wait for before it takes the next message, if anything.
    """
    connection.heard = connection.said = asyncio.get_running_loop().time()
    if connection.leaving is not None:
        return _hear_after_all(connection, message, original)
    if any(stream.closed() for stream in connection.channels.values()):
        connection.log.debug("Received message on closed channels %r", connection.ends)
        return None
    return original(message)


async def _hear_after_all(connection: Connection, message: Any, original: Callable[[Any], Any]) -> None:
    await _come_back(connection)
    if not connection.opened:  # yet another connection of the session serves by now, and what was said is still said
        successor = sessions.serving.get(connection.session_key)
        connection.channels = successor.channels if successor is not None else {}
    original(message)
