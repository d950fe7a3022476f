import asyncio
import getpass
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from lab import keys
from lab.drivers.local import programs
from lab.ports import free_port
from tests.until import until

DEADLINE = 20.0


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A login on a local node's SSH server, run as the lab runs it."""
    host = keys.read_or_generate(tmp_path / "host", "host")
    user = keys.read_or_generate(tmp_path / "user", "user")
    (tmp_path / "authorized_keys").write_text(user.public + "\n")
    port = free_port()
    config = {"port": port, "host_key": str(tmp_path / "host"), "authorized_keys": str(tmp_path / "authorized_keys")}
    (tmp_path / "server.json").write_text(json.dumps(config))
    argv = [programs.SERVER, str(tmp_path / "server.json")]
    server = await asyncio.create_subprocess_exec(sys.executable, *argv, env={**os.environ, "HOME": str(tmp_path)})
    try:
        async with _Login(port, host.public, tmp_path / "user") as found:
            yield found
    finally:
        server.terminate()
        await server.wait()


class _Login:
    def __init__(self, port: int, host_key: str, identity: Path) -> None:
        self.options = {
            "username": getpass.getuser(),
            "client_keys": [str(identity)],
            "known_hosts": asyncssh.import_known_hosts(f"[127.0.0.1]:{port} {host_key}\n"),
            "config": None,
            "agent_path": None,
        }
        self.port = port

    async def __aenter__(self) -> asyncssh.SSHClientConnection:
        self.connection = await until("the server takes a login", self._try, DEADLINE, pause=0.05)
        return self.connection

    async def _try(self) -> asyncssh.SSHClientConnection | None:
        try:
            return await asyncssh.connect("127.0.0.1", self.port, **self.options)
        except OSError:
            return None

    async def __aexit__(self, *_: object) -> None:
        self.connection.close()
        await self.connection.wait_closed()


async def test_commands_run_for_real(connection: asyncssh.SSHClientConnection) -> None:
    """A command gets stdin, and gives stdout, stderr and its exit code, byte for byte."""
    blob = bytes(range(256)) * 4000
    done = await asyncio.wait_for(
        connection.run("cat; echo problem >&2; exit 7", input=blob, encoding=None), timeout=DEADLINE
    )
    assert done.stdout == blob
    assert done.stderr == b"problem\n"
    assert done.exit_status == 7


async def test_sockets_are_forwarded_and_outlive_commands(
    connection: asyncssh.SSHClientConnection, tmp_path: Path
) -> None:
    """direct-streamlocal channels open and close while commands run, on one connection that stays up."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    async with await asyncio.start_unix_server(echo, tmp_path / "s"):
        for number in range(5):
            command = asyncio.create_task(connection.run("cat", input="x"))
            reader, writer = await connection.open_unix_connection(str(tmp_path / "s"), encoding=None)
            writer.write(b"%d" % number)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), DEADLINE) == b"%d" % number
            writer.close()
            assert (await asyncio.wait_for(command, DEADLINE)).stdout == "x"
