"""The adapter for Enterprise Gateway 3.x: a kernelspec's `class_name` is all that changes.

    proxy            the process proxy: Enterprise Gateway's calls, turned into the cluster's
    request          what Enterprise Gateway knows of a kernel, turned into a StartRequest
    patches          what Enterprise Gateway and its pinned libraries get wrong for their users
    departed         starts whose client has gone away
    limits           how large a websocket's messages may be
    status_line      errors as HTTP's status line can have them
    frames           what the gateway itself reads of a kernel's messages
    notebooks        what the gateway itself says in notebooks
    out_of_reach     what people are told of a kernel whose host does not answer
    reconnects       clients that connect to their kernel again: nothing is lost, and no cell waits for ever
    kept_messages    what clients have not confirmed yet, each up to a limit, and all together
    slow_clients     those that take less than comes: output waits on its way
    kept_output      what kernels said while no gateway was there, for clients that come back
    metrics          our numbers for Prometheus, by a port or a file of their own
    delivered        what each client's session has got, on disk

Only `proxy`, `patches` and `reconnects` import Enterprise Gateway, so the others can be used, and tested, where it is not
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
