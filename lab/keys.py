"""SSH keys, the two files that make strict host keys work (known_hosts and ssh_config), and JupyterLab's token."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncssh

from lab.names import USER, short_name
from lab.topology.daemons import JUPYTERLAB
from lab.topology.specs import GatewaySpec

TOKEN: Final = "JUPYTER_TOKEN"  # noqa: S105 - a variable's name
"""The variable that jupyter_server reads its token from."""


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key: *private* in OpenSSH's format, *public* as one line without a comment."""

    private: str
    public: str


def generate_key(comment: str) -> KeyPair:
    """Make a new key; *comment* ends up in the private key only."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    return KeyPair(key.export_private_key("openssh").decode(), _without_comment(key.export_public_key().decode()))


def read_key(path: Path) -> KeyPair:
    """Return the key in *path*, an empty one if it is not there or can't be read."""
    try:
        key = asyncssh.read_private_key(path)
        return KeyPair(path.read_text(), _without_comment(key.export_public_key().decode()))
    except (OSError, asyncssh.KeyImportError):
        return KeyPair("", "")


def read_or_generate(path: Path, comment: str) -> KeyPair:
    """Return the key in *path* (and its `.pub`), made now if it is not there or can't be read."""
    pair = read_key(path)
    if pair.private:
        return pair
    pair = generate_key(comment)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(pair.private)
    path.with_name(path.name + ".pub").write_text(f"{pair.public} {comment}\n")
    return pair


def token_variable(spec: GatewaySpec, identity: Path) -> dict[str, str]:
    """Return the variable with the token of a JupyterLab that is *spec*; nothing for an Enterprise Gateway, which asks for none.

    Made of the lab's login key, the private file *identity*: the same as long as the lab has that, and nobody else's to guess.
    """
    if spec.program != JUPYTERLAB:
        return {}
    return {TOKEN: hmac.digest(read_key(identity).private.encode(), spec.name.encode(), hashlib.sha256).hex()[:32]}


class Authority:
    """The lab's own certificate authority; its key is in the lab's folder and never leaves it."""

    def __init__(self, path: Path, lab: str, *, make: bool = True) -> None:
        pair = read_or_generate(path, f"lab-{lab}-ca") if make else read_key(path)
        self.public = pair.public
        self._key = asyncssh.import_private_key(pair.private) if pair.private else None

    def sign_host(self, public: str, names: Sequence[str], validity: float) -> str:
        """Return a certificate of the host key *public* for the host *names*, good for *validity* seconds from now."""
        return self._sign("host", public, names, validity)

    def sign_user(self, public: str, users: Sequence[str], validity: float) -> str:
        """Return a certificate with which the owner of *public* may log in as *users*."""
        return self._sign("user", public, users, validity)

    def _sign(self, kind: str, public: str, principals: Sequence[str], validity: float) -> str:
        assert self._key is not None
        sign = self._key.generate_host_certificate if kind == "host" else self._key.generate_user_certificate
        # A minute back: the clocks of nodes and gateways may be a little behind ours.
        begin = time.time() - 60
        certificate = sign(
            asyncssh.import_public_key(public),
            f"lab {kind} {principals[0]}",
            principals=list(principals),
            valid_after=int(begin),
            valid_before=int(begin + 60 + validity),
        )
        return certificate.export_certificate().decode().strip()


def _without_comment(public: str) -> str:
    return " ".join(public.split()[:2])


@dataclass(frozen=True)
class HostEntry:
    """What a client needs to know of one node: full *name*, its *address* in the lab, the loopback *port*, its key, the login."""

    name: str
    address: str
    port: int
    host_key: str
    user: str = USER
    authority: str = ""
    """The public key of the lab's certificate authority, where the node proves itself by a certificate."""


def known_hosts(entries: Iterable[HostEntry]) -> str:
    """Return known_hosts lines by name *and* address: Enterprise Gateway's own paramiko looks hosts up by address.

    The host side needs no `[127.0.0.1]:port` patterns: its ssh_config sets HostKeyAlias, and ports may change with
    every restart of a node while the alias does not. Local labs share one loopback address, which names no node.
    """
    lines = []
    for entry in entries:
        names = [entry.name, short_name(entry.name)]
        if not entry.address.startswith("127."):
            names.append(entry.address)
        # Never both: with the key itself beside it, nobody would notice a certificate that is wrong.
        proof = f"@cert-authority {','.join(names)} {entry.authority}" if entry.authority else ""
        lines.append(f"{proof or ','.join(names) + ' ' + entry.host_key}\n")
    return "".join(lines)


def ssh_config(entries: Iterable[HostEntry], *, identity: Path, known_hosts_file: Path) -> str:
    """Return an ssh_config for clients on this machine: `ssh -F FILE node1` and `ssh -F FILE node1.lab.test`.

    One block a node and no `Host *`: whoever includes the file keeps their own defaults.
    """
    return "\n".join(
        f"Host {entry.name} {short_name(entry.name)}\n"
        "  HostName 127.0.0.1\n"
        f"  Port {entry.port}\n"
        f"  User {entry.user}\n"
        f"  HostKeyAlias {entry.name}\n"
        f'  IdentityFile "{identity}"\n'
        "  IdentitiesOnly yes\n"
        f'  UserKnownHostsFile "{known_hosts_file}"\n'
        "  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n"
        "  PasswordAuthentication no\n"
        for entry in entries
    )
