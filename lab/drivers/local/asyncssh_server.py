"""An SSH server for machines without OpenSSH's: one process a node.

Run by file name (`python asyncssh_server.py CONFIG.json`): a machine keeps the interpreter that it was made with, which may be
another checkout's and know this program by another module's name, or not at all. It needs asyncssh and nothing of the lab.

Runs commands for real through the login shell, as sshd does, and forwards to sockets and ports. Knows one user, one key.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

if __name__ == "__main__":
    # The folder of this file would come first on the path, with modules named like other people's.
    sys.path[0] = str(Path(__file__).resolve().parents[3])

import asyncssh

CHUNK = 64 * 1024


class _Files(asyncssh.SFTPServer):
    """The files that the node's user sees; a relative path begins at its home, which is where this process runs."""


class _Server(asyncssh.SSHServer):
    connections: ClassVar[set[asyncssh.SSHServerConnection]] = set()
    """All that are open, so that SIGHUP can end them."""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self._connection)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True

    def unix_connection_requested(self, dest_path: str) -> bool:
        return True


async def _run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run one command, or a login shell without a terminal; end with its exit code or signal."""
    shell = pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    argv = [shell, "-c", process.command] if process.command else [shell, "-l"]
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        cwd=os.environ["HOME"],
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    # Pumped by hand: asyncssh's redirect to a subprocess of asyncio brings the whole connection down when both ends
    # close at once.
    feeding = asyncio.create_task(_feed(process.stdin, child.stdin))
    await asyncio.gather(_copy(child.stdout, process.stdout), _copy(child.stderr, process.stderr))
    code = await child.wait()
    feeding.cancel()
    process.exit(code if code >= 0 else 128 - code)


async def _feed(source: asyncssh.SSHReader[bytes], target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncssh.Error):
        while data := await source.read(CHUNK):
            target.write(data)
            await target.drain()
    target.close()


async def _copy(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    gone = False
    while data := await source.read(CHUNK):
        # A client that left is no reason to stop the command; its output is read on and dropped, as sshd does.
        if not gone:
            try:
                target.write(data)
                await target.drain()
            except (ConnectionError, asyncssh.Error):
                gone = True


async def serve(config: dict[str, Any]) -> None:
    """Listen on the node's loopback port until the process is ended; SIGHUP ends all logins and reads the keys anew."""
    listener = await asyncssh.listen(
        "127.0.0.1",
        config["port"],
        server_factory=_Server,
        server_host_keys=[
            (config["host_key"], config["certificate"]) if config.get("certificate") else config["host_key"]
        ],
        authorized_client_keys=config["authorized_keys"],
        process_factory=_run,
        sftp_factory=_Files,
        encoding=None,
        allow_pty=False,
    )

    def hang_up() -> None:
        listener.update(authorized_client_keys=config["authorized_keys"])
        for connection in list(_Server.connections):
            connection.abort()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
    await listener.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
