"""What a client's connection to a kernel gets in a Jupyter server, beside what jupyter_server gives it."""

from __future__ import annotations

from typing import Any

from eg_distributed.kernel import RemoteKernel

__all__ = ["found_again"]


def found_again(manager: Any, kernel: RemoteKernel) -> None:
    """Have the clients of a kernel that an earlier process of this server had get what they missed, as they come back.

    Called once for each kernel that is found again: on the server's loop or before it runs, before HTTP is served, once
    *manager*, jupyter_client's manager of the kernel, is in the mapping manager's `_kernels` and its activity is watched
    (`start_watching_activity`), and *kernel*, what `Cluster.adopt` returned, is its provisioner's. Waits for nothing, raises
    nothing.
    """
