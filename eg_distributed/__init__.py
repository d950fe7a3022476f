"""Jupyter kernels on a fixed set of machines over nothing but SSH.

`eg_distributed.DistributedProcessProxy` is the process proxy for Enterprise Gateway 3.x. It is imported when asked for, since
all else has to work in environments without Enterprise Gateway. The kernel provisioner `eg-distributed`, for jupyter_client 8 and
later, is in `eg_distributed.jupyter_server`, and found by its entry point.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .enterprise_gateway.proxy import DistributedProcessProxy

__all__ = ["DistributedProcessProxy"]


def __getattr__(name: str) -> Any:
    if name == "DistributedProcessProxy":
        from .enterprise_gateway.proxy import DistributedProcessProxy

        return DistributedProcessProxy
    if name == "__version__":
        return version("eg_distributed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
