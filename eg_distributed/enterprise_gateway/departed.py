"""Starts whose client has gone away: cancelled, or their kernel ended, since nobody was told of it.

A client gives up after a time-out of its own, or a proxy before it does, and asks again later. Enterprise Gateway takes no notice
and starts each of those kernels; without culling they run for ever. The handlers are given by `proxy`, so this module needs no
gateway.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from .door import Door

log = logging.getLogger(__name__)
T = TypeVar("T")


class ClientGone(Exception):
    """The client that asked for a kernel has closed its connection."""


class _Client:
    """The client of one request that starts a kernel, for as long as the request is answered."""

    def __init__(self) -> None:
        self.gone = False
        self.answered = False
        self.kernel_id = ""  # what was started for it
        self.be_through: Callable[[], None] | None = None  # lets the next request in, see `door`
        self._starting: asyncio.Future[Any] | None = None

    def leave(self) -> None:
        """The client has closed its connection: cancel what is being started for it. Called by tornado."""
        self.gone = True
        if self._starting is not None:
            self._starting.cancel()

    async def while_waiting(self, starting: Awaitable[T]) -> T:
        """Await *starting*; raises ClientGone if the client leaves first, which cancels it."""
        task: asyncio.Future[T] = asyncio.ensure_future(starting)
        self._starting = task
        if self.gone:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if self.gone:
                raise ClientGone from None
            raise
        finally:
            self._starting = None


_client: ContextVar[_Client | None] = ContextVar(
    "client", default=None
)  # each request is a task, and so a context, of its own


async def unless_client_leaves(kernel_id: str, starting: Awaitable[T]) -> T:
    """Await the start of a kernel, on behalf of the request that is being answered, if any; called by the process proxy.

    Raises ClientGone if the client leaves meanwhile: the start is cancelled then. What no request waits for (prespawned
    kernels, automatic restarts) is awaited as it is.
    """
    client = _client.get()
    # Answered: tasks that a request has begun, such as the restarter's, inherit its context.
    if client is None or client.answered:
        return await starting
    client.kernel_id = kernel_id
    if client.be_through is not None:
        client.be_through()
    return await client.while_waiting(starting)


def notice_departures(handler: Any) -> None:
    """Have *handler*, whose `post` starts kernels, come in by a door, and see that its client goes away; called once for each.

    That is in the middle of the first request for a kernel of ours, since nothing imports a process proxy before: its client is
    not noticed.
    """
    post: Callable[..., Awaitable[None]] = handler.post
    closed: Callable[..., None] = handler.on_connection_close
    door = Door()

    @functools.wraps(post)
    async def post_for_client(self: Any, *args: Any, **kwargs: Any) -> None:
        client = self._eg_distributed_client = _Client()
        _client.set(client)
        be_through = client.be_through = await door.enter()
        try:
            await post(self, *args, **kwargs)
        finally:
            be_through()
            client.answered = True
            if client.gone:
                await _end_untold(self.kernel_manager, client.kernel_id)

    @functools.wraps(closed)
    def on_connection_close(self: Any) -> None:
        client: _Client | None = getattr(self, "_eg_distributed_client", None)
        if client is not None and not client.answered:
            client.leave()
        closed(self)

    handler.post = post_for_client
    handler.on_connection_close = on_connection_close


async def _end_untold(kernels: Any, kernel_id: str) -> None:
    """End a kernel whose start was over before its client had left, and whose id nobody has heard."""
    if kernel_id and kernel_id in kernels:
        log.warning("kernel %s: its client went away before it was told of it: ended", kernel_id)
        await kernels.shutdown_kernel(kernel_id, now=True)
