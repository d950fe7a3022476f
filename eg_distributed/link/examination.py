"""The way to a host, one part after the other, for `jupyter distributed doctor`.

Each function does one thing and says what it found. A start goes the same way by `connect`, as a whole. What they share is used
here as it is: the login, and the command by which python3 is run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncssh

from eg_distributed.errors import AgentUnavailable, HostUnreachable
from eg_distributed.settings import Distributed
from eg_distributed.wire import Malformed, Wire, checked, flag, integer, items, number, text

from .agent_archive import checkup_line
from .configuration import Configuration, configuration_of
from .connect import execute, execute_here, is_here, lost
from .dial import Address, dial, look_up
from .login import Progress, connect_seconds, log_in

_MAX_BANNER = 8192  # bytes that an SSH server may say before and with its version


@dataclass
class Way:
    """What a login to a host uses."""

    configuration: Configuration
    here: bool
    """Whether the host is this machine, which needs no SSH."""

    @property
    def proxy(self) -> str:
        """The jump hosts, or the command, that the connection goes through; empty for none."""
        found = self.configuration
        if found.jumps:
            return f"jump host {', '.join(hop.host for hop in found.jumps)}"
        return f"command {found.proxy_command}" if found.proxy_command else ""


async def read_way(host: str, settings: Distributed) -> Way:
    """Return what the settings and ssh_config say of *host*; raises HostError where they can't be used."""
    configuration = await configuration_of(host, settings)
    return Way(configuration, await is_here(host, configuration))


async def find_addresses(way: Way, settings: Distributed) -> list[Address]:
    """Return the addresses of the host's name, in the order in which they are tried; raises HostUnreachable."""
    found = way.configuration
    seconds = connect_seconds(settings, found)
    try:
        return await look_up(found.hostname, found.port, found.family, seconds)
    except asyncio.TimeoutError:
        raise HostUnreachable(
            f"looking up {found.hostname} took longer than {seconds:g} s", host=found.host, remedy="check DNS"
        ) from None
    except OSError as error:
        raise HostUnreachable(
            f"its name {found.hostname} does not resolve ({error.strerror or error})",
            host=found.host,
            remedy="check remote_hosts, DNS and /etc/hosts",
        ) from error


@asynccontextmanager
async def tcp(way: Way, addresses: list[Address], settings: Distributed) -> AsyncIterator[asyncio.StreamReader]:
    """Hold a TCP connection to the host's SSH port; raises HostUnreachable."""
    found = way.configuration
    seconds = connect_seconds(settings, found)
    try:
        reader, writer = await asyncio.open_connection(
            sock=await dial(addresses, seconds, found.bind_address, found.bind_interface)
        )
    except asyncio.TimeoutError:
        raise HostUnreachable(
            f"no answer from port {found.port} within {seconds:g} s",
            host=found.host,
            remedy="check that the host is up, and that nothing drops packets to its SSH port",
        ) from None
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        raise HostUnreachable(
            f"cannot connect to port {found.port} ({cause})",
            host=found.host,
            remedy="check that sshd runs there and its port is open",
        ) from error
    try:
        yield reader
    finally:
        writer.close()


async def read_banner(reader: asyncio.StreamReader, host: str) -> str:
    """Return the SSH server's version; raises HostUnreachable for what is none."""
    heard = b""
    while len(heard) < _MAX_BANNER:
        line = await reader.readline()
        if line.startswith(b"SSH-"):
            return line.strip().decode("utf-8", "replace")
        heard += line
        if not line:
            break
    said = heard.decode("utf-8", "replace").strip()[:200]
    raise HostUnreachable(
        f"no SSH server answers there: it said {said!r}" if said else "the port accepts, and closes without a word",
        host=host,
        remedy="check which program listens there, and sshd's MaxStartups and the host's hosts.deny",
    )


@dataclass
class Login:
    """A connection that has logged in, and what it was made of."""

    connection: asyncssh.SSHClientConnection
    key: str
    """The host's key: its type and fingerprint."""
    user: str
    seconds: dict[str, float]
    """What each phase took, by the names that `login.Progress` gives them."""


async def log_in_as_starts_do(host: str, settings: Distributed) -> Login:
    """Log in; raises HostError. The caller closes the connection."""
    progress = Progress()
    connection = await log_in(host, settings, progress)
    progress.enter("over")
    key = connection.get_server_host_key()
    return Login(
        connection,
        f"{key.get_algorithm()} {key.get_fingerprint()}" if key is not None else "by Kerberos",
        str(connection.get_extra_info("username")),
        dict(progress.steps),
    )


@dataclass(eq=False, repr=False)
class Report(Wire):
    """What the node's python3 says of its node; see agent/checkup.py."""

    python: str = checked(text(256))
    executable: str = checked(text(4096))
    old: bool = checked(flag)
    """Whether that Python is too old for the agent."""
    node: str = checked(text(256))
    user: str = checked(text(256))
    nofile: list[int] = checked(items(integer(-1, 1 << 63), 2, 2))
    """Soft and hard limit of open files; -1: none."""
    nproc: list[int] = checked(items(integer(-1, 1 << 63), 2, 2))
    processes: int = checked(integer(0, 1 << 31))
    """Processes of the user."""
    took: float = checked(number(0, 1e6))
    time: float = checked(number(0, 1e12))
    """The node's clock, in seconds since the epoch."""
    sshd_files: int = checked(integer(-1, 1 << 63), 0)
    """How many files the login's sshd may have open, each channel one; -1: no limit, 0: unknown."""
    folder: str = checked(text(4096), "")
    """The agent's; empty: there is none, for the reason *why*."""
    passed_over: list[str] = checked(items(text(4096), 10), [])
    """Better places that would not do, with the reason."""
    why: str = checked(text(4096), "")
    lock: str = checked(text(4096), "")
    """What is wrong with locks in the folder."""
    agent: bool = checked(flag, False)
    """Whether an agent is there."""
    free: int = checked(integer(-1, 1 << 62), -1)
    """Bytes of the folder's disk; -1: unknown."""


@dataclass
class Checkup:
    """What the node's python3 said, and how the login shell got there."""

    report: Report
    noise: int
    """Bytes that start-up files printed."""
    last_noise: str
    seconds: float
    """From the command to its answer, without what the report itself took."""
    clock: float
    """Seconds by which the node's clock is ahead of ours."""


async def check_up(host: str, settings: Distributed, login: Login | None) -> Checkup:
    """Have the node's python3 look around, over *login* or, without one, on this machine; raises HostError."""
    began = time.time()
    if login is not None:
        process, answer = await execute(login.connection, host, settings, checkup_line())
        try:
            message = await answer.message_within(settings.bootstrap_timeout)
        except (asyncssh.Error, OSError) as error:
            raise lost(error, host) from error
        finally:
            process.close()
    else:
        here, answer = await execute_here(host, checkup_line())
        try:
            message = await answer.message_within(settings.bootstrap_timeout)
        finally:
            if here.returncode is None:
                here.kill()
            await here.wait()
    now = time.time()
    try:
        report = Report.read(message)
    except Malformed as error:
        raise AgentUnavailable(
            f"what its python3 says is malformed ({error})", host=host, remedy="check what `python3` is on that host"
        ) from error
    return Checkup(report, answer.noise, answer.last_noise, max(now - began - report.took, 0.0), report.time - now)
