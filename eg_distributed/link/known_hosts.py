"""Host keys: what known_hosts says of a host, read as OpenSSH reads it (hostfile.c, sshconnect.c), and what is revoked."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import os
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from eg_distributed.aside import aside
from eg_distributed.errors import HostKeyRejected, SSHConfigInvalid
from eg_distributed.link.deadlines import within

from .configuration import Configuration
from .configuration.tokens import expand_tilde, expand_tokens, expand_variables
from .configuration.words import lower, matches_list, split_words
from .public_keys import decode, read_public_key, split_word
from .revoked import RevokedKeys

__all__ = ["HostKeys", "host_keys_of", "plain_algorithm"]

log = logging.getLogger(__name__)

_SECONDS = 10.0
"""For the files, and for KnownHostsCommand."""
_MOST_PRINTED = 1 << 20
"""Bytes of KnownHostsCommand's answer."""
_MOST_NOTES = 20
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


def plain_algorithm(name: str) -> str:
    """Return the algorithm of a certificate's own key."""
    plain = name.replace("-cert-v01@openssh.com", "")
    return f"{plain}@openssh.com" if plain.startswith("sk-") and plain != name else plain


async def host_keys_of(configuration: Configuration) -> HostKeys:
    """Return the keys by which the host of *configuration* may be known; raises SSHConfigInvalid and HostKeyRejected.

    Called before each login: a key that was just added counts at once.
    """
    host = configuration.host
    identity = (host, *_names(configuration), configuration.user, configuration.known_hosts)
    try:
        keys = await within(aside(("known_hosts", *identity), lambda: _read(configuration)), _SECONDS)
    except asyncio.TimeoutError:
        raise SSHConfigInvalid(
            f"reading its known_hosts took longer than {_SECONDS:g} s",
            host=host,
            remedy=f"check the disks of {', '.join(map(str, configuration.known_hosts))}",
        ) from None
    if configuration.known_hosts_command:
        lines = await _ask_command(configuration)
        _sort(configuration, [("KnownHostsCommand", lines)], keys)
    for path in configuration.revoked_host_keys:
        await _withdraw_revoked(configuration, path, keys)
    return keys


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
    if (revoked.names_certificates or revoked.digests) and keys.authorities:
        # asyncssh shows us no certificate before it trusts it, so none can be looked up: plain keys only.
        keys.notes.append(f"{path} revokes certificates: host certificates are not accepted")
        keys.authorities.clear()


# -- files ---------------------------------------------------------------------------------------------------------


def _read(configuration: Configuration) -> HostKeys:
    keys = HostKeys()
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
    _sort(configuration, texts, keys)
    return keys


def _sort(configuration: Configuration, texts: Iterable[tuple[str, str]], keys: HostKeys) -> None:
    """Put the keys that *texts* have for the host where they belong.

    Those for host and port come first; as with ssh, a key for the name alone counts for another port where no plain key is known
    for the port itself.
    """
    name, with_port = _names(configuration)
    lines = [(file, number, line) for file, text in texts for number, line in enumerate(text.split("\n"), 1)]
    exact = list(_matching(lines, with_port, keys.notes))
    loose = list(_matching(lines, name, [])) if name != with_port else []
    is_known = any(not marker for marker, _ in exact)
    for marker, key in [*exact, *(each for each in loose if each[0] or not is_known)]:
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


def _names(configuration: Configuration) -> tuple[str, str]:
    """Return the name to look up, and the one with the port where it is not SSH's own; an alias stands for both."""
    if configuration.host_key_alias:
        return configuration.host_key_alias, configuration.host_key_alias
    name = configuration.hostname
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


async def _ask_command(configuration: Configuration) -> str:
    """Return what KnownHostsCommand prints for the host: run as ssh runs it, without a shell; raises SSHConfigInvalid."""
    command, host = configuration.known_hosts_command, configuration.host

    def refused(cause: str) -> SSHConfigInvalid:
        return SSHConfigInvalid(
            f"KnownHostsCommand {cause}",
            host=host,
            remedy="correct it in ssh_config, or put the host's key into known_hosts",
        )

    if used := {mark for mark in re.findall(r"%(.)", command.replace("%%", "")) if mark in _KEY_TOKENS}:
        raise refused(f"asks for the key that the host shows (%{min(used)}), which is not supported")
    name = _names(configuration)[1]
    tokens = {**configuration.tokens, "H": name, "I": "HOSTNAME"}
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
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
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
