"""Kernels that another gateway has taken over: this one lets go of them without ending them, and its clients go after them.

In Enterprise Gateway's replication mode any gateway that is asked for a kernel finds it again by its session, which all of them
share. The one that had it would go on to watch, cull, interrupt and restart it, and delete its session at the end. So it
forgets the kernel as if it had never been here, and nothing of what is done to a kernel that ends is done to this one.

    agent ── taken ──▶ cluster: closes the kernel's sockets ──▶ here: clients confirm what they have got, which is written down;
                                                                      then the kernel is gone, and their websockets are closed

A client that comes back, by whichever gateway, is given what follows (see `kept_output`). Should it come back here, the kernel is
taken over once more.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from pathlib import Path
from typing import Any

from enterprise_gateway.services.kernels.remotemanager import RemoteMappingKernelManager
from enterprise_gateway.services.sessions import kernelsessionmanager
from enterprise_gateway.services.sessions.kernelsessionmanager import FileKernelSessionManager
from jupyter_server.prometheus.metrics import KERNEL_CURRENTLY_RUNNING_TOTAL
from tornado.web import HTTPError

from eg_distributed.clients import ending, kept_output, notebooks

log = logging.getLogger(__name__)

_READS = 3  # of a session's file that another gateway may just be writing
_READ_AGAIN = 0.02  # seconds between them; on the gateway's loop, so not longer
_SERVICE_RESTART = 1012
"""How websockets are closed: clients are to connect again."""

identity = ""
"""What nodes know this gateway by; set once it is known."""


async def let_go(proxy: Any, owner: str) -> None:
    """Forget the kernel of *proxy*, a process proxy, which the gateway *owner* has now; called on the gateway's loop."""
    kernel_id, manager = proxy.kernel_id, proxy.kernel_manager
    kernels = manager.parent
    if kernels._kernels.get(kernel_id) is not manager:
        return  # it was deleted meanwhile
    manager.stop_restarter()
    notebooks.tell_clients(
        kernel_id, f"This kernel is at gateway {owner} now, which was asked for it. It goes on there."
    )
    await ending.settle_all(kernel_id)
    if kernels._kernels.get(kernel_id) is not manager:
        return
    kernels.stop_buffering(kernel_id)
    kernels.stop_watching_activity(kernel_id)
    manager._close_control_socket()
    for table in (kernels._kernels, kernels._kernel_connections, kernels._kernel_ports):
        table.pop(kernel_id, None)
    KERNEL_CURRENTLY_RUNNING_TOTAL.labels(type=manager.kernel_name).dec()
    forget_session(kernels.parent.kernel_session_manager, kernel_id)
    kept_output.let_go(kernel_id)
    ended = ending.let_go(kernel_id, _SERVICE_RESTART, f"the kernel is at gateway {owner} now"[:120])
    log.warning("kernel %s: it is at gateway %s now: %d websockets are closed", kernel_id, owner, ended)


def forget_session(sessions: Any, kernel_id: str) -> None:
    """Forget a kernel's session in memory; what is persisted is its owner's."""
    with kernelsessionmanager.kernels_lock:
        session = sessions._sessions.pop(kernel_id, None)
        if session is not None:
            of_user = sessions._sessionsByUser.get(session["username"], [])
            if kernel_id in of_user:
                of_user.remove(kernel_id)


def count_found(manager: Any, kernel_id: str) -> None:
    """Have a kernel that was found again count, for its user and in the metrics, as Enterprise Gateway forgets to do."""
    KERNEL_CURRENTLY_RUNNING_TOTAL.labels(type=manager.kernel_name).inc()
    sessions = manager.parent.parent.kernel_session_manager
    with kernelsessionmanager.kernels_lock:
        session = sessions._sessions.get(kernel_id)
        if session is not None:
            of_user = sessions._sessionsByUser.setdefault(session["username"], [])
            if kernel_id not in of_user:
                of_user.append(kernel_id)


def note_owner(manager: Any, kernel_id: str) -> None:
    """Have the persisted session of a kernel that was another gateway's say that it is ours now; on the gateway's loop."""
    if manager.parent._kernels.get(kernel_id) is not manager:
        return  # it was deleted, or let go of, meanwhile
    try:
        manager.parent.parent.kernel_session_manager.refresh_session(kernel_id)
    except (HTTPError, KeyError, OSError) as error:
        # It has ended meanwhile, or the disk is full: it is found again all the same.
        log.warning("kernel %s: its session cannot be written: %r", kernel_id, error)


def _is_anothers(sessions: Any, kernel_id: str) -> bool:
    """Return True if a kernel's persisted session says that another gateway has it."""
    path = Path(sessions._get_sessions_loc()) / f"{kernel_id}.json"
    for _ in range(_READS):
        try:
            said = json.loads(path.read_bytes())[kernel_id]["process_info"]["distributed"]["gateway"]
        except ValueError:  # half written: Enterprise Gateway writes in place
            time.sleep(_READ_AGAIN)
        except (OSError, KeyError, TypeError):  # of an older release, or of another process proxy
            return False
        else:
            return bool(identity) and said != identity
    return True  # nobody knows whose it is, so it is left alone


def keep_sessions() -> None:
    """Have a gateway leave persisted sessions alone that are not its own; called at import, once.

    Enterprise Gateway deletes one whenever it does not find the kernel again: for a file that another gateway is just writing, a
    socket that cannot be made here. And a gateway that is cut off, and is stopped before it hears who has its kernels, would
    delete all of them. The next process of the gateway that has a kernel would not find it.
    """
    delete_sessions = FileKernelSessionManager.delete_sessions

    @functools.wraps(delete_sessions)
    def delete_own_sessions(self: Any, kernel_ids: list[str]) -> None:
        delete_sessions(self, [each for each in kernel_ids if not _is_anothers(self, each)])

    def check_kernel_id(self: Any, kernel_id: str) -> None:
        """Raise 404 for a kernel that is not here, and cannot be found by its session."""
        if kernel_id in self or self._refresh_kernel(kernel_id):
            return
        sessions = self.parent.kernel_session_manager
        session = sessions._sessions.get(kernel_id)
        if session is None or "distributed" in (session.get("process_info") or {}):
            forget_session(sessions, kernel_id)
        else:
            sessions.delete_session(kernel_id)
        raise HTTPError(404, f"Kernel does not exist: {kernel_id}")

    FileKernelSessionManager.delete_sessions = delete_own_sessions
    RemoteMappingKernelManager.check_kernel_id = check_kernel_id
