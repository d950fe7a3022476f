"""Whose TCP sockets these are, as Linux tells it: what a UNIX socket's owner and file modes say of themselves.

Ends are compared with their addresses. Ports alone would not do: whoever binds the same two on other loopback addresses could
pass for somebody else.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Collection, Iterator, Optional

from ..wire import LocalWriter
from .processes import all_running, ticks

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENING = "0A"
_CLOSED = {"06", "07"}  # TIME_WAIT, CLOSE: nobody's any more, and listed as root's


def peer(writer: LocalWriter) -> Optional[int]:
    """Return the user id of the process at the other end of a loopback connection over IPv4, None if it can't be told.

    Called for each connection to a port that is meant for certain users, on nodes and at the gateway. Of a connection that its
    process has closed the system may say root: what it has sent until then must not count for more than another user's.
    """
    theirs = _spelled(*writer.get_extra_info("peername")[:2])
    ours = _spelled(*writer.get_extra_info("sockname")[:2])
    found = (
        uid
        for local, remote, state, uid, _ in _sockets()
        if local in theirs and remote in ours and state not in _CLOSED
    )
    return next(found, None)


def listeners(address: str, ports: Collection[int]) -> dict[int, set[int]]:
    """Return by port the user ids of those who listen where connections to an IPv4 *address* lead; empty where nobody does."""
    found: dict[int, set[int]] = {port: set() for port in ports}
    ends = {}
    with contextlib.suppress(OSError):  # no IPv4 address: nobody
        for port in ports:
            anywhere = {*_spelled("0.0.0.0", port), f"{'0' * 32}:{port:04X}"}
            ends.update(dict.fromkeys(_spelled(address, port) | anywhere, port))
    for local, _, state, uid, _ in _sockets() if ends else ():
        if state == _LISTENING and local in ends:
            found[ends[local]].add(uid)
    return found


def listening_process(address: str, port: int, likely: int) -> Optional[int]:
    """Return the pid of the process that listens where *address* (IPv4) and *port* lead, None if it is unknown.

    The process *likely* is looked at first, since a look at all of them takes its time: called in a thread. Of several that
    share the socket, the one that was started first is returned: it made the others.
    """
    with contextlib.suppress(OSError):
        ends = {*_spelled(address, port), *_spelled("0.0.0.0", port), f"{'0' * 32}:{port:04X}"}
        wanted = {
            f"socket:[{inode}]" for local, _, state, _, inode in _sockets() if state == _LISTENING and local in ends
        }
        if _has_open(likely, wanted):
            return likely
        running = sorted(all_running().values(), key=lambda process: ticks(process.started))
        return next((process.pid for process in running if _has_open(process.pid, wanted)), None)
    return None


def _has_open(pid: int, wanted: Collection[str]) -> bool:
    """Return True if the process has one of the files *wanted* open, as far as we may know."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path) in wanted:
                    return True
    return False


def _spelled(address: str, port: int) -> set[str]:
    """Return how the system's tables write an IPv4 address and port: words in this machine's order of bytes."""
    mapped = socket.inet_pton(socket.AF_INET6, f"::ffff:{address}")
    words = ["%08X" % word for word in struct.unpack("=4I", mapped)]
    return {f"{words[3]}:{port:04X}", f"{''.join(words)}:{port:04X}"}


def _sockets() -> Iterator[tuple[str, str, str, int, str]]:
    """Yield local end, remote end, state, user id and inode of each TCP socket of this machine."""
    for table in _TABLES:
        with contextlib.suppress(OSError), open(table, encoding="ascii") as rows:
            next(rows, None)
            for row in rows:
                fields = row.split()
                yield fields[1], fields[2], fields[3], int(fields[7]), fields[9]
