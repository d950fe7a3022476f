"""Ports for servers of this machine that are started in a moment, as other processes."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from pathlib import Path

_LOWEST = 10_000
"""Below it programs live that everybody knows."""
_TRIES = 200
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_BY_RFC_6335 = 49_152


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free now on *host*; taken in the moment until its use, the server's start fails and says so.

    None of those that the system hands out by itself, to whoever connects somewhere or listens on port 0: hundreds of such
    sockets come and go in a second while tests run, and one of them soon has the port. Among the others it is drawn by chance,
    so that two who ask at once get two. Raises OSError if none is free.
    """
    return free_ports(host, 1)[0]


def free_ports(host: str, count: int) -> Sequence[int]:
    """Return ports as `free_port` does, no two alike."""
    chosen: list[int] = []
    for port in random.sample(_candidates(), min(_TRIES + count, len(_candidates()))):
        if len(chosen) == count:
            break
        if is_free(port, host):
            chosen.append(port)
    if len(chosen) < count:
        raise OSError(f"{host}: {len(chosen)} of {count} ports that were looked for are free")
    return chosen


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether nobody listens on *port* of *host*."""
    with socket.socket() as probe:
        # As servers do: connections that have ended shall not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _candidates() -> range:
    """Return the ports that the system hands out to nobody; where it leaves none of these, all that servers may have."""
    try:
        first = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = _EPHEMERAL_BY_RFC_6335
    return range(_LOWEST, first) if first > _LOWEST + _TRIES else range(_LOWEST, 65_536)
