"""Where a kernel listens: choosing the endpoints before it starts, and connecting to them afterwards."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import select
import socket
import struct
import threading
from pathlib import Path
from typing import AbstractSet, Any, Optional

from ..connections import connect_tcp, connect_unix
from ..protocol import CHANNELS, Start
from ..wire import LocalWriter, Reader
from . import sockets
from .private import write_private
from .spawning import StartError

_CREDENTIALS = struct.Struct("3i")
"""What SO_PEERCRED tells of the process that listens: pid, user id, group id."""
_ADDRESS_TAKEN = re.compile(r"address (is )?already in use|address in use|EADDRINUSE|AddrInUse|errno[ =:]*98\b", re.I)


def choose_endpoints(
    directory: Path, asked: Start, taken: AbstractSet[int]
) -> tuple[dict[str, Any], list[socket.socket]]:
    """Choose what the kernel of a start request, whose folder is *directory*, listens on.

    Returns the connection information, and ports that are to be held until the kernel is ready. None of *taken*: a kernel
    that is still starting has not bound its own yet. Raises StartError without free ports.
    """
    held: list[socket.socket] = []
    info: dict[str, Any] = {
        "key": asked.key,
        "signature_scheme": asked.signature_scheme,
        "kernel_name": asked.kernel_name,
        "transport": asked.transport,
    }
    if asked.transport == "ipc":
        info["ip"] = str(directory / "s")
        ports = [1, 2, 3, 4, 5]
    else:
        info["ip"] = "127.0.0.1"
        held = _hold_ports(5, asked.port_range, taken)
        ports = [sock.getsockname()[1] for sock in held]
    info.update({f"{channel}_port": port for channel, port in zip(CHANNELS, ports)})
    return info, held


def write_connection_file(directory: Path, info: dict[str, Any]) -> None:
    """Write connection information into *directory*, where sockets of the same names give way; raises OSError."""
    if info["transport"] == "ipc":
        for channel in CHANNELS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(endpoint(info, channel)[0])
    write_private(directory / "connection.json", json.dumps(info, indent=2).encode())


def endpoint(info: dict[str, Any], channel: str) -> tuple[str, int]:
    """Return where *channel* listens: (path, 0) for a UNIX socket, else (address, port)."""
    port = int(info[f"{channel}_port"])
    if info.get("transport") == "ipc":
        return f"{info['ip']}-{port}", 0
    return str(info["ip"]), port


def accepts(info: dict[str, Any], channel: str) -> bool:
    """Whether somebody listens where *channel* leads; asked often while kernels start, so it costs no task and no waiting."""
    address, port = endpoint(info, channel)
    with socket.socket(socket.AF_INET if port else socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex((address, port) if port else address)
        if not port:
            return error in (0, errno.EAGAIN)  # EAGAIN: it listens, and others wait already
        if error not in (0, errno.EINPROGRESS):
            return False
        poller = select.poll()  # on loopback a connection is made, or refused, by now
        poller.register(probe, select.POLLOUT)
        if not poller.poll(0) or probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        try:
            return not _joined_to_itself(probe)
        except OSError:  # it has been closed again
            return False


def listening_process(info: dict[str, Any], likely: int) -> Optional[int]:
    """Return the pid of the process that listens for the kernel of connection information *info*, None if it can't be told.

    *likely* is the process that was executed for it. Called in a thread, since many processes may have to be looked at.
    """
    for channel in CHANNELS:
        address, port = endpoint(info, channel)
        if port:
            return sockets.listening_process(address, port, likely)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(address)
            peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid = int(_CREDENTIALS.unpack(peer)[0])
            if pid:  # 0: it is in a namespace that we can't see into
                return pid
    return None


def _joined_to_itself(connection: socket.socket) -> bool:
    """Whether TCP joined a socket to itself, as it does if it happens to give it the very port that it connects to."""
    return bool(connection.getsockname() == connection.getpeername())


class Handles:
    """A kernel's UNIX sockets by descriptors: who has those can connect to a socket whose name somebody has removed.

    That is Linux's: a name in /proc/self/fd leads to the file itself, and the kernel looks at nothing else. Rejected: hard links,
    which want a second folder on the same disk that nobody cleans.
    """

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._is_closed = False
        self._lock = threading.Lock()

    def take(self, info: dict[str, Any]) -> None:
        """Open those of connection information *info*, once the kernel listens; in a thread, since disks may hang.

        Those that are not there any more, or that no descriptor is left for, are reached by their names alone.
        """
        if info.get("transport") != "ipc":
            return
        for channel in CHANNELS:
            with contextlib.suppress(OSError):
                descriptor = os.open(endpoint(info, channel)[0], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                with self._lock:
                    if self._is_closed or channel in self._descriptors:
                        os.close(descriptor)
                    else:
                        self._descriptors[channel] = descriptor

    def path(self, channel: str) -> Optional[str]:
        """Return a name that leads to the socket of *channel*, None without a descriptor; good until `close`."""
        descriptor = self._descriptors.get(channel)
        return None if descriptor is None else f"/proc/self/fd/{descriptor}"

    def close(self) -> None:
        """Let go of them: the kernel has ended."""
        with self._lock:
            self._is_closed = True
            descriptors, self._descriptors = self._descriptors, {}
        for descriptor in descriptors.values():
            os.close(descriptor)


async def connect(info: dict[str, Any], channel: str, handles: Handles) -> tuple[Reader, LocalWriter]:
    """Connect to *channel*, by *handles* where its name is gone; raises OSError."""
    address, port = endpoint(info, channel)
    if port == 0:
        try:
            made = await connect_unix(address)
        except FileNotFoundError:
            nameless = handles.path(channel)
            if nameless is None:
                raise
            made = await connect_unix(nameless)
        return made, made
    made = await connect_tcp(address, port)
    if _joined_to_itself(made.get_extra_info("socket")):
        made.close()
        raise ConnectionRefusedError
    made.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made, made


def is_address_taken(output: str) -> bool:
    """Return True if a kernel's *output* says that another program has one of its ports."""
    return bool(_ADDRESS_TAKEN.search(output))


def _hold_ports(count: int, port_range: Optional[tuple[int, int]], taken: AbstractSet[int]) -> list[socket.socket]:
    """Bind *count* loopback ports, within *port_range* if given, and keep them bound so that no one else gets them.

    They are bound with SO_REUSEADDR, as kernels do it: a kernel can listen on a port that is held, while no outgoing connection
    of this machine is given it. Ports that nothing has are preferred to those whose last connections were closed within the
    last minute (TIME_WAIT), which SO_REUSEADDR takes as well: another agent's may be among them.
    """
    held: list[socket.socket] = []
    if port_range:
        candidates = [port for port in range(port_range[0], port_range[1] + 1) if port not in taken]
        random.shuffle(candidates)
    else:
        candidates = [0] * (count + len(taken) + 16)
    for reuse in (False, True):
        ours = {sock.getsockname()[1] for sock in held}
        for port in candidates:
            if port in ours:
                continue
            sock = _hold(port, reuse)
            if sock is None:
                continue
            if sock.getsockname()[1] in taken:
                sock.close()
                continue
            held.append(sock)
            if len(held) == count:
                return held
    for sock in held:
        sock.close()
    where = "the port range {}..{}".format(*port_range) if port_range else "all of this node's ports"
    remedy = "widen the port range, or spread the kernels over more hosts"
    raise StartError(f"no {count} free ports in {where}", host_fault=True, remedy=remedy)


def _hold(port: int, reuse: bool) -> Optional[socket.socket]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        sock.close()
        return None
    return sock
