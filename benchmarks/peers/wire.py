"""A way between this machine and a node's network that takes its time, or is cut: two TUN devices and a process between them.

Every program takes it, whatever it speaks: SSH, plain TCP to a kernel's ports, a node's connection back. A proxy before sshd
would slow or cut only those that have everything in SSH, and netem is not in every Linux. Needs root and /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

HERE, THERE = "10.213.87.1", "10.213.87.2"
"""The addresses of its two ends: of this machine, and of the node."""
DEVICE = Path("/dev/net/tun")
_HERE_DEVICE, _THERE_DEVICE = "egbench0", "egbench1"
_SET_DEVICE, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000
_MOST_QUEUED = 20_000
"""Packets on their way in one direction; what comes beyond is dropped, as by any router."""
_SECONDS = 10.0


class Wire:
    """The way, while the block lasts, to the node whose main process is *pid* on this machine."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._pump: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        devices = [_device(name) for name in (_HERE_DEVICE, _THERE_DEVICE)]
        try:
            _run("ip", "link", "set", _THERE_DEVICE, "netns", str(self._pid))
            self._up(_HERE_DEVICE, HERE, THERE)
            self._up(_THERE_DEVICE, THERE, HERE, *self._inside())
            argv = [sys.executable, str(Path(__file__).resolve()), *map(str, devices)]
            self._pump = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=devices)
        finally:
            for device in devices:
                os.close(device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pump is not None and self._pump.stdin is not None:
            self._pump.stdin.close()  # its end, and with it that of both devices
            self._pump.wait(_SECONDS)

    def _inside(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/proc/{self._pid}/ns/net")

    def _up(self, device: str, own: str, other: str, *inside: str) -> None:
        _run(*inside, "ip", "addr", "add", own, "peer", other, "dev", device)
        _run(*inside, "ip", "link", "set", device, "up", "mtu", "1400", "txqueuelen", "10000")

    def take(self, round_trip: float) -> None:
        """Let each packet be *round_trip* / 2 seconds on its way; 0 as fast as it can. A cut ends with it."""
        self._tell(f"{round_trip / 2:.6f}")

    def cut(self, *, ends_connections: bool) -> None:
        """Lose every packet from now on, without a word; with *ends_connections* either side's system ends them first.

        The first is a cable; the second is what a firewall, a VPN or a laptop's sleep make of it.
        """
        self._tell("cut")
        if ends_connections:
            _run("ss", "--kill", "--tcp", "dst", THERE)
            _run(*self._inside(), "ss", "--kill", "--tcp", "dst", HERE)

    def _tell(self, what: str) -> None:
        if self._pump is None:
            raise RuntimeError("the wire is not open")
        tell(self._pump, what)


def tell(pump: subprocess.Popen[bytes], what: str) -> None:
    """Say it to the process between the devices, and wait until it has heard it."""
    if pump.stdin is None or pump.stdout is None:
        raise RuntimeError("the wire's process was started without pipes")
    pump.stdin.write(f"{what}\n".encode())
    pump.stdin.flush()
    ready, _, _ = select.select([pump.stdout], [], [], _SECONDS)
    if not ready or not os.read(pump.stdout.fileno(), 1):
        raise RuntimeError("the wire's process does not answer")


def missing() -> str:
    """Return what a wire lacks here, in words; empty if there can be one."""
    if os.geteuid():
        return "it needs root"
    return "" if DEVICE.exists() else f"it needs {DEVICE}"


def _device(name: str) -> int:
    """Return the descriptor of a new TUN device, which lasts as long as that; inherited by no other program."""
    device = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _SET_DEVICE, struct.pack("16sH22x", name.encode(), _TUN | _NO_HEADER))
    return device


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=_SECONDS)


class Direction:
    """Packets on their way from one device to the other, in order."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self._queue: deque[tuple[float, bytes]] = deque()

    @property
    def due(self) -> float | None:
        """When the next packet arrives; None if none is on its way."""
        return self._queue[0][0] if self._queue else None

    def read(self, seconds: float | None) -> None:
        """Take what the source has; it arrives after *seconds*, or never if that is None."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = os.read(self.source, 65536)
                if seconds is not None and len(self._queue) < _MOST_QUEUED:
                    self._queue.append((time.monotonic() + seconds, packet))

    def write(self) -> None:
        """Hand over what is due."""
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            # A device whose queue is full, or that is down, loses the packet, as a cable would.
            with contextlib.suppress(OSError):
                os.write(self.target, self._queue[0][1])
            self._queue.popleft()

    def lose(self) -> None:
        """Forget what is on its way."""
        self._queue.clear()


def pump(here: int, there: int) -> None:
    """Carry packets between two devices until standard input ends; its lines are seconds of one direction, or `cut`.

    Each is answered by a byte when it is done.
    """
    directions = {here: Direction(here, there), there: Direction(there, here)}
    seconds: float | None = 0.0
    while True:
        dues = [each.due for each in directions.values() if each.due is not None]
        wait = max(0.0, min(dues) - time.monotonic()) if dues else None
        ready, _, _ = select.select([0, *directions], [], [], wait)
        if 0 in ready:
            lines = os.read(0, 4096).decode().split()
            if not lines:
                return
            seconds = None if lines[-1] == "cut" else float(lines[-1])
            if seconds is None:
                for each in directions.values():
                    each.lose()
            os.write(1, b"." * len(lines))
        for source in ready:
            if source:
                directions[source].read(seconds)
        for each in directions.values():
            each.write()


if __name__ == "__main__":
    pump(*map(int, sys.argv[1:]))
