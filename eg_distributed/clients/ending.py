"""How a connection ends: what it leaves for the next one of its session, and what it does not."""

from __future__ import annotations

import asyncio
from typing import Final

from . import kept_output, opening, sessions
from .connection import Connection
from .kept_messages import Kept

_AWAY_SECONDS: Final = 600.0
"""How long channels wait for a session that was cut off while other clients of the kernel stay."""
_CONFIRMED: Final = 1.0
"""Seconds, at most, for clients to say what they have got, and the same for that to be written."""
_RETURN_SECONDS: Final = 10.0
"""The same for a session that ended its connection itself: a front end that connects anew closes the old connection first."""


def end(connection: Connection) -> None:
    """Leave the channels to the session's next connection if no client is left, else close them; may be called twice."""
    connection.log.debug("Websocket closed %s", connection.session_key)
    connection.closed = True
    connection.stop()
    sessions.forget(connection)
    if connection.opened:
        connection.opened = False
        _leave(connection)
    opening.give_up(connection)
    connection.is_doubted = False
    for kept in (connection.unsent, connection.unconfirmed, connection.doubtful):
        kept.clear()  # its room is somebody else's now, not when Python finds the time


def _leave(connection: Connection) -> None:
    """Do what the end of an open connection that was not replaced takes."""
    kernels, kernel_id, session_key = connection.kernels, connection.kernel_id, connection.session_key
    if sessions.serving.get(session_key) is connection:
        del sessions.serving[session_key]
    sessions.sign_off(connection)
    channels, connection.channels = connection.channels, {}
    if (
        kernel_id not in kernels
        or not sessions.are_usable(channels, kernels.get_kernel(kernel_id).ports)
        or session_key in sessions.serving
    ):
        sessions.close_channels(channels)
    elif kernels._kernel_connections.get(kernel_id, 0) <= 0:
        kernels.start_buffering(kernel_id, session_key, channels)
        kernels._kernel_buffers[kernel_id][sessions.GOODBYE] = connection.has_left()
        if kernels.buffer_offline_messages:
            # jupyter_server's own has no bound; ours needs one only where an agent keeps for the kernel what has no room here.
            kept = Kept() if connection.has_agent else Kept.unbounded()
            kernels._kernel_buffers[kernel_id]["buffer"] = connection.left(kept)
    else:
        # It was cut off, or the next one of its session is on its way.
        is_awaited = not connection.has_left() or session_key in sessions.latest
        if kernels.buffer_offline_messages:
            seconds = _AWAY_SECONDS if is_awaited else _RETURN_SECONDS
            sessions.away[session_key] = sessions.Away(connection, channels, connection.left(), seconds)
        else:
            sessions.close_channels(channels)
        if not is_awaited:
            kept_output.note_gone(kernel_id, connection.session)


async def settle_all(kernel_id: str) -> None:
    """Give all clients of a kernel a moment to confirm what they have got, and write that down, before it is let go."""
    settling = [asyncio.ensure_future(client.settle()) for client in sessions.of_kernel(kernel_id)]
    if settling:
        await asyncio.wait(settling, timeout=_CONFIRMED)
    for each in settling:
        each.cancel()
    await asyncio.get_running_loop().run_in_executor(None, kept_output.delivered.settled, _CONFIRMED)


def let_go(kernel_id: str, code: int, reason: str) -> int:
    """End all connections of a kernel that is another gateway's now, and leave nothing for the next ones; return how many.

    At once: a client that comes back before it has confirmed the end of its connection may have the kernel here again, to which
    that end must not count.
    """
    ended = 0
    for connection in {*sessions.serving.values(), *sessions.listed()}:
        if connection.kernel_id != kernel_id:
            continue
        connection.stop()
        connection.opened, connection.lost_kernel = False, True
        sessions.serving.pop(connection.session_key, None)
        channels, connection.channels = connection.channels, {}
        sessions.close_channels(channels)
        connection.send_away(code, reason)
        ended += 1
    for session_key in [key for key in sessions.away if key.partition(":")[0] == kernel_id]:
        sessions.close_channels(sessions.away.pop(session_key).taken())
    return ended
