"""SSH keys and the two files that make strict host keys work: known_hosts and ssh_config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from lab.names import USER, short_name


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key: *private* in OpenSSH's format, *public* as one line without a comment."""

    private: str
    public: str


def generate_key(comment: str) -> KeyPair:
    """Make a new key; *comment* ends up in the private key only."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    return KeyPair(key.export_private_key("openssh").decode(), _without_comment(key.export_public_key().decode()))


def read_or_generate(path: Path, comment: str) -> KeyPair:
    """Return the key in *path* (and its `.pub`), made now if it is not there or can't be read."""
    try:
        key = asyncssh.read_private_key(path)
        return KeyPair(path.read_text(), _without_comment(key.export_public_key().decode()))
    except (OSError, asyncssh.KeyImportError):
        pass
    pair = generate_key(comment)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(pair.private)
    path.with_name(path.name + ".pub").write_text(f"{pair.public} {comment}\n")
    return pair


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
        lines.append(f"{','.join(names)} {entry.host_key}\n")
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
