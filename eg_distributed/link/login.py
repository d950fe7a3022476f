"""Logging in to a host, through whatever ssh_config puts in between, and what each failure of a login means."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
import re
import socket
from typing import Any

import asyncssh

from eg_distributed.errors import HostError, HostKeyRejected, HostUnreachable, LoginRefused, SSHConfigInvalid
from eg_distributed.link.deadlines import within
from eg_distributed.settings import Distributed

from .configuration import Configuration, Hop, configuration_of
from .configuration.algorithms import known, sayable
from .dial import dial, look_up
from .host_based import HostBased, host_based_of
from .identities import Identities, identities_of
from .known_hosts import HostKeys, add_keys_of_address, host_keys_of
from .packets import leave_out_needless
from .proxies import ProxyProcess
from .public_keys import plain_algorithm
from .way import BANNER, CONNECTING, KEYS, Progress

__all__ = ["Progress", "connect_seconds", "log_in"]

log = logging.getLogger(__name__)

_LOOK = 0.05
"""Seconds between two looks at how far a login has come; asyncssh tells nobody that sshd's banner has arrived."""
_NAME, _LOGIN = "looking the name up", "logging in"
_MOST_HOPS = 16
"""Jump hosts in a row; ssh has no limit."""
_SSH_PORT = 22


class _CertificateUnknown(Exception):
    """The host showed a certificate whose authority is unknown; it may have a plain key that is known."""


def connect_seconds(settings: Distributed, configuration: Configuration | None) -> float:
    """Return the seconds for TCP and banner: the setting, else ssh_config's ConnectTimeout, else five."""
    said = configuration.connect_timeout if configuration and not settings.connect_timeout else 0
    return said or settings.connect_seconds()


async def log_in(host: str, settings: Distributed, progress: Progress | None = None) -> asyncssh.SSHClientConnection:
    """Return an authenticated connection; raises HostError. Called by `connect`, and by `doctor`.

    Deadlines: the connect timeout for the name, for each address, and for sshd's first words, at the first address that takes a
    connection (ssh does not go on to another one either); the login timeout for all that comes after these, since a host that
    answers and takes its time is not dead. A connection that sshd drops unheard (MaxStartups) is tried again for as long as the
    connect timeout lasts. Cancellation closes what was opened.
    """
    progress = progress or Progress()
    loop = asyncio.get_running_loop()
    began = loop.time()
    configuration = await configuration_of(host, settings)
    progress.configuration = configuration
    itself = Hop(host, "" if settings.gss else settings.user, settings.port)
    deadline = began + connect_seconds(settings, configuration)
    while True:
        try:
            return await _log_in_through(configuration, settings, progress, (itself,))
        except (asyncssh.ConnectionLost, ConnectionResetError) as error:
            if deadline - loop.time() < 1:
                raise _login_error(error, configuration, settings, progress) from error
            await asyncio.sleep(random.uniform(0.1, 0.5))
            progress.answered = False


async def _log_in_through(
    configuration: Configuration,
    settings: Distributed,
    progress: Progress,
    waiting: tuple[Hop, ...],
    jump: asyncssh.SSHClientConnection | None = None,
) -> asyncssh.SSHClientConnection:
    """Log in by the way that *configuration* names, or through *jump*; *waiting* are the hosts that wait for it, itself the last.

    *jump* is closed with the connection, or with the failure.
    Raises HostError, and ConnectionLost or ConnectionResetError for a connection that was dropped and may be tried again.
    """
    host = configuration.host
    way: ProxyProcess | asyncssh.SSHClientConnection | None = None
    given: dict[str, Any]
    keys: HostKeys | None = None
    identities: Identities | None = None
    is_jump = len(waiting) > 1
    try:
        keys = await host_keys_of(configuration)
        for note in (*configuration.notes, *keys.notes):
            log.log(logging.DEBUG if is_jump else logging.INFO, "%s: %s", host, note)
        identities = await identities_of(configuration)
        for certificates in (True, False):
            try:
                if jump is not None:
                    progress.enter(CONNECTING)
                    way, given = jump, {"tunnel": jump, "host": configuration.hostname}
                else:
                    way, given = await _open_way(configuration, settings, progress, waiting)
                if way is None:
                    await _look_at_address(configuration, keys, given["sock"])
                connection = await _shake_hands(
                    configuration, settings, keys, identities, progress, given, certificates, is_jump
                )
                break
            except _CertificateUnknown:
                # As ssh does: a host whose certificate is of no known authority is asked for its plain key.
                if way is not None and way is not jump:
                    way.abort()
                    way = None
    except BaseException as error:  # cancellation included: no connection, proxy or agent may be left behind
        words = ""
        way = way or jump
        try:
            if isinstance(way, ProxyProcess) and not isinstance(error, asyncio.CancelledError):
                words = await way.last_words()
        finally:
            if way is not None:
                way.abort()
        if isinstance(error, HostError) or not isinstance(error, Exception):
            raise
        # Only what was dropped unheard is tried again: a login that was cut off after its keys were sent would be repeated a
        # dozen times, and count as that many refusals.
        if isinstance(error, (asyncssh.ConnectionLost, ConnectionResetError)) and not words and not progress.answered:
            raise
        if isinstance(error, (asyncssh.Error, OSError, asyncio.TimeoutError, ValueError)):
            raise _login_error(error, configuration, settings, progress, keys, identities, words) from error
        raise
    finally:
        if identities is not None:
            identities.close()
    if way is not None:
        connection.set_tunnel(way)  # it goes with the connection
        if connection.is_closed():  # already, and so too early for that
            way.abort()
    return connection


async def _open_way(
    configuration: Configuration, settings: Distributed, progress: Progress, waiting: tuple[Hop, ...]
) -> tuple[ProxyProcess | asyncssh.SSHClientConnection | None, dict[str, Any]]:
    """Return what has to be closed with the connection, and asyncssh's arguments for the way: a socket or a jump host."""
    seconds = connect_seconds(settings, configuration)
    if configuration.jumps:
        _refuse_loop(configuration, waiting)
        jump = await _jump(configuration.jumps, settings, progress, waiting)
        progress.enter(CONNECTING)
        return jump, {"tunnel": jump, "host": configuration.hostname}
    if configuration.proxy_command:
        progress.enter(CONNECTING)
        proxy = await ProxyProcess.start(configuration.proxy_command, passes_socket=configuration.proxy_passes_socket)
        try:
            return proxy, {"sock": await within(proxy.connected(), seconds)}
        except BaseException as error:  # cancellation included: it is nobody's yet
            try:
                if isinstance(error, ConnectionResetError) and (words := await proxy.last_words()):
                    raise _proxy_error(configuration, words) from error
            finally:
                proxy.close()
            raise
    progress.enter(_NAME)
    addresses = await look_up(configuration.hostname, configuration.port, configuration.family, seconds)
    progress.enter(CONNECTING)
    return None, {"sock": await dial(addresses, seconds, configuration.bind_address, configuration.bind_interface)}


def _refuse_loop(configuration: Configuration, waiting: tuple[Hop, ...]) -> None:
    """Raise SSHConfigInvalid where the jump hosts of *configuration* lead back to one that waits for them, the last of *waiting*.

    ssh refuses a host that is its own jump host ("jumphost loop via"), by the name and port that it would connect to, and goes
    through any other circle for ever. Not by the name alone: as another user, ssh_config may know another way to a host.
    """
    first, last = configuration.jumps[0], configuration.jumps[-1]  # those between are reached as the chain says
    own = (configuration.hostname, configuration.port, configuration.user)
    if first not in waiting and (last.host, last.port or _SSH_PORT, last.user or configuration.user) != own:
        if len(waiting) <= _MOST_HOPS:
            return
        cause = f"more than {_MOST_HOPS} jump hosts stand in a row"
    else:
        cause = "its jump hosts lead back to each other"
    way = [*(hop.host for hop in waiting), first.host if first in waiting else last.host]
    raise SSHConfigInvalid(
        f"{cause}: {', '.join(way)}",
        host=waiting[0].host,
        remedy=f"correct ProxyJump in ssh_config; before a `Host *` with a jump host there has to be `Host {way[-1]}` with "
        "`ProxyJump none`",
    )


async def _look_at_address(configuration: Configuration, keys: HostKeys, way: socket.socket) -> None:
    """Find out what is known of the address at the other end of *way*; closes it where that fails."""
    try:
        await add_keys_of_address(configuration, str(way.getpeername()[0]), keys)
    except BaseException:  # cancellation included: it is nobody's yet
        way.close()
        raise


async def _jump(
    hops: tuple[Hop, ...], settings: Distributed, progress: Progress, waiting: tuple[Hop, ...]
) -> asyncssh.SSHClientConnection:
    """Return a connection to the last of *hops*, each reached through the one before it.

    asyncssh could follow ProxyJump by itself, but leaves the connection to the jump host open whenever an attempt is given up in
    time, and jumps for ever where jump hosts name each other.
    """
    connection: asyncssh.SSHClientConnection | None = None
    for hop in hops:
        progress.hop = inner = Progress()
        progress.phase = f"logging in to the jump host {hop.host}"
        try:
            found = await configuration_of(hop.host, settings, hop)
            if connection is not None:  # the chain says how this one is reached, whatever its own block says
                found = dataclasses.replace(found, jumps=(), proxy_command="")
                connection = await _log_in_through(found, settings, inner, (*waiting, hop), connection)
            else:
                connection = await _log_in_through(found, settings, inner, (*waiting, hop))
        except BaseException as error:  # cancellation included: the hop before it may stand already
            if connection is not None:
                connection.abort()
            if not isinstance(error, HostError):  # ConnectionLost, for one: tried again, as with any host
                raise
            if isinstance(error, SSHConfigInvalid) and error.host == waiting[0].host:  # a circle is no hop's fault
                raise
            raise HostUnreachable(
                f"its jump host {hop.host} cannot be used: {error.cause}", host=waiting[0].host, remedy=error.remedy
            ) from error
    progress.hop = None
    assert connection is not None
    return connection


# -- the handshake -------------------------------------------------------------------------------------------------


class _Witness(asyncssh.SSHClient):
    """Knows the connection before asyncssh's connect returns it, and has a say in whether the host's key is taken."""

    connection: asyncssh.SSHClientConnection | None = None
    examined = False
    """True once asyncssh has asked for the host's key to be looked at."""

    def __init__(self, configuration: Configuration, keys: HostKeys) -> None:
        self._configuration = configuration
        self._keys = keys

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn
        leave_out_needless(conn)
        take = conn.validate_server_host_key

        def examine(shown: bytes) -> asyncssh.SSHKey:
            self.examined = True
            try:
                objection = self._keys.objection(shown, self._configuration)
            except ValueError as error:
                objection = f"Host certificate cannot be read: {error}"
            if objection:
                raise asyncssh.HostKeyNotVerifiable(objection)
            if pattern := self._keys.pattern_for(shown, self._configuration):
                # asyncssh looks for the name itself among those of the certificate, and not for a pattern.
                setattr(conn, "_host_key_alias", pattern)  # noqa: B010
            return take(shown)

        # asyncssh has no hook that sees a certificate; this method is the one that its key exchanges ask. A release that asks
        # another one is noticed by `examined`.
        setattr(conn, "validate_server_host_key", examine)  # noqa: B010 - a method is no attribute to mypy


async def _shake_hands(
    configuration: Configuration,
    settings: Distributed,
    keys: HostKeys,
    identities: Identities,
    progress: Progress,
    given: dict[str, Any],
    certificates: bool,
    is_jump: bool,
) -> asyncssh.SSHClientConnection:
    """Speak SSH over the way of *given*, up to the end of the login; raises what asyncssh raises, and asyncio.TimeoutError.

    Not by asyncio.wait_for: up to Python 3.11 it may take a result in place of a cancellation that comes in the same moment.
    asyncssh uses it as well, so an attempt can end with a connection after it was cancelled, and that one has to be closed.
    """
    witness = _Witness(configuration, keys)
    try:
        identities.host_based = await host_based_of(configuration, given.get("sock"))
        options = _options(configuration, settings, keys, identities, certificates, is_jump)
    except BaseException:  # whatever it is, the way is nobody's yet
        if (way := given.get("sock")) is not None:
            way.close()
        raise
    if "sock" in given:
        progress.enter(BANNER)
    attempt = asyncio.ensure_future(asyncssh.connect(client_factory=lambda: witness, **{**options, **given}))
    try:
        await _watch(attempt, witness, settings, configuration, progress)
        connection = attempt.result()
        # A key exchange by GSS shows no key: Kerberos has told the host.
        by_kerberos = options["gss_kex"] and connection.get_server_host_key() is None
        if not witness.examined and not by_kerberos:
            raise HostKeyRejected(
                f"asyncssh {asyncssh.__version__} did not let the host's key be looked at: it may be revoked",
                host=configuration.host,
                remedy="install an asyncssh that this release of eg_distributed works with (2.24 does)",
            )
        return connection
    except BaseException as error:  # cancellation included
        while not attempt.done():
            attempt.cancel()
            await asyncio.wait({attempt}, timeout=1.0)
        if not attempt.cancelled() and attempt.exception() is None:
            attempt.result().abort()
        if (way := given.get("sock")) is not None:
            way.close()  # where the attempt ended before asyncssh had taken it
        if getattr(witness.connection, "_server_version", None):
            progress.answered = True  # it may have answered, and cut us off, between two looks
        # As ssh, which takes a certificate that it can't use for its plain key; one that is revoked it does not.
        is_final = any(words in str(error) for words in ("revoked", "Host key is not trusted", "CheckHostIP"))
        if isinstance(error, asyncssh.HostKeyNotVerifiable) and certificates and keys.trusted and not is_final:
            raise _CertificateUnknown from error
        raise


async def _watch(
    attempt: asyncio.Task[asyncssh.SSHClientConnection],
    witness: _Witness,
    settings: Distributed,
    configuration: Configuration,
    progress: Progress,
) -> None:
    """Wait for *attempt*, with the deadline of each phase; raises asyncio.TimeoutError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + connect_seconds(settings, configuration)
    behind_jump = progress.phase == CONNECTING
    while not attempt.done():
        if loop.time() >= deadline:
            raise asyncio.TimeoutError
        await asyncio.wait({attempt}, timeout=min(_LOOK, max(deadline - loop.time(), 0.001)))
        connection = witness.connection
        if connection is None:
            continue
        if behind_jump and progress.phase == CONNECTING:
            progress.enter(BANNER)
        # Not by get_extra_info: behind a jump host that has the jump host's own version.
        if progress.phase == BANNER and getattr(connection, "_server_version", None):
            progress.enter(KEYS)
            progress.answered = True
            deadline = loop.time() + settings.login_timeout
        if progress.phase == KEYS and connection.get_server_host_key() is not None:
            progress.enter(_LOGIN)


def _options(
    configuration: Configuration,
    settings: Distributed,
    keys: HostKeys,
    identities: Identities,
    certificates: bool,
    is_jump: bool,
) -> dict[str, Any]:
    """Return asyncssh's arguments, all of them explicit: it reads no file by itself.

    The hosts' password is for hosts: a jump host (*is_jump*) is none of theirs, and may be another's.
    """
    kerberos = settings.gss or configuration.kerberos
    may_send = bool(settings.password) and not settings.gss and not is_jump and configuration.password
    password = settings.password if may_send else None
    options: dict[str, Any] = {
        "config": None,
        "host": configuration.hostname,
        "port": configuration.port,
        "username": configuration.user,
        "password": password,
        "password_auth": password is not None,
        "kbdint_auth": password is not None and configuration.keyboard,
        "public_key_auth": bool(identities.pairs),
        "client_keys": identities.pairs or None,
        "agent_path": None,
        "gss_auth": kerberos,
        "gss_kex": kerberos,
        "gss_delegate_creds": configuration.kerberos_delegation,
        "host_based_auth": bool(identities.host_based.pairs),
        # Not its own way to ssh-keysign, which takes the first algorithm of a key alone, and knows no name behind a proxy.
        "client_host_keysign": None,
        "client_host_keys": identities.host_based.pairs or None,
        "client_host": identities.host_based.name or None,
        "client_username": identities.host_based.user or configuration.user,
        "known_hosts": (keys.trusted, keys.authorities, keys.revoked),
        "host_key_alias": configuration.host_key_alias or None,
        "server_host_key_algs": keys.algorithms(configuration, certificates=certificates),
        "x509_trusted_certs": None,
        "x509_trusted_cert_paths": [],
        "encryption_algs": list(configuration.ciphers),
        "compression_algs": ["zlib@openssh.com", "none"] if configuration.compression else ["none"],
        "tcp_keepalive": configuration.tcp_keepalive,
        "keepalive_interval": settings.keepalive_interval,
        "keepalive_count_max": settings.keepalive_count,
        # Both phases have deadlines of ours, since asyncssh's can't be told apart.
        "connect_timeout": None,
        "login_timeout": 0,
        "tunnel": None,
        "proxy_command": None,
        "send_env": list(configuration.send_env),
        "env": configuration.set_env,
        "request_pty": False,
    }
    # Where ssh_config says nothing, key exchanges and MACs are ssh's own: asyncssh would take some that ssh no longer does.
    options["kex_algs"], options["mac_algs"] = list(configuration.key_exchanges), list(configuration.macs)
    if "pubkeyacceptedalgorithms" in configuration.chosen:
        # A certificate is signed with as its key is; whether it may be shown was decided with the others.
        allowed = [*configuration.public_key_algorithms]
        if identities.host_based.pairs:  # one list for both; a user's key was narrowed to what it may sign with before
            allowed += known("hostbasedacceptedalgorithms", configuration.host_based_algorithms)
        options["signature_algs"] = list(dict.fromkeys(plain_algorithm(name) for name in allowed))
    for keyword, names in (
        ("Ciphers", configuration.ciphers),
        ("HostKeyAlgorithms", configuration.host_key_algorithms),
        ("KexAlgorithms", configuration.key_exchanges),
    ):
        if not names:
            raise SSHConfigInvalid(
                f"{keyword} of ssh_config leaves nothing that the gateway's SSH library (asyncssh) has",
                host=configuration.host,
                remedy=f"add another one to {keyword}",
            )
    if configuration.preferred:
        options["preferred_auth"] = list(configuration.preferred)
    if configuration.rekey_bytes:
        options["rekey_bytes"] = configuration.rekey_bytes
    if configuration.rekey_seconds:
        options["rekey_seconds"] = configuration.rekey_seconds
    return options


# -- what a failure means ------------------------------------------------------------------------------------------


def _login_error(
    error: Exception,
    configuration: Configuration,
    settings: Distributed,
    progress: Progress,
    keys: HostKeys | None = None,
    identities: Identities | None = None,
    proxy_words: str = "",
) -> HostError:
    """Say which of the many ways to fail a login this is."""
    host = configuration.host
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return _host_key_error(error, configuration, keys)
    if isinstance(error, asyncssh.PermissionDenied) or "Too many authentication failures" in str(error):
        return _refusal(error, configuration, settings, identities)
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return HostUnreachable(
            f"the SSH handshake failed ({error.reason})", host=host, remedy=_algorithm_remedy(str(error), configuration)
        )
    if proxy_words and not progress.answered:
        return _proxy_error(configuration, proxy_words)
    if isinstance(error, asyncssh.Error):
        return HostUnreachable(
            f"the SSH handshake failed ({error.reason})", host=host, remedy="check sshd on the host and its log"
        )
    if isinstance(error, asyncio.TimeoutError):
        return _too_late(configuration, settings, progress)
    if isinstance(error, socket.gaierror):
        return HostUnreachable(
            f"its name does not resolve ({error.strerror})"
            + (f": {configuration.hostname}" if configuration.hostname != host.lower() else ""),
            host=host,
            remedy="check remote_hosts, DNS and /etc/hosts",
        )
    if isinstance(error, ValueError):
        return SSHConfigInvalid(
            f"ssh_config cannot be used ({error})",
            host=host,
            remedy=f"compare with `ssh -G {host}`, and correct ssh_config",
        )
    # asyncio's own text is "Connect call failed" and hides what the system said.
    cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return HostUnreachable(
        f"cannot connect ({cause})", host=host, remedy="check that sshd runs there and its port is open"
    )


def _proxy_error(configuration: Configuration, words: str) -> HostUnreachable:
    return HostUnreachable(
        f"its ProxyCommand {words} ({configuration.proxy_command})",
        host=configuration.host,
        remedy="run that line in a shell of the gateway's user, and correct ssh_config",
    )


def _too_late(configuration: Configuration, settings: Distributed, progress: Progress) -> HostUnreachable:
    done, seconds = progress.say(), connect_seconds(settings, configuration)
    before = f"{done}; " if done else ""
    if progress.answered:
        return HostUnreachable(
            f"the login was not over after {settings.login_timeout:g} s: {before}it was {progress.phase}",
            host=configuration.host,
            remedy="see why logins take so long there (PAM, DNS, a home that hangs), or raise Distributed.login_timeout",
        )
    return HostUnreachable(
        f"no SSH login: {before}no answer within {seconds:g} s while {progress.phase}",
        host=configuration.host,
        remedy="check that the host is up and not overloaded, and that nothing drops packets to its SSH port; "
        "ConnectTimeout in ssh_config, or Distributed.connect_timeout, gives it longer",
    )


def _host_key_error(
    error: asyncssh.HostKeyNotVerifiable, configuration: Configuration, keys: HostKeys | None
) -> HostKeyRejected:
    """Say which files were looked into, and which one to mend."""
    files = keys.files if keys else []
    file = next(
        (name for name in files if "(" not in name), files[0].partition(" (")[0] if files else "~/.ssh/known_hosts"
    )
    looked = f"; looked into: {', '.join(files)}" if files else "; ssh_config names no file of known hosts"
    notes = f"; {'; '.join(keys.notes[:3])}" if keys and keys.notes else ""
    if configuration.lenient:
        notes += f"; {' and '.join(configuration.lenient)} of ssh_config cannot change that"
    return HostKeyRejected(
        f"its SSH host key is not trusted ({error.reason}{looked}{notes})",
        host=configuration.host,
        remedy=f"compare the host's fingerprint, then put its key into {file} on the gateway; if the host was reinstalled, "
        "remove the old key there",
    )


def _refusal(
    error: Exception, configuration: Configuration, settings: Distributed, identities: Identities | None
) -> LoginRefused:
    offered = list(identities.offered) if identities else []
    offered += ["password (EG_REMOTE_PWD)"] * bool(settings.password)
    offered += ["Kerberos"] * (settings.gss or (configuration.kerberos and _has_kerberos()))
    host_based = identities.host_based if identities else HostBased()
    passed = list(identities.passed_over) if identities else []
    if host_based.trouble:
        passed.append(f"this machine's host key ({host_based.trouble})")
    elif host_based.pairs:
        offered.append(f"this machine's host key, as {host_based.user} of {host_based.name.rstrip('.')}")
    left_out = f"; not used: {', '.join(passed[:8])}" if passed else ""
    many = "Too many" in str(error)
    return LoginRefused(
        f"it refused to log in {configuration.user}; offered: {', '.join(offered[:8]) or 'nothing'}{left_out} "
        f"({getattr(error, 'reason', error)})",
        host=configuration.host,
        user=configuration.user,
        remedy="set IdentitiesOnly and IdentityFile in ssh_config, so that fewer keys are offered"
        if many
        else "put the gateway's public key into ~/.ssh/authorized_keys of that user on the host, or correct EG_REMOTE_USER",
    )


def _has_kerberos() -> bool:
    try:
        import gssapi  # type: ignore[import-not-found]  # noqa: F401 - an extra of asyncssh's
    except ImportError:
        return False
    return True


_REMEDIES = {"encryption": "Ciphers", "key exchange": "KexAlgorithms", "MAC": "MACs", "host key": "HostKeyAlgorithms"}
_DISAGREEMENT = re.compile(r"matching (.+) algorithm found, sent .* and received (\S*)")


def _algorithm_remedy(text: str, configuration: Configuration) -> str:
    """Return the line of ssh_config that would agree with the host, out of asyncssh's `sent …, received …`."""
    found = _DISAGREEMENT.search(text)
    kind, theirs = (found[1], found[2].split(",")) if found else ("", [])
    below = f"below `Host {configuration.host}` in ssh_config"
    if kind == "compression" and "zlib@openssh.com" in theirs:
        return f"write `Compression yes` {below}: the host takes nothing else"
    if (keyword := _REMEDIES.get(kind, "")) and (first := sayable(keyword.lower(), theirs)[:1]):
        return f"write `{keyword} +{first[0]}` {below}, if that algorithm is to be trusted"
    if kind:
        return f"the gateway's SSH library (asyncssh) has none of the host's algorithms for {kind}: allow another there"
    return "check sshd on the host and its log"
