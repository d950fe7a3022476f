"""The way that takes its time, as far as it needs no device: descriptors stand for those."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers import wire
from tests.until import PROCESS_SECONDS

Ends = tuple[socket.socket, socket.socket, subprocess.Popen[bytes]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of a way, and the process between them."""
    here, here_inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    there, there_inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    inside = (here_inside.fileno(), there_inside.fileno())
    for end in (here, there):
        end.settimeout(PROCESS_SECONDS)
    for descriptor in inside:
        os.set_blocking(descriptor, False)
    argv = [sys.executable, str(Path(wire.__file__)), *map(str, inside)]
    with (
        here,
        here_inside,
        there,
        there_inside,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=inside) as pump,
    ):
        yield here, there, pump


def test_packets_arrive_in_order_and_late(ends: Ends) -> None:
    """Each packet is as long on its way as was said, in both directions, and none overtakes another."""
    here, there, pump = ends
    wire.tell(pump, "0.05")
    for source, target in ((here, there), (there, here)):
        began = time.monotonic()
        for number in range(3):
            source.send(b"%d" % number)
        assert [target.recv(100) for _ in range(3)] == [b"0", b"1", b"2"]
        assert time.monotonic() - began >= 0.05


def test_a_cut_loses_what_is_sent_until_it_is_healed(ends: Ends) -> None:
    """What was sent before and had not arrived, or was sent meanwhile, never arrives; what is sent afterwards does."""
    here, there, pump = ends
    wire.tell(pump, "60")
    here.send(b"on its way")
    wire.tell(pump, "cut")
    here.send(b"lost")
    wire.tell(pump, "cut")  # it is heard after the packet was: both are looked at in one round
    wire.tell(pump, "0")
    here.send(b"found")
    assert there.recv(100) == b"found"


def test_the_way_ends_with_whoever_opened_it(ends: Ends) -> None:
    """Devices are gone with the process, and that ends when nobody holds its input."""
    _, _, pump = ends
    assert pump.stdin is not None
    pump.stdin.close()
    assert pump.wait(PROCESS_SECONDS) == 0
