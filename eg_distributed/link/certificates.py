"""Certificates of hosts, as far as ssh asks more of them than asyncssh does (PROTOCOL.certkeys of OpenSSH)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["HostCertificate", "read_string", "read_strings"]

_OWN_FIELDS = {
    "ssh-rsa": 2,
    "ssh-dss": 4,
    "ssh-ed25519": 1,
    "sk-ssh-ed25519": 2,
    "sk-ecdsa-sha2-nistp256": 3,
    **{f"ecdsa-sha2-nistp{size}": 2 for size in (256, 384, 521)},
}
"""Strings and numbers of a key of each type, which stand behind the nonce in its certificate."""
_SUFFIX = "-cert-v01@openssh.com"


@dataclass(frozen=True)
class HostCertificate:
    """What a certificate says of itself; whether its signature is right is asyncssh's to check."""

    key: bytes
    """The plain public key that it is for, as SSH encodes it: what digests in revocation lists are of."""
    serial: int
    name: str
    """The key's id, for people and for revocation lists."""
    principals: tuple[str, ...]
    authority: bytes
    """The public key that signed it, as SSH encodes it."""
    signed_with: str
    """The algorithm of the signature."""

    @classmethod
    def read(cls, blob: bytes) -> HostCertificate | None:
        """Return what *blob* says, None for what is a plain key; raises ValueError for a certificate that is cut off."""
        kind = read_string(blob, 0).decode("ascii", "replace")
        if not kind.endswith(_SUFFIX):
            return None
        fields = _OWN_FIELDS.get(kind.removesuffix(_SUFFIX))
        if fields is None:
            raise ValueError(f"the certificate's type {kind[:40]!r} is unknown")
        at = 4 + len(kind)
        at += 4 + len(read_string(blob, at))  # the nonce
        own = at
        for _ in range(fields):
            at += 4 + len(read_string(blob, at))
        # A security key's plain type keeps the domain behind its name.
        plain = (kind.removesuffix(_SUFFIX) + ("@openssh.com" if kind.startswith("sk-") else "")).encode("ascii")
        key = len(plain).to_bytes(4, "big") + plain + blob[own:at]
        serial = int.from_bytes(blob[at : at + 8], "big")
        at += 8 + 4  # whether it is for users or for hosts, asyncssh looks at
        name = read_string(blob, at)
        at += 4 + len(name)
        principals = read_string(blob, at)
        at += 4 + len(principals) + 16  # and the times for which it is valid
        for _ in range(3):  # options that count, options that may be passed over, what is reserved
            at += 4 + len(read_string(blob, at))
        authority = read_string(blob, at)
        signature = read_string(blob, at + 4 + len(authority))
        return cls(
            key=key,
            serial=serial,
            name=name.decode("utf-8", "surrogateescape"),
            principals=tuple(each.decode("utf-8", "surrogateescape") for each in read_strings(principals)),
            authority=authority,
            signed_with=read_string(signature, 0).decode("ascii", "replace"),
        )


def read_string(data: bytes, start: int) -> bytes:
    """Return SSH's string that begins at *start*: four bytes of length, and that many; raises ValueError."""
    length = int.from_bytes(data[start : start + 4], "big")
    value = data[start + 4 : start + 4 + length]
    if len(data) < start + 4 or len(value) != length:
        raise ValueError("it is cut off")
    return value


def read_strings(section: bytes) -> Iterator[bytes]:
    """Yield the strings of *section*; raises ValueError."""
    start = 0
    while start < len(section):
        value = read_string(section, start)
        yield value
        start += 4 + len(value)
