"""Our numbers on the server's own `/metrics`, beside jupyter_server's: it shows whatever prometheus_client's registry has."""

from __future__ import annotations

import functools
from typing import Any

from prometheus_client import REGISTRY

from eg_distributed.metrics import Collector

from .process import server_cluster

__all__ = ["begin"]


def begin(app: Any) -> None:
    """Show the numbers of the server's cluster from its first kernel on; called when the server loads us."""
    _register()


@functools.cache
def _register() -> None:
    """Once a process: tests make several servers in one."""
    REGISTRY.register(Collector(server_cluster))
