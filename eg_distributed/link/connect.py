"""One connection to a host, and the agent brought up at its other end: over SSH, or here if the host is this machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import os
import pwd
import shlex
import socket
import sys

import asyncssh

from eg_distributed.aside import aside
from eg_distributed.errors import AgentUnavailable, HostError, HostUnreachable
from eg_distributed.link.deadlines import within
from eg_distributed.settings import Distributed

from .agent_archive import boot_line
from .answer import BLANK_LINES, BootAnswer
from .bridge import BridgeClient
from .configuration import Configuration, configuration_of, own_user
from .dial import look_up
from .links import BridgedLink, Shielded, ShieldedWriter, SSHLink
from .login import log_in
from .way import Link, LocalLink, Progress, is_gateway

__all__ = ["connect", "execute", "execute_here", "is_gateway", "is_here", "leads_here", "lost"]

log = logging.getLogger(__name__)
if logging.getLogger("asyncssh").level == logging.NOTSET:
    # It logs several lines for each channel as INFO, and each cell's client opens five; whoever wants them sets a level.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)

_LOGIN = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_CACHE_HOME")
"""What a kernel on the gateway's own machine has of the gateway's environment: what sshd would have given it."""
_NAME_DEADLINE = 2.0
"""Seconds for looking up this machine's own full name."""
_SSH_PORT = 22
_SESSION_DEADLINE, _SESSION_RETRY = 2.0, 0.05
"""Seconds for which, and after which, a session that sshd does not open is tried again."""


async def _is_full_name(name: str) -> bool:
    """Whether *name* is this machine's own name with its domain; looked up only where it begins like the short one."""
    bare, own = name.lower().rstrip("."), socket.gethostname().lower()
    if "." in own or not bare.startswith(f"{own}."):
        return False
    with contextlib.suppress(OSError, asyncio.TimeoutError):  # a resolver that hangs knows no better
        return bare == (await within(aside("own name", socket.getfqdn), _NAME_DEADLINE)).lower()
    return False


# No character in it means anything to sh, csh or fish inside single quotes; the code itself comes on stdin.
# -I: a login's folder may hold a json.py, and its environment a PYTHONPATH.
# The first line that is not blank: start-up files may read some. As an argument it could not be swallowed, but it is nearly as
# long as Linux lets one be, and all users of the node would see it in their `ps`.
_CODE = 'import sys;exec(next(filter(bytes.strip,sys.stdin.buffer),b""))'


async def is_here(host: str, configuration: Configuration) -> bool:
    """Return True if a login to *host* would lead to this very user on this machine, so that no SSH is needed.

    The name alone does not say so: 127.0.0.1 with another port is a tunnel, ssh_config may lead `localhost` elsewhere, and a user
    who is not the gateway's own would silently become it. Called by `connect`, and by `doctor`.
    """
    return (
        configuration.hostname.rstrip(".") == host.lower().rstrip(".")
        and configuration.port == _SSH_PORT
        and _is_own(configuration.user)
        and not configuration.jumps
        and not configuration.proxy_command
        and (is_gateway(host) or await _is_full_name(host))
    )


def _is_own(user: str) -> bool:
    """Return True if *user* is the account that the gateway runs as, and no other account's name."""
    if user != own_user():
        return False
    try:
        return pwd.getpwnam(user).pw_uid == os.getuid()
    except KeyError:  # a number that the system's list of users does not have, with a name of the environment's
        return True


async def leads_here(host: str, settings: Distributed) -> bool:
    """Return True if *host* is this machine, whichever of its accounts a login would lead to; for names that clients choose.

    By name, by what ssh_config makes of it, or by its addresses: a number, or an alias in DNS, is enough to name a machine. A way
    through another host or command ends there, and a port that ssh_config gives to an alias may be a tunnel. Returns False for
    what cannot be told, which cannot be reached either. Called by the Cluster.
    """
    try:
        configuration = await configuration_of(host, settings)
    except HostError:
        return False
    if configuration.jumps or configuration.proxy_command:
        return False
    is_alias = configuration.hostname.rstrip(".") != host.lower().rstrip(".")
    if is_alias and configuration.port != _SSH_PORT:
        return False
    if is_gateway(configuration.hostname) or await _is_full_name(configuration.hostname):
        return True
    try:
        found = await look_up(configuration.hostname, configuration.port, configuration.family, _NAME_DEADLINE)
    except (OSError, asyncio.TimeoutError, UnicodeError):  # the last for a name that DNS cannot have
        return False
    return any(_is_own_address(str(address[0])) for *_, address in found)


def _is_own_address(text: str) -> bool:
    """Return True if connecting to the address *text* leads to this machine."""
    address = ipaddress.ip_address(text.split("%", maxsplit=1)[0])
    plain = getattr(address, "ipv4_mapped", None) or address
    return plain.is_unspecified or is_gateway(str(plain))


async def connect(host: str, settings: Distributed, *, keep: bool = False, progress: Progress | None = None) -> Link:
    """Connect to *host* and have an agent there; raises a HostError that says what stands in the way.

    *keep*: this gateway has been connected to an agent of an older release there, which may hold output for it. *progress* tells
    others how far it has come.

    Called by Node, at most once at a time for a host. Cancellation: closes what was opened.
    """
    if await is_here(host, await configuration_of(host, settings)):
        log.info("%s is this machine, and the login is the gateway's own: kernels run here, without SSH", host)
        return await _connect_locally(host, settings, keep)
    progress = progress or Progress()
    connection = await log_in(host, settings, progress)
    progress.enter("waiting for python3, which runs after the login's start-up files")
    try:
        path = await _bootstrap(connection, host, settings, keep)
        try:
            await within(_try_forwarding(connection, path), settings.request_timeout)
        except asyncssh.ChannelOpenError as error:
            log.info("%s forbids forwarding (%s): all its kernels share one channel", host, error.reason)
            return await _bridge(connection, host, settings, keep)
        return SSHLink(connection, path, host, functools.partial(log_in, host, settings))
    except asyncio.TimeoutError:
        connection.abort()
        raise AgentUnavailable(
            "the login worked, but sshd opened neither a session nor a way to the agent in time",
            host=host,
            remedy="check the node's load, and sshd's log",
        ) from None
    except (asyncssh.Error, OSError) as error:
        connection.abort()
        raise lost(error, host) from error
    except BaseException:  # whatever ends the attempt, cancellation included, must not leave a connection behind
        connection.abort()
        raise


def lost(error: asyncssh.Error | OSError, host: str) -> HostUnreachable:
    """Return what to raise where a connection broke: asyncssh's readers raise the socket's own error, or one of theirs."""
    reason = error.reason if isinstance(error, asyncssh.Error) else error.strerror
    return HostUnreachable(f"the connection was lost ({reason or error})", host=host, remedy="check sshd's log")


# -- the agent ---------------------------------------------------------------------------------------------------


async def _bootstrap(connection: asyncssh.SSHClientConnection, host: str, settings: Distributed, keep: bool) -> str:
    """Have an agent on the node and return its socket's path there."""
    process, answer = await execute(connection, host, settings, boot_line(bridge=False, keep=keep))
    try:
        return await answer.read_within(settings.bootstrap_timeout)
    finally:
        process.close()


async def _try_forwarding(connection: asyncssh.SSHClientConnection, path: str) -> None:
    """Open a connection to the agent's socket, twice if need be; raises ChannelOpenError where sshd forbids it.

    sshd says the same where the agent is too busy to accept one just now.
    """
    try:
        _, writer = await connection.open_unix_connection(path)
    except asyncssh.ChannelOpenError:
        await asyncio.sleep(_SESSION_RETRY)
        _, writer = await connection.open_unix_connection(path)
    writer.close()


async def _bridge(connection: asyncssh.SSHClientConnection, host: str, settings: Distributed, keep: bool) -> Link:
    process, answer = await execute(connection, host, settings, boot_line(bridge=True, keep=keep))
    await answer.read_within(settings.bootstrap_timeout)
    client = BridgeClient(Shielded(process.stdout), ShieldedWriter(process.stdin))
    return BridgedLink(connection, client)


async def execute(
    connection: asyncssh.SSHClientConnection, host: str, settings: Distributed, line: bytes
) -> tuple[asyncssh.SSHClientProcess[bytes], BootAnswer]:
    """Have the node's python3 read *line*; return its process, and what reads its answer. Raises AgentUnavailable.

    Called here, and by `examination` for the doctor.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SESSION_DEADLINE
    while True:
        try:
            # encoding=None: with the default, one byte that is no UTF-8 closes the whole connection.
            process: asyncssh.SSHClientProcess[bytes] = await within(
                connection.create_process(f"{shlex.quote(settings.python)} -I -c '{_CODE}'", encoding=None),
                settings.bootstrap_timeout,
            )
        except asyncssh.ChannelOpenError as error:
            if loop.time() < deadline:  # with MaxSessions 1, sshd may still be closing our session before this one
                await asyncio.sleep(_SESSION_RETRY)
                continue
            raise AgentUnavailable(
                f"sshd opened no session ({error.reason})",
                host=host,
                remedy="raise MaxSessions in the host's sshd_config",
            ) from error
        with contextlib.suppress(OSError):  # it has ended already; what it said is read next
            process.stdin.write(BLANK_LINES + line)
        ended = functools.partial(_exit_code, process)
        return process, BootAnswer(process.stdout, process.stderr, host, line, ended)


async def _exit_code(process: asyncssh.SSHClientProcess[bytes]) -> int | None:
    await process.wait_closed()
    return process.returncode


async def _connect_locally(host: str, settings: Distributed, keep: bool) -> Link:
    """Bring the same agent up on this machine, without SSH."""
    process, answer = await execute_here(host, boot_line(bridge=False, keep=keep))
    try:
        path = await answer.read_within(settings.bootstrap_timeout)
        await within(process.wait(), settings.bootstrap_timeout)
    except AgentUnavailable:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            process.kill()
        raise
    except asyncio.TimeoutError:
        process.kill()
        raise AgentUnavailable(
            "no agent answered on this machine", host=host, remedy="check its load and disk"
        ) from None
    return LocalLink(path)


async def execute_here(host: str, line: bytes) -> tuple[asyncio.subprocess.Process, BootAnswer]:
    """Have a python3 of this machine read *line*, as `execute` does over SSH."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        _CODE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # The agent's environment is the base of its kernels': a login's, and none of the gateway's settings and secrets.
        env={
            **{name: value for name, value in os.environ.items() if name in _LOGIN or name.startswith("LC_")},
            "USER": own_user(),
            "LOGNAME": own_user(),
        },
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(line)
    return process, BootAnswer(process.stdout, process.stderr, host, line, process.wait)
