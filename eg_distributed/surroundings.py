"""What a cluster reaches outside itself: a thread and its loop, hosts, the gateway's own sockets, a disk.

One value for all of it, so that what is a cluster's behaviour and what is a machine's can be told apart, and the first can be run
without the second: the simulation puts a virtual network and clock here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from .abandoned import Aside
from .aside import aside
from .channels import Endpoints
from .link.late import connect
from .node import Connector

__all__ = ["Surroundings"]


@dataclass(frozen=True)
class Surroundings:
    """The real ones, unless others are given; passed to a Cluster."""

    loop: asyncio.AbstractEventLoop | None = None
    """The loop on which the cluster works, and all of its methods are called; None: one of its own, on a thread of its own."""
    connector: Connector = connect
    """How nodes get their links."""
    endpoints: type[Endpoints] = Endpoints
    """What listens at the gateway for a kernel's clients."""
    call_aside: Aside = aside
    """Where files are read and written."""
