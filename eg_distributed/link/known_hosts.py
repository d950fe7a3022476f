"""Host keys: what known_hosts says of a host, read as OpenSSH reads it (hostfile.c, sshconnect.c), and what is revoked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from eg_distributed.aside import aside
from eg_distributed.errors import HostKeyRejected, SSHConfigInvalid
from eg_distributed.link.deadlines import within

from .certificates import HostCertificate
from .configuration import Configuration
from .configuration.tokens import expand_tilde, expand_tokens, expand_variables
from .configuration.words import lower, matches, matches_list, split_words
from .groups import end_group
from .public_keys import decode, plain_algorithm, read_public_key, split_word
from .revoked import RevokedKeys

__all__ = ["HostKeys", "add_keys_of_address", "host_keys_of"]

log = logging.getLogger(__name__)

_SECONDS = 10.0
"""For the files, and for KnownHostsCommand."""
_MOST_PRINTED = 1 << 20
"""Bytes of KnownHostsCommand's answer."""
_MOST_NOTES = 20
_NOT_OF_ADDRESS = "is not the one that is known for the host's address, which CheckHostIP asks for"
_SALT = 20
"""Bytes of the salt of a hashed name."""
_KEY_TOKENS = frozenset("tKf")
"""Tokens of KnownHostsCommand that stand for the key that the host showed."""


@dataclass
class HostKeys:
    """The keys that a host may show, and those that it may not."""

    trusted: list[asyncssh.SSHKey] = field(default_factory=list)
    authorities: list[asyncssh.SSHKey] = field(default_factory=list)
    revoked: list[asyncssh.SSHKey] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Each file that was looked into, with what was wrong with it."""
    notes: list[str] = field(default_factory=list)
    """Lines that were passed over, by file and number."""
    known_by_port: bool = False
    """True if a plain key is known for the port; the name alone then counts for nothing."""
    lists: list[RevokedKeys] = field(default_factory=list)
    """What RevokedHostKeys names, for certificates."""
    of_address: list[asyncssh.SSHKey] = field(default_factory=list)
    """What known_hosts says of the address that was connected to, where CheckHostIP is to be followed."""

    def objection(self, shown: bytes, configuration: Configuration) -> str:
        """Return why ssh does not take the key or certificate *shown* by the host, where asyncssh would; empty if it does.

        asyncssh knows no CASignatureAlgorithms, no certificates in revocation lists, and no CheckHostIP.
        """
        certificate = HostCertificate.read(shown)
        if certificate is None:
            if self.of_address and all(key.public_data != shown for key in self.of_address):
                return f"Host key {_NOT_OF_ADDRESS}"
            return ""
        if any(listed.has_certificate(certificate) for listed in self.lists):
            return "Host certificate is revoked"
        if certificate.signed_with not in configuration.authority_algorithms:
            return f"Host certificate is signed with {certificate.signed_with}, which CASignatureAlgorithms leaves out"
        return ""

    def algorithms(self, configuration: Configuration, *, certificates: bool = True) -> list[str]:
        """Return the host key algorithms to offer: those of known keys first, as ssh does, then the others."""
        names = configuration.host_key_algorithms
        if not certificates:
            names = tuple(name for name in names if "-cert-" not in name)
        types = {key.get_algorithm() for key in self.trusted}
        types |= {"rsa-sha2-512", "rsa-sha2-256"} if "ssh-rsa" in types else set()
        if names and plain_algorithm(names[0]) in types:
            return list(names)  # ssh takes its list as it is where the best algorithm's key is known

        def is_known(name: str) -> bool:
            return ("-cert-" in name and bool(self.authorities)) or plain_algorithm(name) in types

        return [name for name in names if is_known(name)] + [name for name in names if not is_known(name)]

    def pattern_for(self, shown: bytes, configuration: Configuration) -> str:
        """Return the pattern by which the certificate *shown* is for the host, as OpenSSH takes them from 10.3 on, else empty."""
        certificate = HostCertificate.read(shown)
        name = configuration.host_key_alias or configuration.hostname
        if certificate is None or name in certificate.principals:
            return ""
        return next((each for each in certificate.principals if matches(name, each)), "")


async def host_keys_of(configuration: Configuration) -> HostKeys:
    """Return the keys by which the host of *configuration* may be known; raises SSHConfigInvalid and HostKeyRejected.

    Called before each login: a key that was just added counts at once.
    """
    identity = (configuration.host, *_names(configuration), configuration.user, configuration.known_hosts)
    keys = await _read_within(configuration, ("known_hosts", *identity))
    if configuration.known_hosts_command:
        lines = await _ask_command(configuration)
        _sort(configuration, [("KnownHostsCommand", lines)], keys)
    for path in configuration.revoked_host_keys:
        await _withdraw_revoked(configuration, path, keys)
    return keys


async def add_keys_of_address(configuration: Configuration, address: str, keys: HostKeys) -> None:
    """Put into *keys* what is known of the *address* that was connected to, where CheckHostIP asks for it, as ssh does.

    Raises SSHConfigInvalid. Not for this machine's own addresses, and not where the address is the name; behind a proxy none is
    known.
    """
    if (
        not configuration.check_host_ip
        or address == configuration.hostname
        or ipaddress.ip_address(address).is_loopback
    ):
        return
    identity = (address, configuration.host, configuration.known_hosts)
    of_address = await _read_within(configuration, ("known_hosts of address", *identity), address, keys.known_by_port)
    if configuration.known_hosts_command:
        lines = await _ask_command(configuration, address)
        _sort(configuration, [("KnownHostsCommand", lines)], of_address, address)
    keys.of_address = of_address.trusted


async def _read_within(
    configuration: Configuration, key: tuple[object, ...], address: str = "", by_port: bool = False
) -> HostKeys:
    try:
        return await within(aside((*key, by_port), lambda: _read(configuration, address, by_port)), _SECONDS)
    except asyncio.TimeoutError:
        raise SSHConfigInvalid(
            f"reading its known_hosts took longer than {_SECONDS:g} s",
            host=configuration.host,
            remedy=f"check the disks of {', '.join(map(str, configuration.known_hosts))}",
        ) from None


async def _withdraw_revoked(configuration: Configuration, path: Path, keys: HostKeys) -> None:
    """Take what a file of RevokedHostKeys names out of the trusted keys; one that can't be read trusts none, as with ssh."""
    try:
        revoked = await within(aside(("revoked", path), lambda: RevokedKeys.read(path)), _SECONDS)
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        # From Python 3.11 on a time-out is an OSError without a word.
        reason = getattr(error, "strerror", None) or str(error) or "it took too long"
        raise HostKeyRejected(
            f"RevokedHostKeys names {path}, which cannot be read ({reason})",
            host=configuration.host,
            remedy="make the file readable, or correct RevokedHostKeys in ssh_config",
        ) from error
    for known in (keys.trusted, keys.authorities):
        withdrawn = [key for key in known if revoked.has(key.public_data)]
        known[:] = [key for key in known if key not in withdrawn]
        keys.revoked += withdrawn
    keys.revoked += revoked.keys
    keys.lists.append(revoked)


# -- files ---------------------------------------------------------------------------------------------------------


def _read(configuration: Configuration, address: str = "", by_port: bool = False) -> HostKeys:
    keys = HostKeys(known_by_port=by_port)
    texts = []
    for path in configuration.known_hosts:
        try:
            text = path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            keys.files.append(f"{path} ({'missing' if missing else error.strerror or error})")
            continue
        keys.files.append(str(path))
        texts.append((str(path), text))
    _sort(configuration, texts, keys, address)
    return keys


def _sort(configuration: Configuration, texts: Iterable[tuple[str, str]], keys: HostKeys, address: str = "") -> None:
    """Put the keys that *texts* have for the host where they belong.

    Those for host and port come first; as with ssh, a key for the name alone counts for another port where no plain key is known
    for the port itself.
    """
    name, with_port = _names(configuration, address)
    lines = [(file, number, line) for file, text in texts for number, line in enumerate(text.split("\n"), 1)]
    exact = list(_matching(lines, with_port, keys.notes))
    loose = list(_matching(lines, name, [])) if name != with_port else []
    keys.known_by_port = keys.known_by_port or any(not marker for marker, _ in exact)
    for marker, key in [*exact, *(each for each in loose if each[0] or not keys.known_by_port)]:
        if marker == "@revoked":
            keys.revoked.append(key)
        elif marker == "@cert-authority":
            keys.authorities.append(key)
        elif not _is_short(key, configuration.smallest_rsa_key):
            keys.trusted.append(key)
        else:
            keys.notes.append(
                f"an RSA key of less than {configuration.smallest_rsa_key} bits is not accepted (RequiredRSASize)"
            )
    for listed in (keys.trusted, keys.authorities):
        listed[:] = [key for key in listed if key not in keys.revoked]


def _names(configuration: Configuration, address: str = "") -> tuple[str, str]:
    """Return the name to look up, and the one with the port where it is not SSH's own; an alias stands for both.

    With *address*, that is looked up in place of the name.
    """
    if configuration.host_key_alias and not address:
        return configuration.host_key_alias, configuration.host_key_alias
    name = address or configuration.hostname
    return name, name if configuration.port == 22 else f"[{name}]:{configuration.port}"


def _matching(
    lines: Iterable[tuple[str, int, str]], name: str, notes: list[str]
) -> Iterator[tuple[str, asyncssh.SSHKey]]:
    """Yield marker and key of each line for *name*; what is no entry is noted and passed over."""
    for file, number, raw in lines:
        line = raw.partition("\0")[0].lstrip(" \t")  # a line is a string of C's
        if not line.strip() or line.startswith("#"):
            continue
        try:
            marker = ""
            if line.startswith("@"):
                # As ssh: a marker ends with the first blank of its line, and with a tab only where there is none.
                marker, _, line = line.partition(" " if " " in line else "\t")
                line = line.lstrip(" \t")
                if marker not in ("@cert-authority", "@revoked"):
                    raise ValueError(f"the marker {marker[:40]!r} is unknown")
            names, rest = split_word(line)
            if not rest.strip() or rest.startswith("#"):
                raise ValueError("the line is cut off")
            if not _names_match(names, name):
                continue
            key, is_certificate = read_public_key(rest)
            if is_certificate and not marker:
                raise ValueError("its key is a certificate, which tells no host")
            yield marker, key
        except ValueError as error:
            if len(notes) < _MOST_NOTES:
                notes.append(f"{file} line {number} is passed over: {error}")


def _names_match(names: str, name: str) -> bool:
    """Return True if *names* of a line, hashed or patterns, mean *name*; raises ValueError for a hash that is none."""
    if names.startswith("|"):
        parts = names.split("|")
        if len(parts) != 4 or parts[1] != "1":
            raise ValueError("the hash of its name is unknown")
        salt = decode(parts[2])
        if salt is None or len(salt) != _SALT:
            raise ValueError("the hash of its name is broken")
        digest = hmac.new(salt, name.encode("utf-8", "surrogateescape"), hashlib.sha1).digest()
        return base64.b64encode(digest).decode("ascii") == parts[3]
    return matches_list(lower(name), lower(names))


def _is_short(key: asyncssh.SSHKey, smallest: int) -> bool:
    size = getattr(getattr(key, "pyca_key", None), "key_size", None)
    return key.get_algorithm() == "ssh-rsa" and isinstance(size, int) and size < smallest


# -- KnownHostsCommand ---------------------------------------------------------------------------------------------


async def _ask_command(configuration: Configuration, address: str = "") -> str:
    """Return what KnownHostsCommand prints for the host, or for its *address*; raises SSHConfigInvalid.

    It is run as ssh runs it, without a shell.
    """
    command, host = configuration.known_hosts_command, configuration.host

    def refused(cause: str) -> SSHConfigInvalid:
        return SSHConfigInvalid(
            f"KnownHostsCommand {cause}",
            host=host,
            remedy="correct it in ssh_config, or put the host's key into known_hosts",
        )

    if used := {mark for mark in re.findall(r"%(.)", command.replace("%%", "")) if mark in _KEY_TOKENS}:
        raise refused(f"asks for the key that the host shows (%{min(used)}), which is not supported")
    name = _names(configuration, address)[1]
    tokens = {**configuration.tokens, "H": name, "I": "ADDRESS" if address else "HOSTNAME"}
    try:
        # Not shlex.split, to which a backslash is an escape before every letter, and a `#` begins a comment.
        argv = [expand_variables(expand_tokens(word, tokens)) for word in split_words(command, comments=False)]
    except ValueError as error:  # Unexpandable and Invalid are
        raise refused(f"cannot be read ({error})") from error
    if not argv:
        raise refused("is empty")
    argv[0] = expand_tilde(argv[0])
    if not Path(argv[0]).is_absolute():
        raise refused(f"needs the whole path of its program, not {argv[0]}")
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise refused(f"cannot be run ({error.strerror}: {argv[0]})") from error
    assert process.stdout is not None
    try:
        printed = await within(_read_all(process.stdout), _SECONDS)
        code = await within(process.wait(), _SECONDS)
    except asyncio.TimeoutError:
        raise refused(f"took longer than {_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            end_group(process.pid)
            await process.wait()
    if code != 0:
        log.warning("%s: KnownHostsCommand ended with code %d", host, code)
        return ""
    return printed.decode("utf-8", "surrogateescape")


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    heard = b""
    while len(heard) < _MOST_PRINTED and (chunk := await reader.read(65536)):
        heard += chunk
    return heard
