"""Logging in to a host: asyncssh's options, jump hosts, host keys, and what each failure of a login means."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import socket
from pathlib import Path
from typing import Any

import asyncssh

from eg_distributed.errors import HostError, HostKeyRejected, HostUnreachable, LoginRefused
from eg_distributed.settings import Distributed

_CIPHERS = (
    "aes256-gcm@openssh.com",
    "aes128-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
)
"""AES-GCM first: twice the throughput of asyncssh's own first choice, and it all runs on one thread."""


async def log_in(host: str, settings: Distributed) -> asyncssh.SSHClientConnection:
    """Return an authenticated connection, within `connect_timeout`; raises HostError. Called by `ssh.connect`.

    A connection that sshd drops unheard (MaxStartups) is tried again in time.
    """
    deadline = asyncio.get_running_loop().time() + settings.connect_timeout
    while True:
        remaining = deadline - asyncio.get_running_loop().time()
        try:
            return await _connect_within(max(remaining, 0.1), host, settings)
        except (asyncssh.ConnectionLost, ConnectionResetError) as error:
            if deadline - asyncio.get_running_loop().time() < 1:
                raise _login_error(error, host, settings) from error
            await asyncio.sleep(random.uniform(0.1, 0.5))
        except HostError:
            raise
        except (asyncssh.Error, OSError, asyncio.TimeoutError, ValueError) as error:
            raise _login_error(error, host, settings) from error


async def _connect_within(seconds: float, host: str, settings: Distributed) -> asyncssh.SSHClientConnection:
    """Return a connection that is made within *seconds*; raises asyncio.TimeoutError, and what the attempt raises.

    Not by asyncio.wait_for: up to Python 3.11 it may take a result in place of a cancellation that comes in the same moment.
    asyncssh uses it as well, so an attempt can end with a connection after it was cancelled, and that one has to be closed.
    """
    attempt = asyncio.ensure_future(_connect_ssh(host, settings))
    try:
        done, _ = await asyncio.wait({attempt}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        return attempt.result()
    except BaseException:  # cancellation included
        while not attempt.done():
            attempt.cancel()
            await asyncio.wait({attempt}, timeout=1.0)
        if not attempt.cancelled() and attempt.exception() is None:
            attempt.result().abort()
        raise


async def _connect_ssh(host: str, settings: Distributed) -> asyncssh.SSHClientConnection:
    given: dict[str, Any] = {}  # for the host alone, and for none of its jump hosts
    if settings.user and not settings.gss:
        given["username"] = settings.user
    if settings.port:
        given["port"] = settings.port
    if settings.password and not settings.gss:
        given["password"] = settings.password
    return await _connect_through(host, settings, given, ())


def _options(settings: Distributed) -> dict[str, Any]:
    """Return asyncssh's options that hosts and jump hosts have in common."""
    options: dict[str, Any] = {
        "encryption_algs": list(_CIPHERS),
        "keepalive_interval": settings.keepalive_interval,
        "keepalive_count_max": settings.keepalive_count,
        "connect_timeout": settings.connect_timeout,
        "login_timeout": settings.connect_timeout,
    }
    if settings.gss:
        options["gss_auth"] = True
    if settings.ssh_config:
        options["config"] = [str(Path(settings.ssh_config).expanduser())]
    return options


async def _connect_through(
    host: str,
    settings: Distributed,
    given: dict[str, Any],
    behind: tuple[str, ...],
    jump: asyncssh.SSHClientConnection | None = None,
) -> asyncssh.SSHClientConnection:
    """Connect to *host* through *jump*, or through the jump hosts that ssh_config names for it.

    *given* are options of this host alone; *behind* are the hosts that wait for this one. asyncssh could follow ProxyJump by
    itself, but leaves the connection to the jump host open whenever an attempt is given up in time, and jumps for ever where
    `Host *` names a jump host.
    """
    options = {**_options(settings), **given}
    loop = asyncio.get_running_loop()
    try:
        read = functools.partial(asyncssh.SSHClientConnectionOptions, host=host, **options)
        found = await loop.run_in_executor(None, read)  # files, on a home that may be slow
        if found.known_hosts is None:  # `UserKnownHostsFile none`, by which asyncssh means not to look at keys at all
            options["known_hosts"] = []
        hops = _parse_hops(found.tunnel) if jump is None else []
        waiting = (*behind, host)
        if hops and not any(hop in waiting for hop, _ in hops):  # `Host *` names a jump host for itself as well
            jump = await _jump(hops, settings, waiting)
        connection = await asyncssh.connect(host, tunnel=jump, **options)
    except BaseException as error:  # cancellation included: no connection to a jump host may be left behind
        if jump is not None:
            jump.abort()
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            raise _host_key_error(error, host, found.known_hosts) from error
        raise
    connection.set_tunnel(jump)  # it goes with the connection
    return connection


async def _jump(
    hops: list[tuple[str, dict[str, Any]]], settings: Distributed, behind: tuple[str, ...]
) -> asyncssh.SSHClientConnection:
    """Return a connection to the last of *hops*, each reached through the one before it."""
    connection: asyncssh.SSHClientConnection | None = None
    for host, given in hops:
        try:
            connection = await _connect_through(host, settings, given, behind, connection)
        except (asyncssh.ConnectionLost, ConnectionResetError):  # tried again, as with any host
            raise
        except (HostError, asyncssh.Error, OSError, asyncio.TimeoutError) as error:
            known = error if isinstance(error, HostError) else _login_error(error, host, settings)
            raise HostUnreachable(
                f"its jump host {host} cannot be used: {known.cause}", host=behind[0], remedy=known.remedy
            ) from error
    assert connection is not None
    return connection


def _parse_hops(value: object) -> list[tuple[str, dict[str, Any]]]:
    """Return the hops in ProxyJump's *value*, each as its host and options."""
    if not isinstance(value, str) or value.lower() == "none":
        return []
    return [_parse_hop(hop.strip()) for hop in value.split(",")]


def _parse_hop(hop: str) -> tuple[str, dict[str, Any]]:
    """Return host, and options, of `[user@]host[:port]`."""
    user, _, address = hop.removeprefix("ssh://").rpartition("@")
    host, port = address, ""
    if address.startswith("["):  # an IPv6 address, whose colons are none of a port
        host, _, port = address[1:].partition("]")
        port = port.lstrip(":")
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    given: dict[str, Any] = {"username": user} if user else {}
    if port:
        given["port"] = int(port)
    return host, given


def _host_key_error(error: asyncssh.HostKeyNotVerifiable, host: str, files: Any) -> HostKeyRejected:
    """Say which file to mend; *files* are those that asyncssh looked into, () for its default."""
    named = [str(file) for file in files] if isinstance(files, (list, tuple)) else []
    file = named[0] if named else str(Path("~/.ssh/known_hosts").expanduser())
    return HostKeyRejected(
        f"its SSH host key is not trusted ({error.reason})",
        host=host,
        remedy=f"compare the host's fingerprint, then put its key into {file} on the gateway; if the host was reinstalled, "
        "remove the old key there",
    )


def _login_error(error: Exception, host: str, settings: Distributed) -> HostError:
    """Say which of the many ways to fail a login this is."""
    user = settings.user or "the gateway's own user (or ssh_config's User)"
    if isinstance(error, asyncssh.PermissionDenied):
        methods = ["public keys and ssh-agent"]
        methods += ["password (EG_REMOTE_PWD)"] * bool(settings.password) + ["Kerberos"] * settings.gss
        return LoginRefused(
            f"it refused to log in {user}; offered: {', '.join(methods)} ({error.reason})",
            host=host,
            user=settings.user,
            remedy="put the gateway's public key into ~/.ssh/authorized_keys of that user on the host, or correct EG_REMOTE_USER",
        )
    if isinstance(error, asyncssh.Error):
        return HostUnreachable(
            f"the SSH handshake failed ({error.reason})", host=host, remedy="check sshd on the host and its log"
        )
    if isinstance(error, asyncio.TimeoutError):
        return HostUnreachable(
            f"no SSH login within {settings.connect_timeout:g} s",
            host=host,
            remedy="check that the host is up and not overloaded, and that nothing drops packets to its SSH port",
        )
    if isinstance(error, socket.gaierror):
        return HostUnreachable(
            f"its name does not resolve ({error.strerror})", host=host, remedy="check remote_hosts, DNS and /etc/hosts"
        )
    if isinstance(error, FileNotFoundError):
        return HostKeyRejected(
            f"a file that ssh_config names is missing ({error.filename})",
            host=host,
            remedy="create it or correct ssh_config",
        )
    if isinstance(error, ValueError):  # KeyImportError and ConfigParseError are such
        return LoginRefused(
            f"a key or ssh_config of the gateway cannot be used ({error})",
            host=host,
            remedy="correct the ssh_config, or decrypt the key or give it to ssh-agent",
        )
    # asyncio's own text is "Connect call failed" and hides what the system said.
    cause = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return HostUnreachable(
        f"cannot connect ({cause})", host=host, remedy="check that sshd runs there and its port is open"
    )
