"""Faults of a lab without an engine: those that processes can have, and why not the others."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncssh
import pytest

from lab import Lab, Node
from lab.errors import FaultUnavailable
from lab.faults import active, add, catalogue, heal
from lab.probes import ProbeFailed, probe_ssh
from tests.integration.fault_lab import SHORT, best, connected, login_to, timed
from tests.until import block_until

NAME = f"fltl{os.environ.get('PYTEST_XDIST_WORKER', '')}"

pytestmark = [pytest.mark.timeout(240), pytest.mark.own_lab(NAME, nodes=1)]


@pytest.fixture
def node(local: Lab) -> Iterator[Node]:
    """Its node; afterwards it has no fault and takes a login, or the test has failed."""
    found = local.node("node1")
    yield found
    left = active(local)
    heal(local)
    assert not left, left
    assert login_to(local, found, "echo in", "127.0.0.1", found.port) == "in"


@pytest.fixture
def openssh(node: Node) -> Node:
    """The node, if its server is OpenSSH's."""
    if node.sshd.kind != "openssh":
        pytest.skip("this machine has no OpenSSH server: its nodes have no sshd_config to change")
    return node


def works(lab: Lab, node: Node) -> bool:
    """Say whether a login with strict host keys works."""
    try:
        probe_ssh(node.entry(), lab.folder.identity)
    except ProbeFailed:
        return False
    return True


def knock(node: Node) -> str:
    """Connect to the node's port; return what comes."""
    try:
        with socket.create_connection(("127.0.0.1", node.port), timeout=SHORT) as plug:
            plug.settimeout(SHORT)
            return plug.recv(64).decode()
    except TimeoutError:
        return "silence"
    except ConnectionRefusedError:
        return "refused"


@pytest.mark.parametrize(("fault", "seen"), [("pause", "silence"), ("kill", "refused")])
def test_a_node_hangs_or_is_gone(local: Lab, node: Node, fault: str, seen: str) -> None:
    """Its processes are stopped or killed, and run again once healed."""
    with add(local, fault, [node], duration=60):
        assert knock(node) == seen
    block_until("a login", lambda: works(local, node))


def test_a_node_reboots(local: Lab, node: Node) -> None:
    """At once, on the same port."""
    port = node.port
    add(local, "reboot", [node])
    block_until("a login", lambda: works(local, node))
    assert node.port == port


@pytest.mark.parametrize(("fault", "seen"), [("sshd-hung", "silence"), ("sshd-stopped", "refused")])
def test_its_sshd_is_gone_or_hangs(local: Lab, openssh: Node, fault: str, seen: str) -> None:
    """And comes back."""
    with add(local, fault, [openssh], duration=60):
        assert knock(openssh) == seen
    block_until("a login", lambda: works(local, openssh))


@pytest.mark.parametrize("fault", ["key-removed", "host-key-changed", "password-asked", "max-startups"])
def test_a_login_is_refused(local: Lab, openssh: Node, fault: str) -> None:
    """By the same settings as on a container."""
    with add(local, fault, [openssh], duration=60):
        assert not works(local, openssh)
    block_until("a login", lambda: works(local, openssh))


@pytest.mark.parametrize(
    ("fault", "hostile"), [("noisy-rc", "noisy start-up file"), ("umask", "0077"), ("force-command", "umask")]
)
def test_a_login_is_hostile(local: Lab, openssh: Node, fault: str, hostile: str) -> None:
    """Start-up files of the node's own home, and sshd's settings."""
    command = 'umask; echo "$SSH_ORIGINAL_COMMAND"'
    with add(local, fault, [openssh], duration=60):
        assert hostile in login_to(local, openssh, command, "127.0.0.1", openssh.port)
    assert hostile not in login_to(local, openssh, command, "127.0.0.1", openssh.port)


async def test_there_is_no_sftp(local: Lab, openssh: Node) -> None:
    """SFTP doesn't start, and does once healed; commands run meanwhile."""
    entry = openssh.entry()
    options: dict[str, Any] = {"username": entry.user, "client_keys": [str(local.folder.identity)], "known_hosts": None}
    with add(local, "no-sftp", [openssh], duration=60):
        assert works(local, openssh)
        async with asyncssh.connect("127.0.0.1", openssh.port, config=None, **options) as connection:
            with pytest.raises((asyncssh.Error, OSError)):
                await asyncio.wait_for(connection.start_sftp_client(), 10)
    healed = asyncssh.connect("127.0.0.1", openssh.port, config=None, **options)
    async with healed as connection, connection.start_sftp_client() as sftp:
        assert await sftp.realpath(".") == openssh.inspect()["home"]


async def test_sessions_are_killed_or_one_too_many(local: Lab, openssh: Node) -> None:
    """A connection carries no second session, then its session ends; new logins get on, and a second session when healed."""
    with add(local, "max-sessions", [openssh], duration=60, sessions=1):
        async with logged_in(local, openssh) as connection, connection.create_process("cat") as first:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.run("true", timeout=10)
            first.stdin.write_eof()
    async with logged_in(local, openssh) as connection, connection.create_process("cat") as first:
        assert (await connection.run("echo in", check=True, timeout=10)).stdout == "in\n"
        await asyncio.to_thread(add, local, "sessions-killed", [openssh])
        with pytest.raises((asyncssh.Error, ConnectionError)):
            await connection.run("true", timeout=10)
        assert first.is_closing()
    assert await asyncio.to_thread(works, local, openssh)


async def test_forwarding_is_forbidden(local: Lab, openssh: Node) -> None:
    """A forwarded connection doesn't open, and does once healed."""
    with add(local, "forwarding-forbidden", [openssh], duration=60):
        async with logged_in(local, openssh) as connection:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.open_connection("127.0.0.1", openssh.port)
    async with logged_in(local, openssh) as connection:
        reader, writer = await connection.open_connection("127.0.0.1", openssh.port)
        assert bytes(await asyncio.wait_for(reader.read(4), 5)) == b"SSH-"
        writer.close()


async def test_a_banner_is_shown(local: Lab, openssh: Node) -> None:
    """sshd sends it before the login, and no more once healed."""
    shown: list[str] = []

    class Client(asyncssh.SSHClient):
        def auth_banner_received(self, msg: str, lang: str) -> None:
            shown.append(msg)

    with add(local, "noisy-banner", [openssh], duration=60):
        async with logged_in(local, openssh, client_factory=Client):
            assert "Authorised use only" in shown.pop()
    async with logged_in(local, openssh, client_factory=Client):
        assert shown == []


def test_a_shell_is_slow(local: Lab, openssh: Node) -> None:
    """A command takes that much longer."""

    def seconds() -> float:
        return timed(lambda: login_to(local, openssh, "true", "127.0.0.1", openssh.port))

    with add(local, "slow-shell", [openssh], duration=60, seconds=1.5):
        slow = best(seconds)
        assert slow >= 1.5
    assert best(seconds) < slow


def test_a_folder_of_its_home_is_removed(local: Lab, node: Node) -> None:
    """It is gone; this machine's own temporary folder is not the node's to be cleaned."""
    assert login_to(local, node, "mkdir -p .cache/one/two && ls .cache/one", "127.0.0.1", node.port) == "two"
    add(local, "folder-removed", [node], path=".cache/one")
    assert login_to(local, node, "ls .cache", "127.0.0.1", node.port) == ""
    with pytest.raises(FaultUnavailable, match="is not below"):
        add(local, "folder-removed", [node], path="/tmp/one")


def logged_in(lab: Lab, node: Node, **options: Any) -> AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
    """Log in at the node's port on this machine, with strict host keys."""
    return connected(lab, node, "127.0.0.1", node.port, **options)


def test_the_others_say_why_not(local: Lab, node: Node) -> None:
    """Nothing that needs a machine of its own is silently left out."""
    for kind in catalogue():
        if "local" not in kind.drivers:
            with pytest.raises(FaultUnavailable, match="local lab"):
                add(local, kind.name, [node], duration=60)
    assert active(local) == []
