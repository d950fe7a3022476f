"""Whose TCP sockets these are."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from eg_distributed.agent.sockets import listeners, peer
from tests.unit.agents import DEADLINE

NOBODY = 65534
SPOOF = """
import encodings.idna, os, socket, sys
port, service = int(sys.argv[1]), int(sys.argv[2])
os.setuid(65534)
first = socket.create_connection(("127.0.0.1", service), source_address=("127.0.0.2", port))
second = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", service))
print("there", flush=True)
sys.stdin.read()
"""
"""Connects to a port from the number of a service's port, and to that service from the number of the port, as another user."""
LISTEN = """
import os, socket, sys
os.setuid(65534)
held = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(held.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def strangers() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.communicate("", timeout=DEADLINE)


def stranger(started: list[subprocess.Popen[str]], code: str, *arguments: object) -> str:
    """Start another user's process; return what it says first."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def test_a_connection_is_its_users() -> None:
    """The process at the other end is found by its user, over IPv4 and over IPv4 in an IPv6 socket."""
    seen: asyncio.Queue[int | None] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: seen.put_nowait(peer(writer)), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        assert await asyncio.wait_for(seen.get(), DEADLINE) == os.getuid()
    with socket.socket(socket.AF_INET6) as mapped:
        await asyncio.get_running_loop().run_in_executor(None, mapped.connect, ("::ffff:127.0.0.1", port))
        assert await asyncio.wait_for(seen.get(), DEADLINE) == os.getuid()
    server.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can play another user")
async def test_the_same_ports_on_other_addresses_are_no_disguise(strangers: list[subprocess.Popen[str]]) -> None:
    """Somebody who has a connection with the same two ports, the other way round, to a service of ours is still himself."""
    seen: asyncio.Queue[int | None] = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: seen.put_nowait(peer(writer)), "127.0.0.1", 0)
    service = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    ports = [each.sockets[0].getsockname()[1] for each in (server, service)]
    assert await asyncio.to_thread(stranger, strangers, SPOOF, *ports) == "there"
    assert await asyncio.wait_for(seen.get(), DEADLINE) == NOBODY
    server.close()
    service.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can play another user")
def test_listeners_are_told_apart_by_address(strangers: list[subprocess.Popen[str]]) -> None:
    """Who listens on another loopback address, or on all, with the same port is another one; nobody is nobody."""
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        stranger(strangers, LISTEN, "127.0.0.2", port)
        assert listeners("127.0.0.1", [port]) == {port: {os.getuid()}}
        assert listeners("127.0.0.2", [port]) == {port: {NOBODY}}
        assert listeners("127.0.0.3", [port]) == {port: set()}
    everywhere = int(stranger(strangers, LISTEN, "0.0.0.0", 0))
    assert listeners("127.0.0.1", [everywhere]) == {everywhere: {NOBODY}}
    assert listeners("no-such-host.invalid", [everywhere]) == {everywhere: set()}
