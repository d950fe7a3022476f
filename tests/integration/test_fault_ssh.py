"""SSH faults, seen from outside, and that they heal."""

import asyncio
from typing import Any

import asyncssh
import pytest

from lab import Lab, Node
from lab.errors import FaultUnavailable
from lab.faults import active, add
from tests.integration.fault_lab import broken, connected, knock, login, node, open_for_ssh, other
from tests.until import block_until, until_in_thread

__all__ = ["broken", "node", "other"]

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("fault", "options", "seen"),
    [
        ("key-removed", {}, "PermissionDenied"),
        ("account-locked", {}, "PermissionDenied|ConnectionLost"),
        ("host-key-changed", {}, "HostKeyNotVerifiable"),
        ("certificate-expired", {"of": "user"}, "PermissionDenied"),
        ("password-asked", {}, "PermissionDenied"),
        ("max-sessions", {"sessions": 0}, "ChannelOpenError"),
    ],
)
def test_a_login_is_refused(broken: Lab, node: Node, fault: str, options: dict[str, Any], seen: str) -> None:
    """The right key doesn't help; it does once healed."""
    with add(broken, fault, [node], duration=30, **options):
        assert login(broken, node, "echo in") in seen.split("|")
    assert login(broken, node, "echo in") == "in"


def test_a_password_is_asked_for(broken: Lab, node: Node) -> None:
    """sshd offers nothing but passwords."""

    class Client(asyncssh.SSHClient):
        asked = 0

        def password_auth_requested(self) -> str | None:
            Client.asked += 1
            return "wrong" if Client.asked == 1 else None

    with add(broken, "password-asked", [node], duration=30):
        assert login(broken, node, "true", client_factory=Client, login_timeout=15) == "PermissionDenied"
        assert Client.asked == 2


def test_startups_are_exhausted(broken: Lab, node: Node) -> None:
    """sshd closes a connection before the login, since others that never log in hold all places."""
    with add(broken, "max-startups", [node], duration=30, connections=2):
        assert knock(node) in {"closed", "Exceeded MaxStartups", "ConnectionResetError"}
    block_until("a place", lambda: open_for_ssh(node))


async def test_sessions_are_exhausted(broken: Lab, node: Node) -> None:
    """With one session open on a connection, the next is refused; it isn't once healed."""
    with add(broken, "max-sessions", [node], duration=30, sessions=1):
        async with connected(broken, node) as connection, connection.create_process("cat") as first:
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.run("true", timeout=5)
            first.stdin.write_eof()
    async with connected(broken, node) as connection, connection.create_process("cat") as first:
        await connection.run("true", check=True, timeout=5)
        first.stdin.write_eof()


async def test_an_expired_host_certificate_is_refused(broken: Lab, node: Node) -> None:
    """A client that trusts the authority doesn't go on with a host whose certificate was valid long ago; healed, it does."""
    with add(broken, "certificate-expired", [node], duration=30, of="host") as fault:
        ca = node.exec(["cat", f"/run/lab-faults/{fault.id}/ca.pub"], user="root").check().stdout
        # It knows the key as well, but goes by the certificate where it is shown one.
        known = f"@cert-authority {node.name} {ca}\n{node.name} {node.entry().host_key}\n"
        trusted = asyncssh.import_known_hosts(known)
        with pytest.raises(asyncssh.HostKeyNotVerifiable, match="expired"):
            async with connected(broken, node, known_hosts=trusted):
                pass
        assert await asyncio.to_thread(login, broken, node, "echo in") == "in"  # who knows the key itself may go on
    async with connected(broken, node, known_hosts=trusted) as connection:
        assert (await connection.run("echo in", timeout=5)).stdout == "in\n"


async def test_an_expired_user_certificate_is_denied(broken: Lab, node: Node) -> None:
    """sshd wants a certificate of an authority; the user's was valid long ago, and the log says so; healed, the key counts."""
    with add(broken, "certificate-expired", [node], duration=30, of="user") as fault:
        path = f"/run/lab-faults/{fault.id}/user-cert.pub"
        certificate = asyncssh.import_certificate(node.exec(["cat", path], user="root").check().stdout)
        key = asyncssh.read_private_key(broken.folder.identity)
        shown = [(key, certificate), key]
        with pytest.raises(asyncssh.PermissionDenied):
            async with connected(broken, node, client_keys=shown):
                pass
        await until_in_thread("the reason in the log", lambda: "expired" in node.read_logs(50))
    async with connected(broken, node, client_keys=shown) as connection:
        assert (await connection.run("echo in", timeout=5)).stdout == "in\n"


async def test_forwarding_is_forbidden(broken: Lab, node: Node) -> None:
    """Commands run, forwarded connections don't open; they do once healed."""
    with add(broken, "forwarding-forbidden", [node], duration=30):
        async with connected(broken, node) as connection:
            assert (await connection.run("echo in", timeout=5)).stdout == "in\n"
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.open_connection("127.0.0.1", 22)
    async with connected(broken, node) as connection:
        reader, writer = await connection.open_connection("127.0.0.1", 22)
        assert bytes(await asyncio.wait_for(reader.read(4), 5)) == b"SSH-"
        writer.close()


async def test_there_is_no_sftp(broken: Lab, node: Node) -> None:
    """Commands run, SFTP doesn't start; it does once healed."""
    with add(broken, "no-sftp", [node], duration=30):
        async with connected(broken, node) as connection:
            assert (await connection.run("echo in", timeout=5)).stdout == "in\n"
            with pytest.raises((asyncssh.Error, OSError)):
                await asyncio.wait_for(connection.start_sftp_client(), 5)
    async with connected(broken, node) as connection, connection.start_sftp_client() as sftp:
        assert await sftp.exists(".ssh")


def test_an_old_openssh_has_no_penalties(broken: Lab, node: Node) -> None:
    """The fault fails with sshd's version, and changes nothing."""
    with pytest.raises(
        FaultUnavailable, match=r"OpenSSH_9\.2.* has no PerSourcePenalties, which came with OpenSSH 9\.8"
    ):
        add(broken, "penalties", [node], duration=30)
    assert active(broken) == []


def test_a_new_openssh_has_penalties(broken: Lab) -> None:
    """A node with a newer release's sshd closes connections of who has failed to log in; it doesn't once healed."""
    node = broken.add_node("newer", packages=["openssh-server/bookworm-backports"])
    try:
        with add(broken, "penalties", [node], duration=60, seconds=50):
            assert login(broken, node, "echo in") == "in"
            key = asyncssh.generate_private_key("ssh-ed25519")
            assert login(broken, node, "true", client_keys=[key]) == "PermissionDenied"
            block_until("the penalty", lambda: not open_for_ssh(node))
            assert login(broken, node, "true") != ""
        block_until("an open door", lambda: open_for_ssh(node))
        assert login(broken, node, "echo in") == "in"
    finally:
        node.stop()
        node.remove()
