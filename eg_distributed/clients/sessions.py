"""The sessions of this server's clients: which connection each has, and what waits for those that have none just now."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from weakref import WeakValueDictionary

from . import kept_output
from .connection import Connection
from .kept_messages import Kept

_LOOK_AGAIN: Final = 5.0
"""Seconds between two looks whether the kernel of such channels is still there."""
GOODBYE: Final = "said_goodbye"
"""The key, in jupyter_server's buffer for a kernel without clients, of whether its last one ended the connection itself."""

latest: WeakValueDictionary[str, Connection] = WeakValueDictionary()
"""The connection that arrived last, by session."""
serving: dict[str, Connection] = {}
"""The connection that has the session's channels, by session."""
away: dict[str, Away] = {}
"""What waits for sessions that were cut off, by session; jupyter_server's own buffer is for a kernel without any client."""
listed: Callable[[], Iterable[Connection]] = serving.values
"""Returns all open connections; replaced where jupyter_server's own ends serve them."""


class Away:
    """The channels of a session whose connection ended, and what comes on them, until it is back or for so many seconds."""

    def __init__(self, connection: Connection, channels: dict[str, Any], kept: Kept, seconds: float) -> None:
        self.channels = channels
        self.kept = kept
        self._session_key = connection.session_key
        self.kernel_id, self._kernels = connection.kernel_id, connection.kernels
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + seconds
        self._timer = self._loop.call_later(_LOOK_AGAIN, self._look)
        for channel, stream in channels.items():
            stream.on_recv(functools.partial(self._keep, channel))

    def _keep(self, channel: str, parts: list[bytes]) -> None:
        self.kept.append((channel, parts))

    def _look(self) -> None:
        if self.kernel_id in self._kernels and self._loop.time() < self._until:
            self._timer = self._loop.call_later(_LOOK_AGAIN, self._look)
        else:
            close_channels(self.channels)
            away.pop(self._session_key, None)

    def taken(self) -> dict[str, Any]:
        """Return the channels, whose callbacks are the caller's from now on."""
        self._timer.cancel()
        return self.channels


def of_kernel(kernel_id: str) -> Iterator[Connection]:
    """Yield the open connections of a kernel."""
    for connection in list(listed()):
        if connection.kernel_id == kernel_id and connection.handler.ws_connection is not None:
            yield connection


def note_arrival(connection: Connection) -> None:
    """Note that *connection* is the latest of its session; the one before serves until this one opens."""
    latest[connection.session_key] = connection


def latest_of(connection: Connection) -> Connection:
    """Return the latest connection of its session, maybe *connection*; one that failed before it was open does not count."""
    found = latest.get(connection.session_key, connection)
    if found is not connection and not found.is_arriving and found.handler.ws_connection is None:
        return connection
    return found


def forget(connection: Connection) -> None:
    """Let an earlier connection of the session open, if *connection* was the latest."""
    if latest.get(connection.session_key) is connection:
        del latest[connection.session_key]


def sign_on(connection: Connection) -> None:
    """Have the client told of its kernel's restarts."""
    ends, kernels = connection.ends, connection.kernels
    kernels.add_restart_callback(connection.kernel_id, ends.on_kernel_restarted)
    kernels.add_restart_callback(connection.kernel_id, ends.on_restart_failed, "dead")


def sign_off(connection: Connection) -> None:
    """Have the kernel count *connection* among its clients no more."""
    ends, kernels, kernel_id = connection.ends, connection.kernels, connection.kernel_id
    kernels.notify_disconnect(
        kernel_id
    )  # which looks itself whether it is there: it may not be listed while it is started again
    if kernel_id in kernels:
        kernels.remove_restart_callback(kernel_id, ends.on_kernel_restarted)
        kernels.remove_restart_callback(kernel_id, ends.on_restart_failed, "dead")


def note_if_replaced(kernels: Any, kernel_id: str, session_key: str) -> None:
    """Note the end of a session that said goodbye, and is followed by another one: a page was loaded anew."""
    waiting = kernels._kernel_buffers.get(kernel_id, {})
    if waiting.get(GOODBYE) and waiting["session_key"] != session_key:
        kept_output.note_gone(kernel_id, waiting["session_key"].partition(":")[2])


def are_usable(channels: dict[str, Any], ports: list[int]) -> bool:
    """Return True if all channels are there, open, and lead to the kernel's *ports* of today."""
    return len(channels) == 4 and all(
        not stream.closed() and getattr(stream, "ports", ports) == ports for stream in channels.values()
    )


def close_channels(channels: dict[str, Any]) -> None:
    """Close each channel that is open."""
    for stream in channels.values():
        if not stream.closed():
            stream.on_recv(None)
            stream.close()
