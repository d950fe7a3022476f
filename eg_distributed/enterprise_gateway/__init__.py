"""The adapter for Enterprise Gateway 3.x: a kernelspec's `class_name` is all that changes.

    proxy            the process proxy: Enterprise Gateway's calls, turned into the cluster's
    request          what Enterprise Gateway knows of a kernel, turned into a StartRequest
    patches          what Enterprise Gateway and its pinned libraries get wrong for their users
    departed         starts whose client has gone away
    status_line      errors as HTTP's status line can have them
    out_of_reach     what Enterprise Gateway says of a kernel whose host does not answer
    reconnects       jupyter_server's websocket handler with our ends (`eg_distributed.clients`)
    taken            kernels that another gateway has taken over
    metrics          our numbers for Prometheus, by a port or a file of their own

Only `request`, `departed` and `status_line` import no Enterprise Gateway, so they can be used, and tested, where it is not
installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .proxy import DistributedProcessProxy

__all__ = ["DistributedProcessProxy"]


def __getattr__(name: str) -> Any:
    if name == "DistributedProcessProxy":
        from .proxy import DistributedProcessProxy

        return DistributedProcessProxy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
