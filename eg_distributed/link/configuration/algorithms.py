"""Names of algorithms: OpenSSH's defaults, what `+`, `-` and `^` do to them, and which of them asyncssh has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_certificate_algs, get_public_key_algs

__all__ = ["DEFAULTS", "OUR_CIPHERS", "choose", "known"]

_CURVES = tuple(f"ecdsa-sha2-nistp{size}" for size in (256, 384, 521))
_CERTIFIED = (
    "ssh-ed25519-cert-v01@openssh.com",
    *(f"{curve}-cert-v01@openssh.com" for curve in _CURVES),
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
)
_KEYS = (
    *("ssh-ed25519", *_CURVES),
    *("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com", "rsa-sha2-512", "rsa-sha2-256"),
)
DEFAULTS: dict[str, tuple[str, ...]] = {
    "ciphers": (
        *("chacha20-poly1305@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr"),
        *("aes128-gcm@openssh.com", "aes256-gcm@openssh.com"),
    ),
    "hostkeyalgorithms": (*_CERTIFIED, *_KEYS),
    "pubkeyacceptedalgorithms": (*_CERTIFIED, *_KEYS),
    "casignaturealgorithms": _KEYS,
    "kexalgorithms": (
        *("mlkem768x25519-sha256", "sntrup761x25519-sha512", "sntrup761x25519-sha512@openssh.com", "curve25519-sha256"),
        *("curve25519-sha256@libssh.org", "ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521"),
        *("diffie-hellman-group-exchange-sha256", "diffie-hellman-group16-sha512", "diffie-hellman-group18-sha512"),
        "diffie-hellman-group14-sha256",
    ),
    "macs": (
        *("umac-64-etm@openssh.com", "umac-128-etm@openssh.com", "hmac-sha2-256-etm@openssh.com"),
        *("hmac-sha2-512-etm@openssh.com", "hmac-sha1-etm@openssh.com", "umac-64@openssh.com", "umac-128@openssh.com"),
        *("hmac-sha2-256", "hmac-sha2-512", "hmac-sha1"),
    ),
}
"""What OpenSSH 9 and 10 use where ssh_config says nothing, by keyword; our own reader has no `ssh` that it could ask."""

OUR_CIPHERS = (
    "aes256-gcm@openssh.com",
    "aes128-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
    "aes192-ctr",
)
"""AES-GCM first: twice the throughput of asyncssh's own first choice, and it all runs on one thread."""

_KNOWN = {
    "ciphers": get_encryption_algs,
    "hostkeyalgorithms": lambda: [*get_certificate_algs(), *get_public_key_algs()],
    "pubkeyacceptedalgorithms": get_public_key_algs,
    "casignaturealgorithms": get_public_key_algs,
    "kexalgorithms": get_kex_algs,
    "macs": get_mac_algs,
}


def known(keyword: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of *names* that asyncssh has, in their order."""
    there = {name.decode("ascii") for name in _KNOWN[keyword]()}
    return tuple(name for name in dict.fromkeys(names) if name in there)


def choose(keyword: str, text: str) -> str:
    """Return the list that *text* makes of the defaults: `+` appends, `-` removes, `^` puts first, else it replaces them."""
    names, defaults = [name for name in text.lstrip("+-^").split(",") if name], DEFAULTS[keyword]
    if text[0] == "+":
        chosen = [*defaults, *names]
    elif text[0] == "^":
        chosen = [*names, *defaults]
    elif text[0] == "-":
        patterns = [re.compile(translate(name)) for name in names]
        chosen = [name for name in defaults if not any(pattern.match(name) for pattern in patterns)]
    else:
        chosen = [each for name in names for each in _matching(name, keyword)]
    return ",".join(dict.fromkeys(chosen))


def _matching(name: str, keyword: str) -> list[str]:
    """Return the algorithms that *name* means: itself, or for a pattern such as `aes*-ctr` those that match it."""
    if not any(mark in name for mark in "*?"):
        return [name]
    pattern = re.compile(translate(name))
    return [
        each
        for each in (*DEFAULTS[keyword], *(each.decode("ascii") for each in _KNOWN[keyword]()))
        if pattern.match(each)
    ]
