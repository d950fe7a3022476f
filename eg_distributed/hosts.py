"""Hosts: the names in `remote_hosts`, and what is known of each."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from .clock import monotonic
from .errors import RequestInvalid
from .node import Node
from .wire import shown

_NAME = re.compile(r"(?!-)[A-Za-z0-9_.:%-]{1,253}\Z")
_WITH_PORT = re.compile(r"\[*(?:\[(?P<address>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]]+)):(?P<port>\d+)\]?")
HostSet = tuple[str, ...]
"""The hosts that a kernelspec may use, in the order in which they were written."""


@functools.lru_cache(8192)
def canonical_name(name: str) -> str:
    """Return the one spelling of a host's name: lower case, no dot at the end, addresses in their short form.

    Two spellings of one machine would be two connections that take each other's place, and two counts.
    """
    bare = name.strip().lower().rstrip(".")
    address, percent, zone = bare.partition("%")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address)) + percent + zone
    return bare


def parse_hosts(value: str | Iterable[str]) -> HostSet:
    """Return the host set that *value* (a comma-separated string, or a list) names: stripped, and each machine's name once.

    Of several spellings of a name the first one stays, since blocks of ssh_config go by the spelling. Raises RequestInvalid for
    what is not the name of a host, such as one that begins with a dash, or that has a port.
    """
    parts = value.split(",") if isinstance(value, str) else value
    hosts: dict[str, str] = {}
    for part in parts:
        if not isinstance(part, str):  # a kernelspec may hold any JSON
            raise RequestInvalid(f"{shown(part)} is no host name", remedy="check the kernelspec's remote_hosts")
        name = part.strip().strip("\"'")
        if found := _WITH_PORT.fullmatch(name):
            host, port = found["address"] or found["host"], found["port"]
            raise RequestInvalid(
                f"{shown(name)} has a port, and hosts are named without",
                remedy=f"write `Host {host[:80]}` and `Port {port}` into ssh_config, or set EG_SSH_PORT for all hosts",
            )
        name = name.strip("[]\"'")
        if name and not _NAME.match(name):
            raise RequestInvalid(f"{shown(name)} is no host name", remedy="check remote_hosts and KERNEL_REMOTE_HOST")
        if name:
            hosts.setdefault(canonical_name(name), name)
    return tuple(hosts.values())


@dataclass
class Host:
    """One host as the cluster knows it, with the node that we hold it by; lives as long as the cluster."""

    name: str
    node: Node
    known_as: str = field(init=False)
    """The one spelling of its name, see `canonical_name`."""
    second_name_of: str = ""
    """The host that this one has turned out to be another name of, when that was last told in the log."""

    def __post_init__(self) -> None:
        """Spell the name."""
        self.known_as = canonical_name(self.name)

    @property
    def machine(self) -> object:
        """What is the same for all names of one machine and login: the place of its agent when it was last connected.

        Its own name while that is not known.
        """
        return self.node.place or self.known_as

    def is_healthy(self, retry_after: float) -> bool:
        """Return True if the host may be tried like any other: no failure in the last *retry_after* seconds, no slow login."""
        node = self.node
        if node.last_error is None and node.connected.is_set():  # most are, and all are asked for each pick
            return True
        if node.is_slow():
            return False
        return node.last_error is None or monotonic() - node.failed_at > retry_after

    @property
    def may_take_its_share(self) -> bool:
        """Return True if its count of kernels says something: it is connected, or was never seen to fail and is being looked at.

        Without the latter, all of many starts at once would go to the first host that answers.
        """
        return self.node.connected.is_set() or self.node.last_error is None

    def count(self, starting: AbstractSet[str]) -> int:
        """Return how many kernels are there, those of other gateways and ours in *starting* included; none counts twice."""
        running = self.node.running
        return len(running) + (len(starting - running) if starting else 0)
