"""Logins by the gateway's own host key, with a stand-in for ssh-keysign and asyncssh's server."""

from __future__ import annotations

import getpass
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from eg_distributed.errors import LoginRefused
from eg_distributed.link import host_based
from eg_distributed.link.configuration import Configuration, configuration_of
from eg_distributed.link.login import log_in
from eg_distributed.settings import Distributed

KEYSIGN = """#!{python}
import sys
sys.path[:] = {path!r}
import asyncssh, os
data = sys.stdin.buffer.read()
assert data[4] == 2
os.fstat(int.from_bytes(data[5:9], "big"))
if os.path.exists({refusal!r}):
    sys.exit(open({refusal!r}).read())
blob = data[13:]
string = lambda text: len(text).to_bytes(4, "big") + text
algorithm = next(name for name in (b"rsa-sha2-512", b"rsa-sha2-256", b"ssh-ed25519") if string(name) in blob)
key = asyncssh.read_private_key({folder!r} + ("/ssh_host_rsa_key" if b"rsa" in algorithm else "/ssh_host_ed25519_key"))
string = lambda text: len(text).to_bytes(4, "big") + text
sys.stdout.buffer.write(string(b"\\2" + string(key.sign(blob, algorithm))))
"""
"""Signs what it is given, as ssh-keysign does, or refuses with the words of a file."""


class Machine:
    """The gateway's own host keys, and a host that lets its users in by them."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.refusal = folder / "refusal"
        self._config = (
            f"Host node1\n  HostName 127.0.0.1\n  Port {port}\n  User tester\n  IdentityFile none\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n  HostbasedAuthentication yes\n"
        )

    def settings(self, more: str = "") -> Distributed:
        """Return settings with *more* lines of ssh_config."""
        (self.folder / "config").write_text(f"{more}{self._config}")
        return Distributed(ssh_config=str(self.folder / "config"))


class _Host(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def validate_host_based_user(self, username: str, client_host: str, client_username: str) -> bool:
        return client_username == getpass.getuser() and bool(client_host)


@pytest.fixture
async def machine(short: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    """A host on this machine, and the stand-in for ssh-keysign."""
    known = []
    for kind, name in (("ssh-ed25519", "ed25519"), ("ssh-rsa", "rsa")):
        key = asyncssh.generate_private_key(kind)
        key.write_private_key(short / f"ssh_host_{name}_key")
        key.write_public_key(short / f"ssh_host_{name}_key.pub")
        known.append(key.convert_to_public())
    (short / "ssh_host_dsa_key.pub").write_text("garbage\n")
    helper = short / "ssh-keysign"
    helper.write_text(
        KEYSIGN.format(python=sys.executable, path=sys.path, refusal=str(short / "refusal"), folder=str(short))
    )
    helper.chmod(0o700)
    monkeypatch.setattr(host_based, "_HELPERS", (short / "missing", helper))
    monkeypatch.setattr(host_based, "_FOLDER", short)
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(
        _Host,
        "127.0.0.1",
        0,
        server_host_keys=[key],
        host_based_auth=True,
        trust_client_host=True,
        known_client_hosts=(known, [], []),
    )
    (short / "known_hosts").write_text(f"[127.0.0.1]:{server.get_port()} {key.export_public_key().decode()}")
    yield Machine(short, server.get_port())
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "more", ["", "HostbasedAcceptedAlgorithms rsa-sha2-512\n", "PreferredAuthentications publickey,hostbased\n"]
)
async def test_a_host_lets_the_gateway_in_by_its_host_key(machine: Machine, more: str) -> None:
    """Where ssh_config has HostbasedAuthentication, ssh-keysign signs with the first key that the list of algorithms has."""
    connection = await log_in("node1", machine.settings(more))
    assert connection.get_extra_info("username") == "tester"
    connection.close()
    await connection.wait_closed()


async def test_what_ssh_keysign_says_is_in_the_refusal(machine: Machine) -> None:
    """A login that ssh-keysign does not sign fails with its own words, and it is not asked again for further keys."""
    machine.refusal.write_text("ssh-keysign not enabled in /etc/ssh/ssh_config")
    with pytest.raises(
        LoginRefused, match=r"not used: this machine's host key \(.*did not sign: ssh-keysign not enabled"
    ):
        await log_in("node1", machine.settings())


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("HostbasedAcceptedAlgorithms ecdsa-sha2-nistp256\n", "HostbasedAcceptedAlgorithms leaves out all host keys"),
        ("PreferredAuthentications publickey\n", "offered: nothing \\("),
        ("HostbasedAuthentication no\n", "offered: nothing \\("),
    ],
)
async def test_a_host_key_that_may_not_be_used_is_not(machine: Machine, more: str, reason: str) -> None:
    """Lists of algorithms and of ways to log in count for host keys, too, and the refusal says so."""
    with pytest.raises(LoginRefused, match=reason):
        await log_in("node1", machine.settings(more))


async def test_without_ssh_keysign_the_host_key_alone_is_left_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway without ssh-keysign logs in by its other ways, and names the one that it lacks."""
    monkeypatch.setattr(host_based, "_HELPERS", ())
    with pytest.raises(LoginRefused, match="there is no ssh-keysign on the gateway"):
        await log_in("node1", machine.settings())


async def test_behind_a_proxy_the_machines_own_name_is_given(machine: Machine) -> None:
    """A connection without an address has no name that could be looked up: the machine's own stands for it, as with ssh."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = await host_based.host_based_of(await configuration(machine), ours)
    assert (found.name, found.user) == (f"{socket.gethostname()}.", getpass.getuser())


async def configuration(machine: Machine) -> Configuration:
    """Return what ssh_config says of the host."""
    return await configuration_of("node1", machine.settings())
