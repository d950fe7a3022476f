"""Hosts of tests: asyncssh's own server in this process, behind a wire, with commands that really run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import asyncssh

from eg_distributed.settings import Distributed
from eg_distributed.wire import Reader, Writer

from .agents import end_agents
from .wire import Wire

USER = "tester"


class Sshd:
    """One SSH host called *name*, with a home of its own below *folder*, reachable through `wire`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.forwarding = True
        self.command = "exec {command}"
        """What the login shell runs; around it, or in its place, a test may put noise."""
        self.env: dict[str, str] = {}
        self.users: list[str] = []
        self.patience = asyncio.Event()
        """Logins are answered while it is set; a host whose PAM takes its time has it cleared."""
        self.patience.set()
        self.jumped = 0  # connections to other hosts through this one
        self.forwarded = 0  # channels to UNIX sockets, opened or refused
        self.most_channels = 1 << 20
        """Channels to UNIX sockets that each connection may open in all: a stand-in for its descriptors."""
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.user_key = asyncssh.generate_private_key("ssh-ed25519")
        self.wire = Wire(0)
        self._further: list[Wire] = []  # by other names
        self._connections: dict[asyncssh.SSHServerConnection, None] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncssh.SSHAcceptor | None = None

    async def open(self) -> None:
        """Listen."""
        self.folder.mkdir()
        (self.folder / "id").write_bytes(self.user_key.export_private_key())
        (self.folder / "id").chmod(0o600)
        (self.folder / "authorized").write_bytes(self.user_key.export_public_key())
        self._server = await asyncssh.create_server(
            lambda: _Visit(self),
            "127.0.0.1",
            0,
            server_host_keys=[self.key],
            authorized_client_keys=str(self.folder / "authorized"),
            process_factory=self._execute,
            encoding=None,
            line_editor=False,
        )
        self.wire.target = self._server.get_port()
        await self.wire.open()
        self.trust(self.key)

    def trust(self, key: asyncssh.SSHKey) -> None:
        """Put *key* on file as this host's."""
        line = f"[127.0.0.1]:{self.wire.port} {key.export_public_key().decode()}"
        (self.folder / "known_hosts").write_text(line)

    def config(self) -> str:
        """Return this host's part of an ssh_config."""
        return (
            f"Host {self.name}\n  HostName 127.0.0.1\n  Port {self.wire.port}\n  User {USER}\n  IdentitiesOnly yes\n"
            f"  IdentityFile {self.folder / 'id'}\n  UserKnownHostsFile {self.folder / 'known_hosts'}\n"
        )

    async def be_called(self, name: str, settings: Distributed) -> Wire:
        """Have another *name* too, also in the ssh_config of *settings*; returns the way to it, which is none of `wire`."""
        wire = Wire(self.wire.target)
        await wire.open()
        self._further.append(wire)
        known = self.folder / "known_hosts"
        known.write_text(f"{known.read_text()}[127.0.0.1]:{wire.port} {self.key.export_public_key().decode()}")
        config = self.config().replace(f"Host {self.name}\n", f"Host {name}\n")
        config = config.replace(f"Port {self.wire.port}\n", f"Port {wire.port}\n")
        others = Path(settings.ssh_config)
        others.write_text(others.read_text() + config)
        return wire

    async def _execute(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        task = asyncio.ensure_future(self._run(process))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.wait({task})

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        shell = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            self.command.format(command=process.command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                "HOME": str(self.folder),
                "XDG_CACHE_HOME": str(self.folder),
                "PATH": os.environ["PATH"],
                "NODE": self.name,
                **self.env,
            },
            cwd=self.folder,
            start_new_session=True,
        )
        assert shell.stdin is not None
        assert shell.stdout is not None
        assert shell.stderr is not None
        feeding = asyncio.ensure_future(_pump(process.stdin, shell.stdin))
        outputs = [
            asyncio.ensure_future(_pump(shell.stdout, process.stdout)),
            asyncio.ensure_future(_pump(shell.stderr, process.stderr)),
        ]
        talking = asyncio.ensure_future(asyncio.wait(outputs))
        leaving = asyncio.ensure_future(process.wait_closed())
        try:
            await asyncio.wait({talking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                code = await shell.wait()
                with contextlib.suppress(OSError, asyncssh.Error):
                    process.exit(code)
        finally:
            for task in (feeding, talking, leaving, *outputs):
                task.cancel()
            await asyncio.wait({feeding, *outputs})
            if shell.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shell.pid, signal.SIGKILL)
                await shell.communicate()

    async def close(self) -> None:
        """End, with the agent and all kernels."""
        for wire in (self.wire, *self._further):
            await wire.close()
        for connection in list(self._connections):
            connection.abort()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        if self._running:
            await asyncio.wait(self._running)
        await asyncio.to_thread(end_agents, self.folder)

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    @property
    def open_links(self) -> list[asyncssh.SSHServerConnection]:
        """The connections, in order."""
        return list(self._connections)

    def opened(self, connection: asyncssh.SSHServerConnection) -> None:
        """Take note of a connection."""
        self._connections[connection] = None

    def lost(self, connection: asyncssh.SSHServerConnection) -> None:
        """Take note of its end."""
        self._connections.pop(connection, None)


async def _pump(source: Reader, target: Writer) -> None:
    """Pass bytes on until the end; not asyncssh's redirection, which ends the connection when a channel closes first."""
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    if isinstance(target, asyncio.StreamWriter):
        target.close()


class _Visit(asyncssh.SSHServer):
    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd
        self._connection: asyncssh.SSHServerConnection | None = None
        self._channels = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._sshd.opened(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._sshd.lost(self._connection)

    async def begin_auth(self, username: str) -> bool:
        self._sshd.users.append(username)
        await self._sshd.patience.wait()
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        self._sshd.jumped += 1
        return True

    def unix_connection_requested(self, dest_path: str) -> bool:
        self._sshd.forwarded += 1
        self._channels += 1
        return self._sshd.forwarding and self._channels <= self._sshd.most_channels
