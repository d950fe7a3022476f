"""Hosts: the names in `remote_hosts`, and what is known of each."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from .errors import RequestInvalid
from .node import Node

_NAME = re.compile(r"(?!-)[A-Za-z0-9_.:%-]{1,253}\Z")
HostSet = tuple[str, ...]
"""The hosts that a kernelspec may use, in the order in which they were written."""


def parse_hosts(value: str | Iterable[str]) -> HostSet:
    """Return the host set that *value* (a comma-separated string, or a list) names: stripped, without doubles.

    Raises RequestInvalid for a name that can be no host's, such as one that begins with a dash.
    """
    parts = value.split(",") if isinstance(value, str) else value
    names = [part.strip().strip("[]\"'") for part in parts]
    hosts = tuple(dict.fromkeys(name for name in names if name))
    for name in hosts:
        if not _NAME.match(name):
            raise RequestInvalid(f"{name!r} is no host name", remedy="check remote_hosts and KERNEL_REMOTE_HOST")
    return hosts


@dataclass
class Host:
    """One host as the cluster knows it, with the node that we hold it by; lives as long as the cluster."""

    name: str
    node: Node

    def is_healthy(self, retry_after: float) -> bool:
        """Whether the host may be tried like any other: no failure within the last *retry_after* seconds."""
        node = self.node
        return node.last_error is None or time.monotonic() - node.failed_at > retry_after

    def count(self, starting: AbstractSet[str]) -> int:
        """Return how many kernels are there, those of other gateways and ours in *starting* included; none counts twice."""
        return len(starting | self.node.running)
