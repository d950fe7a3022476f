"""Names of algorithms: OpenSSH's defaults, what `+`, `-` and `^` do to them, and which of them asyncssh has."""

from __future__ import annotations

from collections.abc import Iterable

from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.public_key import get_certificate_algs, get_public_key_algs

from .words import Invalid, matches, matches_list

__all__ = ["DEFAULTS", "OUR_CIPHERS", "choose", "known", "sayable"]

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
    "hostbasedacceptedalgorithms": (*_CERTIFIED, *_KEYS),
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

_ALL_KEYS = (
    *("ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com"),
    *("sk-ssh-ed25519@openssh.com", "sk-ssh-ed25519-cert-v01@openssh.com"),
    *(name for curve in _CURVES for name in (curve, f"{curve}-cert-v01@openssh.com")),
    *("sk-ecdsa-sha2-nistp256@openssh.com", "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com"),
    *("webauthn-sk-ecdsa-sha2-nistp256@openssh.com", "ssh-dss", "ssh-dss-cert-v01@openssh.com"),
    *("ssh-rsa", "ssh-rsa-cert-v01@openssh.com", "rsa-sha2-256", "rsa-sha2-256-cert-v01@openssh.com"),
    *("rsa-sha2-512", "rsa-sha2-512-cert-v01@openssh.com"),
)
"""All algorithms of keys that OpenSSH has, in the order in which patterns find them."""
_ALL_KEYWORDS = frozenset(
    {"hostkeyalgorithms", "pubkeyacceptedalgorithms", "hostbasedacceptedalgorithms", "casignaturealgorithms"}
)
"""Keywords whose lists may have patterns also where they don't take away."""
_NOT_OFFERED = {
    "ciphers": ("3des-cbc", "aes128-cbc", "aes192-cbc", "aes256-cbc"),
    "kexalgorithms": (
        *("diffie-hellman-group1-sha1", "diffie-hellman-group14-sha1", "diffie-hellman-group-exchange-sha1"),
        "sntrup4591761x25519-sha512@tinyssh.org",
    ),
    "macs": (
        *("hmac-sha1-96", "hmac-md5", "hmac-md5-96", "hmac-sha1-96-etm@openssh.com", "hmac-md5-etm@openssh.com"),
        "hmac-md5-96-etm@openssh.com",
    ),
}
"""What OpenSSH has, and uses where ssh_config says so."""

_KNOWN = {
    "ciphers": get_encryption_algs,
    "hostkeyalgorithms": lambda: [*get_certificate_algs(), *get_public_key_algs()],
    "pubkeyacceptedalgorithms": lambda: [*get_certificate_algs(), *get_public_key_algs()],
    "hostbasedacceptedalgorithms": lambda: [*get_certificate_algs(), *get_public_key_algs()],
    "casignaturealgorithms": get_public_key_algs,
    "kexalgorithms": get_kex_algs,
    "macs": get_mac_algs,
}


def known(keyword: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of *names* that asyncssh has, in their order."""
    there = {name.decode("ascii") for name in _KNOWN[keyword]()}
    return tuple(name for name in dict.fromkeys(names) if name in there)


def sayable(keyword: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of *names* that may be added to *keyword* in ssh_config: asyncssh has them, and ssh knows the name."""
    theirs = {*DEFAULTS[keyword], *_NOT_OFFERED.get(keyword, _ALL_KEYS)}
    return tuple(name for name in known(keyword, names) if name in theirs)


def choose(keyword: str, text: str) -> str:
    """Return the list that *text* makes of the defaults: `+` appends, `-` removes, `^` puts first, else it replaces them.

    Patterns mean all that OpenSSH has, in its order. Raises Invalid for a list of which nothing is left, and for one with a name
    that neither OpenSSH nor asyncssh has.
    """
    sign, names = (text[0], text[1:]) if text[:1] in ("+", "-", "^") else ("", text)
    defaults = DEFAULTS[keyword]
    if sign == "-":
        return ",".join(name for name in defaults if not matches_list(name, names))
    has_patterns = keyword in _ALL_KEYWORDS
    wanted = {"+": (*defaults, *names.split(",")), "^": (*names.split(","), *defaults), "": tuple(names.split(","))}[
        sign
    ]
    chosen: list[str] = []
    for name in wanted:
        if has_patterns and any(mark in name for mark in "*?"):
            found = [each for each in _ALL_KEYS if matches(each, name)]
        else:
            found = [name] if name in _all(keyword) else []
        if name and not found:
            raise Invalid(f"{keyword} {name} is unknown")
        chosen += found
    if not chosen:
        raise Invalid(f"{keyword} {text} names nothing")
    return ",".join(dict.fromkeys(chosen))


def _all(keyword: str) -> frozenset[str]:
    """Return all names that a list of *keyword* may have: OpenSSH's, also those that it does not offer, and asyncssh's."""
    return frozenset(
        {
            *DEFAULTS[keyword],
            *_NOT_OFFERED.get(keyword, _ALL_KEYS),
            *(name.decode("ascii") for name in _KNOWN[keyword]()),
        }
    )
