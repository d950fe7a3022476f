"""RevokedHostKeys: a list of public keys, or a key revocation list as `ssh-keygen -k` makes it (PROTOCOL.krl of OpenSSH)."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
from asyncssh.public_key import decode_ssh_public_key

from .certificates import HostCertificate, read_string, read_strings
from .public_keys import read_public_key

__all__ = ["RevokedKeys"]

_MAGIC = b"SSHKRL\n\0"
_CERTIFICATES, _EXPLICIT, _SHA1, _SIGNATURE, _SHA256, _EXTENSION = 1, 2, 3, 4, 5, 255
_SERIALS, _SERIAL_RANGE, _SERIAL_BITS, _NAMES, _EXTENSION_OF_CERTIFICATES = 0x20, 0x21, 0x22, 0x23, 0x39


@dataclass
class _Certificates:
    """Certificates of one authority, or of any, that are revoked."""

    authority: bytes
    """Its public key; empty for any."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """First and last of numbers that stand in a row."""
    bits: list[tuple[int, int]] = field(default_factory=list)
    """An offset, and the numbers above it as the bits of one number."""
    names: set[str] = field(default_factory=set)

    def have(self, certificate: HostCertificate) -> bool:
        """Return True if *certificate* is one of these."""
        if self.authority not in (b"", certificate.authority):
            return False
        if certificate.name in self.names:
            return True
        number = certificate.serial
        if not number:  # what an authority that does not count gives to all
            return False
        return any(first <= number <= last for first, last in self.ranges) or any(
            number >= offset and bits >> (number - offset) & 1 for offset, bits in self.bits
        )


@dataclass
class RevokedKeys:
    """The keys that a file revokes: whole, or by their digests."""

    keys: list[asyncssh.SSHKey] = field(default_factory=list)
    blobs: set[bytes] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    certificates: list[_Certificates] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> RevokedKeys:
        """Return what *path* revokes; raises OSError, and ValueError for a revocation list that is broken."""
        data = path.read_bytes()
        found = cls()
        if data.startswith(_MAGIC):
            try:
                found._take_list(data)
            except ValueError as error:
                raise ValueError(f"the revocation list is broken: {error}") from error
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

    def has_certificate(self, certificate: HostCertificate) -> bool:
        """Return True if *certificate* is revoked by its number or its name, with its key, or with its authority."""
        return (
            self.has(certificate.key)
            or self.has(certificate.authority)
            or any(listed.have(certificate) for listed in self.certificates)
        )

    def _take_key(self, line: str) -> None:
        key, _ = read_public_key(line)  # a ValueError revokes all, as with ssh: it is not known what was meant
        self.keys.append(key)
        self.blobs.add(key.public_data)

    def _take_list(self, data: bytes) -> None:
        # magic, format version (4 bytes), number, date and flags (8 each), then reserved and comment as strings
        if int.from_bytes(data[8:12], "big") != 1:
            raise ValueError("its version is unknown")
        rest = 12 + 24
        for _ in range(2):
            rest += 4 + int.from_bytes(data[rest : rest + 4], "big")
        if rest > len(data):
            raise ValueError("it is cut off")
        while rest < len(data):
            kind, section = data[rest], read_string(data, rest + 1)
            rest += 5 + len(section)
            if kind == _CERTIFICATES:
                self.certificates.append(_read_certificates(section))
            elif kind == _EXPLICIT:
                for blob in read_strings(section):
                    self.blobs.add(blob)
                    with contextlib.suppress(ValueError):  # of a type that no host could show to asyncssh
                        self.keys.append(decode_ssh_public_key(blob))  # a certificate may be for it
            elif kind in (_SHA1, _SHA256):
                self.digests.update(read_strings(section))
            elif kind == _EXTENSION:
                _pass_over_extension(section)
            elif kind == _SIGNATURE:
                # This was the key, its signature follows. ssh is never told whose signature a list must have, so one says
                # nothing of who made it: OpenSSH up to 9.3 refused a list with a broken one, later releases pass over all.
                rest += 4 + len(read_string(data, rest))
            else:
                raise ValueError(f"it has a section of unknown kind {kind}")


def _read_certificates(section: bytes) -> _Certificates:
    """Return the certificates of a section; raises ValueError."""
    found = _Certificates(read_string(section, 0))
    rest = 4 + len(found.authority)
    rest += 4 + len(read_string(section, rest))  # reserved
    while rest < len(section):
        kind, content = section[rest], read_string(section, rest + 1)
        rest += 5 + len(content)
        if kind == _NAMES:
            found.names.update(name.decode("utf-8", "surrogateescape") for name in read_strings(content))
        elif kind == _SERIAL_BITS:
            bits = int.from_bytes(read_string(content, 8), "big")
            found.bits.append((int.from_bytes(content[:8], "big"), bits))
        elif kind in (_SERIALS, _SERIAL_RANGE):
            numbers = [int.from_bytes(content[start : start + 8], "big") for start in range(0, len(content), 8)]
            if len(content) % 8 or (kind == _SERIAL_RANGE and len(numbers) != 2):
                raise ValueError("numbers of certificates are cut off")
            found.ranges += [tuple(numbers)] if kind == _SERIAL_RANGE else zip(numbers, numbers, strict=True)  # type: ignore[list-item]
        elif kind == _EXTENSION_OF_CERTIFICATES:
            _pass_over_extension(content)
        else:
            raise ValueError(f"it names certificates in an unknown way ({kind})")
    return found


def _pass_over_extension(section: bytes) -> None:
    """Raise ValueError for an extension that must not be passed over: none is known."""
    name = read_string(section, 0)
    if section[4 + len(name) : 5 + len(name)] != b"\0":
        raise ValueError(f"it has an unknown extension {name.decode('ascii', 'replace')!r}")
