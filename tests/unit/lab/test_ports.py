"""Ports for servers that are started in a moment."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lab import ports


def test_the_system_gives_it_to_nobody() -> None:
    """It is outside the range that sockets get which are bound to port 0, or connect somewhere."""
    first, last = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not any(first <= ports.free_port() <= last for _ in range(50))


def test_one_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not chosen, and is called taken for as long as somebody listens."""
    with socket.create_server(("127.0.0.1", ports.free_port())) as server:
        taken: int = server.getsockname()[1]
        assert not ports.is_free(taken)
        monkeypatch.setattr(ports, "_candidates", lambda: range(taken, taken + 1))
        with pytest.raises(OSError, match=r"127\.0\.0\.1: 0 of 1 ports"):
            ports.free_port()
    assert ports.free_port() == taken


def test_several() -> None:
    """No two are alike."""
    assert len(set(ports.free_ports("127.0.0.1", 40))) == 40


@pytest.mark.parametrize(("text", "first"), [("32768\t60999\n", 32768), ("broken", 49152), ("1024 65535", 65536)])
def test_the_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, first: int) -> None:
    """It ends where the system's own begins; where that is not told, by the standard; where it takes all, all may be drawn."""
    written = tmp_path / "range"
    written.write_text(text)
    monkeypatch.setattr(ports, "_EPHEMERAL", written)
    assert ports._candidates()[-1] == first - 1
