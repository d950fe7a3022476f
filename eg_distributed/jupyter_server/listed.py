"""What a Jupyter server lists of a kernel: all of its tables, most of them private, that a kernel of ours enters or leaves.

jupyter_server enters a kernel when it starts it, and removes it when it has ended. One that is found again was not started, and
one that is kept or taken over has not ended. `missing` says what a server lacks of what is used here; tests/server pins it.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from jupyter_server.prometheus.metrics import KERNEL_CURRENTLY_RUNNING_TOTAL

__all__ = ["enter", "missing", "remove"]

_KERNELS = (
    *(
        "_kernels",
        "_kernel_connections",
        "_kernel_ports",
        "_handle_kernel_died",
        "_pending_kernels",
        "add_restart_callback",
    ),
    *("cull_kernel_if_idle", "kernel_model", "restart_kernel"),
    *("connection_dir", "initialize_culler", "kernel_manager_factory", "kernel_spec_manager", "log"),
    *("start_watching_activity", "stop_buffering", "stop_watching_activity"),
)
_MANAGER = (
    *("_attempted_start", "_close_control_socket", "_connection_file_written", "_kernel_spec", "_launch_args"),
    *("connection_file", "load_connection_info", "ports", "provisioner", "ready", "start_restarter", "stop_restarter"),
    "write_connection_file",
)


def missing(kernels: Any, manager: Any = None) -> list[str]:
    """Return what a server's manager of kernels lacks of what is used here, or the *manager* of one kernel."""
    lacks = [name for name in _KERNELS if not hasattr(kernels, name)]
    return lacks + [name for name in _MANAGER if manager is not None and not hasattr(manager, name)]


def enter(kernels: Any, manager: Any) -> None:
    """List the kernel of *manager*, which was not started here; called on the server's thread, before or while its loop runs."""
    kernel_id = manager.kernel_id
    manager._attempted_start = True  # else the end of its first shutdown would be that of its start once more
    if not manager.ready.done():
        manager.ready.set_result(None)
    # Asked for by the first websocket, which waits for the answer for a minute: a kernel with a cell under way gives none.
    info: Future[dict[str, Any]] = Future()
    info.set_result({})
    manager._kernel_info_future = info
    manager.start_restarter()  # it is made by its start, and takes callbacks only then
    manager.stop_restarter()
    kernels._kernels[kernel_id] = manager
    kernels._kernel_connections[kernel_id] = 0
    kernels._kernel_ports[kernel_id] = manager.ports
    kernels.start_watching_activity(kernel_id)
    kernels.add_restart_callback(kernel_id, lambda: kernels._handle_kernel_died(kernel_id), "dead")
    KERNEL_CURRENTLY_RUNNING_TOTAL.labels(type=manager.kernel_name).inc()
    if not getattr(kernels, "_initialized_culler", True):
        kernels.initialize_culler()  # done by the first start otherwise, and these may be all


def remove(kernels: Any, manager: Any) -> bool:
    """List the kernel of *manager* no more, and do nothing of what is done to one that ends; False: it was not listed."""
    kernel_id = manager.kernel_id
    if kernels._kernels.get(kernel_id) is not manager:
        return False
    manager.stop_restarter()
    kernels.stop_buffering(kernel_id)
    kernels.stop_watching_activity(kernel_id)
    manager._close_control_socket()
    for listed in (kernels._kernels, kernels._kernel_connections, kernels._kernel_ports):
        listed.pop(kernel_id, None)
    KERNEL_CURRENTLY_RUNNING_TOTAL.labels(type=manager.kernel_name).dec()
    return True
