"""The keys that a login offers: files and the agent's, in ssh's order; what can't be used is left out, and named."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
from asyncssh.public_key import CERT_TYPE_USER, decode_ssh_public_key

from eg_distributed.aside import aside
from eg_distributed.link.deadlines import within

from .configuration import Configuration
from .host_based import HostBased
from .public_keys import plain_algorithm

__all__ = ["Identities", "identities_of"]

log = logging.getLogger(__name__)

_SECONDS = 5.0
"""For the files, and for the agent's answer."""
_NO_ALGORITHM = b"none"
"""The name of no algorithm."""
_UNREADABLE = 0o077
"""Permission bits that ssh allows on no private key of the user's own."""


@dataclass
class Identities:
    """Key pairs in the order in which they are offered, and the words for them."""

    pairs: list[asyncssh.SSHKeyPair] = field(default_factory=list)
    offered: list[str] = field(default_factory=list)
    """What is offered, as a person would name it."""
    passed_over: list[str] = field(default_factory=list)
    """What ssh_config names and can't be used, with the reason."""
    agent: asyncssh.SSHAgentClient | None = None
    host_based: HostBased = field(default_factory=HostBased)
    """The gateway's own host key, for a host that lets in its users by it."""

    def close(self) -> None:
        """Close the connection to the agent; called once the login is over."""
        if self.agent is not None:
            self.agent.close()
            self.agent = None


@dataclass
class _File:
    """What one IdentityFile holds."""

    path: Path
    public: asyncssh.SSHKey | None = None
    private: asyncssh.SSHKey | None = None
    certificate: asyncssh.SSHCertificate | None = None
    trouble: str = ""


async def identities_of(configuration: Configuration) -> Identities:
    """Return the keys to offer for *configuration*; never raises for a file or an agent that can't be used.

    The caller closes what is returned. A key whose public half is all there is on disk is the agent's; so is an encrypted one.
    """
    found = Identities()
    if not configuration.public_key:
        found.passed_over.append("all keys (PubkeyAuthentication no)")
        return found
    if configuration.pkcs11_provider:
        found.passed_over.append(
            f"PKCS11Provider {configuration.pkcs11_provider} (give its keys to ssh-agent: ssh-add -s)"
        )
    try:
        files, certificates = await within(
            aside(
                ("identities", configuration.host, configuration.identities, configuration.certificates),
                lambda: _read_files(configuration, found.passed_over),
            ),
            _SECONDS,
        )
    except (asyncio.TimeoutError, OSError) as error:
        found.passed_over.append(f"all key files ({str(error) or f'reading them took longer than {_SECONDS:g} s'})")
        files, certificates = [], []
    of_agent = await _agents_keys(configuration, found)
    _put_in_order(configuration, files, certificates, of_agent, found)
    return found


def _put_in_order(
    configuration: Configuration,
    files: list[_File],
    certificates: list[asyncssh.SSHCertificate],
    of_agent: list[asyncssh.SSHKeyPair],
    found: Identities,
) -> None:
    """Fill `pairs` in ssh's order (pubkey_prepare in sshconnect2.c).

    Certificates of CertificateFile, the agent's keys that files name, its others, and what files have besides: each its key, then
    the certificate beside it.
    """
    of_agent = [pair for pair in of_agent if not _is_short(pair, configuration, found)]
    by_blob = {pair.public_data: pair for pair in of_agent}
    named = [file for file in files if file.public is not None]
    privates = {file.public.public_data: file.private for file in named if file.public and file.private}

    def offer(pair: asyncssh.SSHKeyPair, words: str) -> None:
        may_sign = _narrow_signatures(configuration, pair)
        if may_sign and all(pair.public_data != known.public_data for known in found.pairs):
            found.pairs.append(pair)
            found.offered.append(words)

    def certify(certificate: asyncssh.SSHCertificate, words: str) -> None:
        blob = certificate.key.public_data
        if (private := privates.get(blob)) is not None:
            for pair in asyncssh.load_keypairs([(private, certificate)])[:1]:
                offer(pair, words)
        elif blob in by_blob:
            pair = _fresh(by_blob[blob])
            pair.set_certificate(certificate)
            offer(pair, words)

    for certificate in certificates:
        certify(certificate, f"certificate {certificate.get_comment() or certificate.key.get_fingerprint()}")
    in_files = {file.certificate.public_data: file for file in files if file.certificate}
    in_files.update({file.public.public_data: file for file in named if file.public})
    for pair in sorted(of_agent, key=lambda pair: pair.public_data not in in_files):
        file = in_files.get(pair.public_data)
        if file is not None or not configuration.identities_only:
            offer(pair, f"{file.path} (by ssh-agent)" if file else f"ssh-agent's {pair.get_comment() or 'key'}")
    for file in files:
        if file.private is not None and file.public is not None:
            if file.public.public_data not in by_blob:
                for pair in asyncssh.load_keypairs([file.private]):
                    offer(pair, f"{file.path} ({file.public.get_fingerprint()})")
        elif file.trouble and (file.public is None or file.public.public_data not in by_blob):
            found.passed_over.append(f"{file.path} ({file.trouble})")
        if file.certificate is not None:
            certify(file.certificate, f"certificate of {file.path}")


def _is_short(pair: asyncssh.SSHKeyPair, configuration: Configuration, found: Identities) -> bool:
    """Return True for an RSA key of the agent's that RequiredRSASize does not let be offered, and say so."""
    with contextlib.suppress(ValueError):
        size = getattr(getattr(decode_ssh_public_key(pair.public_data), "pyca_key", None), "key_size", None)
        if pair.algorithm == b"ssh-rsa" and isinstance(size, int) and size < configuration.smallest_rsa_key:
            found.passed_over.append(
                f"ssh-agent's {pair.get_comment() or 'key'} (an RSA key of {size} bits, less than RequiredRSASize)"
            )
            return True
    return False


def _fresh(pair: asyncssh.SSHKeyPair) -> asyncssh.SSHKeyPair:
    """Return another pair for the same key: a certificate changes the pair that it is given to."""
    agent = pair._agent  # type: ignore[attr-defined]
    return type(pair)(agent, pair.algorithm, pair.public_data, pair.get_comment_bytes() or b"")  # type: ignore[call-arg,arg-type]


def _narrow_signatures(configuration: Configuration, pair: asyncssh.SSHKeyPair) -> bool:
    """Have *pair* sign as PubkeyAcceptedAlgorithms says, its first algorithm first, and return True if it may sign at all.

    asyncssh's own first one may be refused. Where ssh_config says nothing, the pair's others follow ssh's own.
    """
    is_certificate = b"-cert-v0" in pair.algorithm  # it has names of its own, and is not meant by those of its key
    wanted = [
        plain_algorithm(name).encode("ascii")
        for name in configuration.public_key_algorithms
        if ("-cert-v0" in name) == is_certificate
    ]
    ordered = [name for name in dict.fromkeys(wanted) if name in pair.sig_algorithms]
    if "pubkeyacceptedalgorithms" not in configuration.chosen:
        pair.sig_algorithms = [*ordered, *(name for name in pair.sig_algorithms if name not in ordered)]
        return True
    if not ordered:
        return False
    # For a host that does not say what it takes (server-sig-algs), asyncssh signs with the key's own algorithm, SHA-1 for RSA, if
    # the last one of these is among those of the connection. Rejected: the own one as the last, since hosts' keys may bring it.
    if plain_algorithm(pair.sig_algorithm.decode("ascii")).encode("ascii") not in ordered:
        ordered.append(_NO_ALGORITHM)
    pair.sig_algorithms = ordered
    return True


# -- files ---------------------------------------------------------------------------------------------------------


def _read_files(
    configuration: Configuration, passed_over: list[str]
) -> tuple[list[_File], list[asyncssh.SSHCertificate]]:
    files = [_read_file(path, configuration) for path in configuration.identities]
    certificates = []
    for path in configuration.certificates:
        try:
            certificate = _read_certificate(path)
        except (OSError, ValueError) as error:
            passed_over.append(f"{path} ({_reason(error)})")
            continue
        if _is_for_users(certificate):
            certificates.append(certificate)
        else:
            passed_over.append(f"{path} (a host's certificate)")
    return files, certificates


def _read_file(path: Path, configuration: Configuration) -> _File:
    """Return what *path* and the files beside it hold: the private key, else the public half in it or in `.pub`."""
    file = _File(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        file.trouble = _reason(error)
        data = b""
    if data:
        _take_private(file, data)
    if file.public is None:
        for public in (path, path.with_name(f"{path.name}.pub")):
            with contextlib.suppress(OSError, ValueError):
                file.public = asyncssh.read_public_key(str(public))
                break
    if file.public is not None:
        size = getattr(getattr(file.public, "pyca_key", None), "key_size", None)
        if file.public.get_algorithm() == "ssh-rsa" and isinstance(size, int) and size < configuration.smallest_rsa_key:
            return _File(path, trouble=f"an RSA key of {size} bits, less than RequiredRSASize")
        if file.private is None and not file.trouble:
            file.trouble = "only its public half is here, and ssh-agent does not have the key"
    if not configuration.certificates:
        file.certificate = _certificate_of(path)
    return file


def _take_private(file: _File, data: bytes) -> None:
    if b"PRIVATE KEY" not in data:
        return
    state = file.path.stat()
    if state.st_uid == os.getuid() and state.st_mode & _UNREADABLE:
        file.trouble = (
            f"its permissions {state.st_mode & 0o777:04o} are too open, ssh does not use it either: chmod 600"
        )
        return
    try:
        file.private = asyncssh.import_private_key(data)
    except ValueError as error:  # KeyImportError and KeyEncryptionError are
        encrypted = "assphrase" in str(error) or "ncrypt" in str(error)
        file.trouble = "encrypted: give it to ssh-agent" if encrypted else f"not a key that can be used: {error}"
        return
    if file.private.get_algorithm().startswith("sk-"):
        file.trouble = "a key of a security device: give it to ssh-agent"
        file.public, file.private = file.private.convert_to_public(), None
        return
    file.public = file.private.convert_to_public()


def _certificate_of(path: Path) -> asyncssh.SSHCertificate | None:
    """Return the certificate that lies beside a key; whose it is comes out when a key for it is looked for, as with ssh."""
    for name in dict.fromkeys((path.name, path.name.removesuffix(".pub"))):
        with contextlib.suppress(OSError, ValueError):
            certificate = _read_certificate(path.with_name(f"{name}-cert"))
            if _is_for_users(certificate):
                return certificate
    return None


def _is_for_users(certificate: asyncssh.SSHCertificate) -> bool:
    """Return True for a certificate that is for a user; ssh does not show those of hosts."""
    return getattr(certificate, "_cert_type", CERT_TYPE_USER) == CERT_TYPE_USER


def _read_certificate(path: Path) -> asyncssh.SSHCertificate:
    """Return what *path* holds, or the file of that name with `.pub` behind it, as ssh does; raises OSError and ValueError."""
    try:
        return asyncssh.read_certificate(str(path))
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            return asyncssh.read_certificate(f"{path}.pub")
        raise


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else f"not usable: {error}"


# -- the agent -----------------------------------------------------------------------------------------------------


async def _agents_keys(configuration: Configuration, found: Identities) -> list[asyncssh.SSHKeyPair]:
    if not configuration.identity_agent:
        return []
    client = asyncssh.SSHAgentClient(configuration.identity_agent)
    try:
        await within(client.connect(), _SECONDS)
        keys = list(await within(client.get_keys(), _SECONDS))
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        client.close()
        reason = _reason(error) if not isinstance(error, asyncio.TimeoutError) else "it does not answer"
        found.passed_over.append(f"ssh-agent at {configuration.identity_agent} ({reason})")
        return []
    except BaseException:  # cancellation included: the connection is nobody's yet
        client.close()
        raise
    found.agent = client
    return keys
