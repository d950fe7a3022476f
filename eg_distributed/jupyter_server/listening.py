"""What the clients of a server's kernels are told by their kernels' handles; nothing of it needs jupyter_server itself."""

from __future__ import annotations

import atexit
import logging
import re
from pathlib import Path
from typing import Any, Final

from eg_distributed.clients import kept_output, out_of_reach, service, sessions
from eg_distributed.clients.delivered import Delivered
from eg_distributed.cluster import Cluster
from eg_distributed.kernel import RemoteKernel

from .process import cluster_for, server_of

__all__ = ["ended", "found_again", "started"]

log = logging.getLogger(__name__)

_LAST_WRITE: Final = 1.0
"""Seconds, at the server's end, for what sessions have got to be written."""
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]")


def started(manager: Any, cluster: Cluster, kernel: RemoteKernel) -> None:
    """Have the clients of *kernel*, which has been started, or started again, hear of it; called by a server's provisioner.

    *manager* is jupyter_client's manager of the kernel.
    """
    if not _has_clients(manager):
        return
    try:
        _begin(manager, cluster)
        kept_output.forget(kernel.id)  # of an attempt before this one
        _listen_to(manager, kernel)
        for connection in sessions.of_kernel(kernel.id):
            connection.ends.session.key = kernel.key.encode()  # a launcher makes a new one at each start
    except Exception:
        # A thread that cannot be started, say: the kernel runs, and its clients can do without.
        log.exception("kernel %s: its clients do not hear of what becomes of it", kernel.id)


def found_again(manager: Any, kernel: RemoteKernel) -> None:
    """Have the clients of a kernel that an earlier process of this server had get what they missed, as they come back.

    Called once for each kernel that is found again: on the server's loop or before it runs, before HTTP is served, once
    *manager*, jupyter_client's manager of the kernel, is in the mapping manager's `_kernels` and its activity is watched
    (`start_watching_activity`), and *kernel*, what `Cluster.adopt` returned, is its provisioner's. Waits for nothing, raises
    nothing.
    """
    try:
        cluster = cluster_for(manager, manager.config)
        _begin(manager, cluster)
        _listen_to(manager, kernel)
        if cluster.settings.kept_output_limit:
            kept_output.adopt(cluster, kernel, manager)
            kernel.on_replied = lambda: manager.loop.add_callback(service.note_replied, kernel.id)
    except Exception:
        # As above: the kernel is there again.
        log.exception("kernel %s: what it printed meanwhile is not shown to its clients", kernel.id)


def ended(kernel_id: str, *, is_sure: bool) -> None:
    """Forget what clients of the kernel have got: it has been deleted, or, unless *is_sure*, may be another server's."""
    if is_sure:
        kept_output.forget(kernel_id)
    else:
        kept_output.let_go(kernel_id)


def _has_clients(manager: Any) -> bool:
    """Return True if *manager*'s kernel is one of those that a server lists, on its loop."""
    return hasattr(manager, "loop") and hasattr(manager.parent, "_kernel_buffers")


def _begin(manager: Any, cluster: Cluster) -> None:
    """Watch the server's hosts, and note what its clients have got, from its first kernel on."""
    watching = out_of_reach.watch()
    if watching is not None and watching.is_of(cluster):
        return
    out_of_reach.begin(cluster, manager.parent, manager.loop.add_callback)
    server = server_of(manager)
    if server is not None and cluster.settings.kept_output_limit:
        name = _UNFIT.sub("_", cluster.identity[0])
        kept_output.delivered = Delivered(Path(server.runtime_dir) / "eg-distributed" / f"delivered-{name}")
        atexit.register(kept_output.delivered.settled, _LAST_WRITE)


def _listen_to(manager: Any, kernel: RemoteKernel) -> None:
    """Have the kernel's handle say what the server's users are to know."""
    call, kernels = manager.loop.add_callback, manager.parent

    def tell_loss(text: str) -> None:
        log.warning("kernel %s: %s", kernel.id, text)
        call(service.tell_loss, kernels, kernel.id, text)

    kernel.on_loss = tell_loss
    kernel.on_stalled = lambda: call(service.note_dropped, kernel.id)
