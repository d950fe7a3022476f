"""RevokedHostKeys: a list of public keys, or a key revocation list as `ssh-keygen -k` makes it (PROTOCOL.krl of OpenSSH)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
from asyncssh.public_key import decode_ssh_public_key

from .public_keys import read_public_key

__all__ = ["RevokedKeys"]

_MAGIC = b"SSHKRL\n\0"
_CERTIFICATES, _EXPLICIT, _SHA1, _SIGNATURE, _SHA256, _EXTENSION = 1, 2, 3, 4, 5, 255


@dataclass
class RevokedKeys:
    """The keys that a file revokes: whole, or by their digests."""

    keys: list[asyncssh.SSHKey] = field(default_factory=list)
    blobs: set[bytes] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    names_certificates: bool = False
    """True if certificates are revoked by their number or name."""

    @classmethod
    def read(cls, path: Path) -> RevokedKeys:
        """Return what *path* revokes; raises OSError, and ValueError for a revocation list that is broken."""
        data = path.read_bytes()
        found = cls()
        if data.startswith(_MAGIC):
            found._take_list(data)
        else:
            for line in data.decode("utf-8", "surrogateescape").split("\n"):
                line = line.partition("\0")[0].lstrip(" \t")
                if line.strip() and not line.startswith("#"):
                    found._take_key(line)
        return found

    def has(self, blob: bytes) -> bool:
        """Return True if the public key with this encoding is revoked."""
        return (
            blob in self.blobs
            or hashlib.sha1(blob).digest() in self.digests  # noqa: S324 - the format's own
            or hashlib.sha256(blob).digest() in self.digests
        )

    def _take_key(self, line: str) -> None:
        key, _ = read_public_key(line)  # a ValueError revokes all, as with ssh: it is not known what was meant
        self.keys.append(key)
        self.blobs.add(key.public_data)

    def _take_list(self, data: bytes) -> None:
        # magic, format version (4 bytes), number, date and flags (8 each), then reserved and comment as strings
        if int.from_bytes(data[8:12], "big") != 1:
            raise ValueError("the version of the revocation list is unknown")
        rest = 12 + 24
        for _ in range(2):
            rest += 4 + int.from_bytes(data[rest : rest + 4], "big")
        if rest > len(data):
            raise ValueError("the revocation list is cut off")
        while rest < len(data):
            kind, section = data[rest], _string(data, rest + 1)
            rest += 5 + len(section)
            if kind == _CERTIFICATES:
                self.names_certificates = True
            elif kind == _EXPLICIT:
                for blob in _strings(section):
                    self.blobs.add(blob)
                    with contextlib.suppress(ValueError):  # of a type that no host could show to asyncssh
                        self.keys.append(decode_ssh_public_key(blob))  # a certificate may be for it
            elif kind in (_SHA1, _SHA256):
                self.digests.update(_strings(section))
            elif kind == _EXTENSION:
                name = _string(section, 0)
                if section[4 + len(name) : 5 + len(name)] != b"\0":
                    raise ValueError(
                        f"the revocation list has an unknown extension {name.decode('ascii', 'replace')!r}"
                    )
            elif kind == _SIGNATURE:
                return  # ssh does not check it either unless it is told whose it must be
            else:
                raise ValueError(f"the revocation list has a section of unknown kind {kind}")


def _string(data: bytes, start: int) -> bytes:
    length = int.from_bytes(data[start : start + 4], "big")
    value = data[start + 4 : start + 4 + length]
    if len(data) < start + 4 or len(value) != length:
        raise ValueError("the revocation list is cut off")
    return value


def _strings(section: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(section):
        value = _string(section, start)
        yield value
        start += 4 + len(value)
