"""Public keys as OpenSSH writes them on a line, `TYPE BASE64 [comment]`, read by its rules (sshkey_read in sshkey.c)."""

from __future__ import annotations

import base64
import re

import asyncssh
from asyncssh.public_key import decode_ssh_certificate, decode_ssh_public_key

__all__ = ["decode", "plain_algorithm", "read_public_key", "split_word"]

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_BLANKS = str.maketrans("", "", " \t\r\n\v\f")
_OTHER_NAMES = {
    f"rsa-sha2-{size}{kind}": f"ssh-rsa{kind}" for size in (256, 512) for kind in ("", "-cert-v01@openssh.com")
}
"""What ssh takes for the name of a key's type as well."""


def split_word(text: str) -> tuple[str, str]:
    """Return the first word of *text* and what follows it; only blanks and tabs stand between words."""
    word, *rest = re.split(r"[ \t]+", text, maxsplit=1)
    return word, rest[0] if rest else ""


def decode(text: str) -> bytes | None:
    """Return what *text* means in base64, None for what is none: Python's own passes over a good deal."""
    text = text.translate(_BLANKS)
    return base64.b64decode(text) if _BASE64.fullmatch(text) else None


def read_public_key(text: str) -> tuple[asyncssh.SSHKey, bool]:
    """Return the key of `TYPE BASE64 [comment]`, and True for one that a certificate is for; raises ValueError."""
    name, rest = split_word(text)
    blob = decode(split_word(rest)[0])
    if not blob:
        raise ValueError("its key is cut off" if blob == b"" else "its key is not base64")
    if is_certificate := "-cert-v0" in name:
        certificate = decode_ssh_certificate(blob)  # a KeyImportError is a ValueError
        key, algorithm = certificate.key, certificate.algorithm.decode("ascii")
    else:
        key = decode_ssh_public_key(blob)
        algorithm = key.get_algorithm()
    if algorithm != _OTHER_NAMES.get(name, name):
        raise ValueError(f"its key is not of the type {name[:40]!r}")
    return key, is_certificate


def plain_algorithm(name: str) -> str:
    """Return the algorithm of a certificate's own key."""
    plain = name.replace("-cert-v01@openssh.com", "")
    return f"{plain}@openssh.com" if plain.startswith("sk-") and plain != name else plain
