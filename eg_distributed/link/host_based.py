"""Logging in by the gateway's own host key (HostbasedAuthentication): ssh-keysign signs, as it does for ssh (sshconnect2.c)."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
from asyncssh.public_key import decode_ssh_certificate, decode_ssh_public_key

from eg_distributed.aside import aside
from eg_distributed.link.deadlines import within

from .certificates import read_string
from .configuration import Configuration
from .groups import end_group
from .public_keys import decode, plain_algorithm, split_word

__all__ = ["HostBased", "host_based_of"]

_SECONDS = 10.0
"""For ssh-keysign, which looks this machine's name up."""
_NAME_SECONDS = 5.0
_FOLDER = Path("/etc/ssh")
_KINDS = ("ecdsa", "ed25519", "rsa", "dsa")
"""Host keys in ssh's order; no other files are looked at."""
_HELPERS = tuple(
    Path(folder, "ssh-keysign")
    for folder in (
        *("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec", "/usr/local/libexec"),
        "/opt/local/libexec",
    )
)
"""Where systems have it; ssh itself knows one place alone, of which it does not tell."""
_VERSION = 2
_MOST_SAID = 300


@dataclass
class HostBased:
    """What a login by the gateway's host key uses, and why it can't."""

    pairs: list[asyncssh.SSHKeyPair] = field(default_factory=list)
    name: str = ""
    """This machine's name, with a dot behind it, as ssh-keysign wants it."""
    user: str = ""
    trouble: str = ""


async def host_based_of(configuration: Configuration, way: socket.socket | None) -> HostBased:
    """Return what `HostbasedAuthentication` has for a login over *way*; never raises for what is missing.

    *way* is the socket to the host, None behind a jump host. Called for each login, by `login`.
    """
    found = HostBased()
    if not configuration.host_based or (configuration.preferred and "hostbased" not in configuration.preferred):
        return found
    try:
        found.user = pwd.getpwuid(os.getuid()).pw_name  # ssh-keysign takes no other
    except KeyError:
        found.trouble = "the gateway's user has no name on this machine"
        return found
    try:
        blobs = await within(aside("host keys", _read_public_keys), _NAME_SECONDS)
        # A connected socket has an address, and that a name; anything else, such as a pipe, stands for the host's own.
        is_direct = way is not None and way.family in (socket.AF_INET, socket.AF_INET6)
        address = way.getsockname() if way is not None and is_direct else None
        name = await within(aside(("name of", address), lambda: _name_of(address)), _NAME_SECONDS)
    except (OSError, asyncio.TimeoutError) as error:
        found.trouble = f"this machine's host keys or its name cannot be read: {error}"
        return found
    helper = next((path for path in _HELPERS if path.exists()), None)
    if helper is None:
        found.trouble = "there is no ssh-keysign on the gateway"
    elif not blobs:
        found.trouble = f"no {_FOLDER}/ssh_host_*_key.pub on the gateway can be read"
    else:
        found.name = f"{name}."
        signer = _Signer(helper, way.fileno() if way is not None and is_direct else None, found)
        found.pairs = [_Pair(blob, algorithm, signer) for blob, algorithm in _chosen(blobs, configuration)]
        if not found.pairs:
            found.trouble = "HostbasedAcceptedAlgorithms leaves out all host keys of the gateway"
    return found


def _chosen(blobs: Sequence[bytes], configuration: Configuration) -> list[tuple[bytes, str]]:
    """Return each key with the first accepted algorithm that it can sign with, in the order of these."""
    left, chosen = list(blobs), []
    for algorithm in configuration.host_based_algorithms:
        kind = algorithm.replace("rsa-sha2-256", "ssh-rsa").replace("rsa-sha2-512", "ssh-rsa")
        for blob in [blob for blob in left if read_string(blob, 0).decode("ascii", "replace") == kind]:
            left.remove(blob)
            chosen.append((blob, algorithm))
    return chosen


def _read_public_keys() -> list[bytes]:
    """Return the certificates, then the keys, of this machine, as SSH encodes them."""
    found = []
    for end in ("_key-cert.pub", "_key.pub"):
        for kind in _KINDS:
            try:
                text = (_FOLDER / f"ssh_host_{kind}{end}").read_text("utf-8", "surrogateescape")
                blob = decode(split_word(split_word(text.strip())[1])[0]) or b""
                (decode_ssh_certificate if "cert" in end else decode_ssh_public_key)(blob)
            except (OSError, ValueError):  # most machines have some of them alone
                continue
            found.append(blob)
    return found


def _name_of(address: tuple[object, ...] | None) -> str:
    """Return the name that ssh and ssh-keysign give to this end of a connection (get_local_name in canohost.c)."""
    if address is not None:
        try:
            return socket.getnameinfo(address, socket.NI_NAMEREQD)[0]  # type: ignore[arg-type]
        except OSError:  # the address has no name
            pass
    return socket.gethostname()


class _Signer:
    """Runs ssh-keysign; once it has refused, for that login no more."""

    def __init__(self, helper: Path, descriptor: int | None, found: HostBased) -> None:
        self._helper = helper
        self._descriptor = descriptor
        self._found = found

    async def sign(self, data: bytes) -> bytes:
        """Return the signature of *data*; raises ValueError, by which asyncssh goes on with the next way to log in."""
        if not self._found.trouble:
            try:
                return await self._ask(data)
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                reason = str(error) or f"it took longer than {_SECONDS:g} s"
                self._found.trouble = f"{self._helper} did not sign: {reason}"
        raise ValueError(self._found.trouble)

    async def _ask(self, data: bytes) -> bytes:
        # It reads the name of this machine from the connection; /dev/null has none, as the pipe of a ProxyCommand.
        null = os.open(os.devnull, os.O_RDWR)
        try:
            descriptor = null if self._descriptor is None else self._descriptor
            process = await asyncio.create_subprocess_exec(
                self._helper,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(descriptor,),
                start_new_session=True,
            )
        finally:
            os.close(null)
        request = bytes([_VERSION]) + descriptor.to_bytes(4, "big") + _string(data)
        try:
            answer, complaint = await within(process.communicate(_string(request)), _SECONDS)
        finally:
            if process.returncode is None:
                end_group(process.pid)
                await process.wait()
        if process.returncode:
            said = complaint.decode("utf-8", "replace").replace("\r", "").strip().splitlines()
            raise ValueError(said[-1][-_MOST_SAID:] if said else f"it ended with code {process.returncode}")
        reply = read_string(answer, 0)
        if reply[:1] != bytes([_VERSION]):
            raise ValueError("its answer is of another version")
        return read_string(reply, 1)


class _Pair(asyncssh.SSHKeyPair):
    """A host key of this machine whose private half ssh-keysign alone can read."""

    _key_type = "keysign"

    def __init__(self, blob: bytes, algorithm: str, signer: _Signer) -> None:
        name, signature = algorithm.encode("ascii"), plain_algorithm(algorithm).encode("ascii")
        super().__init__(name, signature, (signature,), (name,), blob, None)
        self._signer = signer

    def set_sig_algorithm(self, sig_algorithm: bytes) -> None:
        """Keep the algorithm that HostbasedAcceptedAlgorithms chose."""

    async def sign_async(self, data: bytes) -> bytes:
        """Return the signature of *data*; raises ValueError. asyncssh calls it in place of `sign`."""
        return await self._signer.sign(data)


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
