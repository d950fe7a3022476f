"""The keys that a login offers, and their order: the same as those of ssh, which is the oracle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from eg_distributed.link import login
from eg_distributed.link.configuration import configuration_of
from eg_distributed.link.identities import identities_of
from eg_distributed.link.known_hosts import HostKeys
from eg_distributed.settings import Distributed
from tests.until import until_in_thread

pytestmark = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("ssh", "ssh-agent", "ssh-add")), reason="without ssh there is no oracle"
)

KEYS = {
    "a": asyncssh.generate_private_key("ssh-ed25519"),
    "b": asyncssh.generate_private_key("ssh-ed25519"),
    "rsa": asyncssh.generate_private_key("ssh-rsa", key_size=2048),
}
AUTHORITY = asyncssh.generate_private_key("ssh-ed25519")


def file_of(said: str) -> bytes:
    """Return what a file holds: `a` a private key, `a.pub` its public half, `a.user` or `a.host` a certificate for it."""
    name, _, kind = said.partition(".")
    if kind == "user":
        return AUTHORITY.generate_user_certificate(KEYS[name], "x", principals="ann").export_certificate()
    if kind == "host":
        return AUTHORITY.generate_host_certificate(KEYS[name], "x").export_certificate()
    return KEYS[name].export_public_key() if kind else KEYS[name].export_private_key()


FILES = "IdentityFile {0}/a\nIdentityFile {0}/b"
NONE = "IdentityFile none"
ROWS: dict[str, tuple[str, dict[str, str], str]] = {
    # what ssh_config says, files by their content, keys of the agent
    "files": (FILES, {"a": "a", "b": "b"}, ""),
    "agent": (NONE, {}, "a b"),
    "agent-first": (FILES, {"a": "a", "b": "b"}, "rsa b"),
    "only-named": (f"IdentitiesOnly yes\n{FILES}", {"a": "a.pub", "b": "b"}, "rsa a"),
    "public-half-named": ("IdentitiesOnly yes\nIdentityFile {0}/a.pub", {"a.pub": "a.pub"}, "b a"),
    "certificates-beside": (FILES, {"a": "a", "a-cert.pub": "a.user", "b": "b", "b-cert.pub": "b.user"}, ""),
    "certificate-without-suffix": (FILES, {"a": "a", "a-cert": "a.user"}, ""),
    "certificate-beside-agents": (FILES, {"a": "a.pub", "a-cert.pub": "a.user"}, "a rsa"),
    "certificate-beside-public-half": ("IdentityFile {0}/a.pub", {"a.pub": "a.pub", "a.pub-cert.pub": "a.user"}, "a"),
    "certificate-alone-beside": (FILES, {"a-cert.pub": "a.user"}, "a"),
    "certificate-of-another-beside": (FILES, {"a": "a", "a-cert.pub": "b.user", "b": "b"}, ""),
    "hosts-certificate-beside": (FILES, {"a": "a", "a-cert.pub": "a.host"}, ""),
    "certificate": (f"CertificateFile {{0}}/c.pub\n{FILES}", {"a": "a", "c.pub": "a.user", "a-cert.pub": "a.host"}, ""),
    "certificate-by-short-name": (f"CertificateFile {{0}}/c\n{FILES}", {"a": "a", "c.pub": "a.user"}, ""),
    "certificate-of-agents": (f"CertificateFile {{0}}/c.pub\n{NONE}", {"c.pub": "a.user"}, "a"),
    "certificate-of-a-host": (f"CertificateFile {{0}}/c.pub\n{FILES}", {"a": "a", "c.pub": "a.host"}, ""),
    "small": (f"RequiredRSASize 3072\nIdentityFile {{0}}/rsa\n{FILES}", {"rsa": "rsa", "a": "a"}, ""),
    "small-of-agents": (f"RequiredRSASize 3072\n{NONE}", {}, "rsa a"),
    "accepted": (f"PubkeyAcceptedAlgorithms rsa-sha2-256\n{FILES}", {"a": "rsa", "b": "b"}, ""),
    "accepted-no-certificates": (
        f"PubkeyAcceptedAlgorithms ssh-ed25519\n{FILES}",
        {"a": "a", "a-cert.pub": "a.user"},
        "",
    ),
    "accepted-certificates": (
        f"PubkeyAcceptedAlgorithms ssh-ed25519-cert-v01@openssh.com\n{FILES}",
        {"a": "a", "a-cert.pub": "a.user"},
        "",
    ),
    "accepted-rsa-certificates": (
        f"PubkeyAcceptedAlgorithms rsa-sha2-512-cert-v01@openssh.com\n{FILES}",
        {"a": "rsa", "a-cert.pub": "rsa.user"},
        "",
    ),
    "accepted-all-but-certificates": (
        f"PubkeyAcceptedAlgorithms -*-cert-*\n{FILES}",
        {"a": "a", "a-cert.pub": "a.user"},
        "",
    ),
}


class _Refusing(asyncssh.SSHServer):
    """Notes which keys are offered, and takes none."""

    offered: list[str]

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self.offered.append(next(name for name, known in KEYS.items() if known.public_data == key.public_data))
        return False

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self.offered.append("certificate")
        return False


@contextlib.asynccontextmanager
async def an_agent(folder: Path, keys: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """An ssh-agent with *keys*."""
    path = folder / "agent.sock"
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", str(path), stdout=asyncio.subprocess.DEVNULL)
    try:
        await until_in_thread("the agent listens", path.exists)
        for name in keys:
            adding = await asyncio.create_subprocess_exec(
                "ssh-add", "-q", "-", stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
            await adding.communicate(file_of(name))
            assert adding.returncode == 0
        yield
    finally:
        agent.kill()
        await agent.wait()


class _Unsaid(OrderedDict[bytes, bytes]):
    """The extensions of a server that does not say which signatures it takes, as OpenSSH before 7.2."""

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if key != b"server-sig-algs":
            super().__setitem__(key, value)


class _Silent(_Refusing):
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        setattr(conn, "_extensions_to_send", _Unsaid())  # noqa: B010 - asyncssh has no option for it


async def offers(
    row: tuple[str, dict[str, str], str],
    kind: type[_Refusing],
    short: Path,
    monkeypatch: pytest.MonkeyPatch,
    also: tuple[str, ...] = (),
) -> tuple[list[str], list[str]]:
    """Return what ssh offers to a server, and what we do; *also* are signatures that the connection has for hosts' keys."""
    text, files, agent = row
    for path, content in files.items():
        (short / path).write_bytes(file_of(content))
        (short / path).chmod(0o600)
    offered: list[str] = []

    def server() -> _Refusing:
        made = kind()
        made.offered = offered
        return made

    key = asyncssh.generate_private_key("ssh-ed25519")
    async with (
        an_agent(short, agent.split(), monkeypatch),
        asyncssh.listen("127.0.0.1", 0, server_factory=server, server_host_keys=[key]) as acceptor,
    ):
        (short / "config").write_text(
            f"{text.format(short)}\nHostName 127.0.0.1\nPort {acceptor.get_port()}\nUser ann\n"
            "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nBatchMode yes\n"
        )
        ssh = await asyncio.create_subprocess_exec(
            *("ssh", "-F", str(short / "config"), "node1", "true"), stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
        )
        await asyncio.wait_for(ssh.communicate(), 20)
        theirs, offered[:] = list(offered), []
        configuration = await configuration_of("node1", Distributed(ssh_config=str(short / "config")))
        identities = await identities_of(configuration)
        options = login._options(
            configuration, Distributed(), HostKeys([key.convert_to_public()]), identities, True, False
        )
        if also:
            options["signature_algs"] = [*options["signature_algs"], *also]
        try:
            with pytest.raises(asyncssh.PermissionDenied):
                await asyncssh.connect(**options)
        finally:
            identities.close()
    return theirs, offered


@pytest.mark.parametrize("name", ROWS)
async def test_keys_are_offered_as_ssh_offers_them(name: str, short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, certificates and the agent's keys are offered in ssh's order, and those that ssh leaves out are left out."""
    theirs, ours = await offers(ROWS[name], _Refusing, short, monkeypatch)
    assert ours == theirs


WITHOUT_SHA1 = "PubkeyAcceptedAlgorithms rsa-sha2-512,rsa-sha2-256,ssh-ed25519"
SILENT: dict[str, tuple[str, dict[str, str], str]] = {
    "file": (f"{WITHOUT_SHA1}\n{FILES}", {"a": "rsa", "b": "b"}, ""),
    "agent": (f"{WITHOUT_SHA1}\n{NONE}", {}, "rsa b"),
    "certificate": (
        f"PubkeyAcceptedAlgorithms ssh-rsa,rsa-sha2-512-cert-v01@openssh.com\nCertificateFile {{0}}/c.pub\n{FILES}",
        {"a": "rsa", "c.pub": "rsa.user"},
        "",
    ),
    "sha1": (f"PubkeyAcceptedAlgorithms +ssh-rsa\n{FILES}", {"a": "rsa", "b": "b"}, ""),
    "sha1-first": (f"PubkeyAcceptedAlgorithms ssh-rsa,rsa-sha2-512\n{FILES}", {"a": "rsa"}, ""),
}


@pytest.mark.parametrize("also", [(), ("ssh-rsa",)], ids=["own", "of-hosts-keys"])
@pytest.mark.parametrize("name", SILENT)
async def test_a_server_that_names_no_signatures_gets_none_that_is_left_out(
    name: str, also: tuple[str, ...], short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An RSA key signs with SHA-1 only where PubkeyAcceptedAlgorithms has ssh-rsa, whatever the server leaves unsaid."""
    theirs, ours = await offers(SILENT[name], _Silent, short, monkeypatch, also)
    assert ours == theirs
