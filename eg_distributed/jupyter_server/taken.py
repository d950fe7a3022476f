"""Kernels that another server has taken over: this one lets go of them without ending them, and tells their clients."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

from eg_distributed.aside import aside
from eg_distributed.clients import ending, kept_output, notebooks
from eg_distributed.link.deadlines import within

from . import listed
from .store import Store

__all__ = ["let_go"]

log = logging.getLogger(__name__)

_SERVICE_RESTART = 1012
"""How websockets are closed: clients are to connect again."""
_RECORD = 2.0  # seconds, at most, for the record, which is on a disk that may hang


async def let_go(app: Any, manager: Any, store: Store, owner: str, forget_sessions: Callable[[str], None]) -> None:
    """Forget the kernel of *manager*, which the server *owner* has now; on the loop of *app*."""
    kernel_id = manager.kernel_id
    if app.kernel_manager._kernels.get(kernel_id) is not manager:
        return  # it was deleted meanwhile
    manager.stop_restarter()
    notebooks.tell_clients(
        kernel_id, f"This kernel is at server {owner} now, which was asked for it. It goes on there."
    )
    await ending.settle_all(kernel_id)
    if not listed.remove(app.kernel_manager, manager):
        return  # it was deleted meanwhile
    manager.provisioner.be_taken()
    manager._connection_file_written = False  # the file is the other server's now
    forget_sessions(kernel_id)
    kept_output.let_go(kernel_id)
    closed = ending.let_go(kernel_id, _SERVICE_RESTART, _reason(owner))
    log.warning("kernel %s: it is at %s now: %d websockets are closed", kernel_id, owner, closed)
    try:
        async with store.turns:
            await within(aside(("drop taken", kernel_id), functools.partial(store.drop_taken, kernel_id)), _RECORD)
    except (OSError, asyncio.TimeoutError) as error:
        log.warning("kernel %s: its record in %s stays: %r", kernel_id, store.folder, error)


def _reason(owner: str) -> str:
    """Return why a websocket is closed, which may have 123 bytes."""
    return f"the kernel is at {owner} now".encode()[:120].decode("utf-8", "ignore")
