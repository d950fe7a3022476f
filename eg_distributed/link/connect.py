"""One connection to a host, and the agent brought up at its other end: over SSH, or here if the host is this machine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import shlex
import socket
import sys

import asyncssh

from eg_distributed.errors import AgentUnavailable, HostUnreachable
from eg_distributed.protocol import SENTINEL
from eg_distributed.settings import Distributed
from eg_distributed.wire import Reader

from .agent_archive import boot_line
from .aside import aside
from .bridge import BridgeClient
from .configuration import Configuration, configuration_of, own_user
from .links import BridgedLink, Link, LocalLink, Shielded, ShieldedWriter, SSHLink
from .login import Progress, log_in

log = logging.getLogger(__name__)
if logging.getLogger("asyncssh").level == logging.NOTSET:
    # It logs several lines for each channel as INFO, and each cell's client opens five; whoever wants them sets a level.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)

_LOGIN = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_CACHE_HOME")
"""What a kernel on the gateway's own machine has of the gateway's environment: what sshd would have given it."""
_MAX_NOISE = 256 * 1024
"""Bytes that a login may print before the agent's answer."""
_NAME_DEADLINE = 2.0
"""Seconds for looking up this machine's own full name."""
_SESSION_DEADLINE, _SESSION_RETRY = 2.0, 0.05
"""Seconds for which, and after which, a session that sshd does not open is tried again."""


def is_gateway(name: str) -> bool:
    """Whether *name* means this machine, so that no SSH is needed; looks no name up, since that may block."""
    bare = name.lower().rstrip(".").split("%")[0]
    own = socket.gethostname().lower()
    if bare in ("localhost", "localhost.localdomain", "ip6-localhost", own, own.split(".")[0]):
        return True
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return False
    if address.is_loopback:
        return True
    with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 22))  # UDP: chooses a route and sends nothing
            return str(probe.getsockname()[0]) == str(address)  # the way to one's own address begins there
        except OSError:
            return False


async def _is_full_name(name: str) -> bool:
    """Whether *name* is this machine's own name with its domain; looked up only where it begins like the short one."""
    bare, own = name.lower().rstrip("."), socket.gethostname().lower()
    if "." in own or not bare.startswith(f"{own}."):
        return False
    with contextlib.suppress(asyncio.TimeoutError):  # a resolver that hangs knows no better
        return bare == (await asyncio.wait_for(aside("own name", socket.getfqdn), _NAME_DEADLINE)).lower()
    return False


# No character in it means anything to sh, csh or fish inside single quotes; the code itself comes on stdin.
# -I: a login's folder may hold a json.py, and its environment a PYTHONPATH.
_COMMAND = "-I -c 'import sys;exec(sys.stdin.buffer.readline())'"


async def is_here(host: str, configuration: Configuration) -> bool:
    """Return True if a login to *host* would lead to this very user on this machine, so that no SSH is needed.

    The name alone does not say so: 127.0.0.1 with another port is a tunnel, ssh_config may lead `localhost` elsewhere, and a user
    who is not the gateway's own would silently become it. Called by `connect`, and by `doctor`.
    """
    return (
        configuration.hostname.rstrip(".") == host.lower().rstrip(".")
        and configuration.port == 22
        and configuration.user == own_user()
        and not configuration.jumps
        and not configuration.proxy_command
        and (is_gateway(host) or await _is_full_name(host))
    )


async def connect(host: str, settings: Distributed, *, keep: bool = False, progress: Progress | None = None) -> Link:
    """Connect to *host* and have an agent there; raises a HostError that says what stands in the way.

    *keep*: this gateway has been connected to an agent of an older release there, which may hold output for it. *progress* tells
    others how far it has come.

    Called by Node, at most once at a time for a host. Cancellation: closes what was opened.
    """
    if await is_here(host, await configuration_of(host, settings)):
        log.info("%s is this machine, and the login is the gateway's own: kernels run here, without SSH", host)
        return await _connect_locally(host, settings, keep)
    connection = await log_in(host, settings, progress)
    try:
        path = await asyncio.wait_for(_bootstrap(connection, host, settings, keep), settings.bootstrap_timeout)
        try:
            await asyncio.wait_for(_try_forwarding(connection, path), settings.request_timeout)
        except asyncssh.ChannelOpenError as error:
            log.info("%s forbids forwarding (%s): all its kernels share one channel", host, error.reason)
            return await asyncio.wait_for(_bridge(connection, host, settings, keep), settings.bootstrap_timeout)
        return SSHLink(connection, path)
    except asyncio.TimeoutError:
        connection.abort()
        raise AgentUnavailable(
            f"the login worked, but no agent answered in time ({settings.bootstrap_timeout:g} s for its start)",
            host=host,
            remedy="check the node's load and disk, and what its shell does at a login",
        ) from None
    except asyncssh.Error as error:
        connection.abort()
        raise HostUnreachable(
            f"the connection was lost ({error.reason})", host=host, remedy="check sshd's log"
        ) from error
    except BaseException:  # whatever ends the attempt, cancellation included, must not leave a connection behind
        connection.abort()
        raise


# -- the agent ---------------------------------------------------------------------------------------------------


async def _bootstrap(connection: asyncssh.SSHClientConnection, host: str, settings: Distributed, keep: bool) -> str:
    """Have an agent on the node and return its socket's path there."""
    process = await _execute(connection, host, settings, boot_line(bridge=False, keep=keep))
    try:
        return await _read_answer(process.stdout, process.stderr, host)
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
    process = await _execute(connection, host, settings, boot_line(bridge=True, keep=keep))
    await _read_answer(process.stdout, process.stderr, host)
    client = BridgeClient(Shielded(process.stdout), ShieldedWriter(process.stdin))
    return BridgedLink(connection, client)


async def _execute(
    connection: asyncssh.SSHClientConnection, host: str, settings: Distributed, line: bytes
) -> asyncssh.SSHClientProcess[bytes]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SESSION_DEADLINE
    while True:
        try:
            # encoding=None: with the default, one byte that is no UTF-8 closes the whole connection.
            process: asyncssh.SSHClientProcess[bytes] = await connection.create_process(
                f"{shlex.quote(settings.python)} {_COMMAND}", encoding=None
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
            process.stdin.write(line)
        return process


async def _read_answer(stdout: Reader, stderr: Reader, host: str) -> str:
    """Return the socket's path out of the boot's answer, skipping what the login printed before it."""
    heard = b""
    while SENTINEL not in heard or b"\n" not in heard.partition(SENTINEL)[2]:
        chunk = await stdout.read(65536)
        heard += chunk
        if not chunk or len(heard) > _MAX_NOISE:
            complaint = (await stderr.read(4096) if not chunk else b"") or heard[-400:]
            raise AgentUnavailable(
                f"no agent could be started: the login said {complaint.decode('utf-8', 'replace').strip()[-400:]!r}",
                host=host,
                remedy="install python3 (3.9 or later) on the host, or name the interpreter in Distributed.python; a forced "
                "command or a restricted shell must let it run",
            )
    answer = json.loads(heard.partition(SENTINEL)[2].partition(b"\n")[0])
    if not answer["ok"]:
        raise AgentUnavailable(
            f"the agent cannot run: {answer['error']}",
            host=host,
            remedy="the agent needs Python 3.9 or later and a writable ~/.cache or /tmp on the host",
        )
    for place in answer.get("passed_over", [])[:4]:
        log.warning("%s: its agent is not in %s", host, str(place)[:300])
    return str(answer["socket"])


async def _connect_locally(host: str, settings: Distributed, keep: bool) -> Link:
    """Bring the same agent up on this machine, without SSH."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        "import sys;exec(sys.stdin.buffer.readline())",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # The agent's environment is the base of its kernels': a login's, and none of the gateway's settings and secrets.
        env={name: value for name, value in os.environ.items() if name in _LOGIN or name.startswith("LC_")},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(boot_line(bridge=False, keep=keep))
        path = await asyncio.wait_for(_read_answer(process.stdout, process.stderr, host), settings.bootstrap_timeout)
        await asyncio.wait_for(process.wait(), settings.bootstrap_timeout)
    except asyncio.TimeoutError:
        process.kill()
        raise AgentUnavailable(
            "no agent answered on this machine", host=host, remedy="check its load and disk"
        ) from None
    return LocalLink(path)
