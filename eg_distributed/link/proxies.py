"""ProxyCommand: the way to a host through another program's input and output, run as ssh runs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import Final

__all__ = ["ProxyProcess"]

_MOST_HEARD: Final = 4096
"""Bytes of its last words that are kept."""
_LAST_WORDS_SECONDS: Final = 1.0
"""For a proxy's complaint and its end after the connection broke."""


class ProxyProcess:
    """A running ProxyCommand; `socket` is the way to the host. The login owns it, and its connection afterwards."""

    def __init__(self, process: asyncio.subprocess.Process, way: socket.socket, passes_socket: bool) -> None:
        self.socket = way
        self.passes_socket = passes_socket
        self._process = process
        self._heard = b""
        self._hearing = asyncio.ensure_future(self._hear())

    @classmethod
    async def start(cls, command: str, *, passes_socket: bool = False) -> ProxyProcess:
        """Run *command* by the user's shell, as ssh does, with sockets of our own as its input and output; raises OSError.

        Its complaints go into a buffer of their own: asyncssh's ProxyCommand has no shell, and mixes them into SSH's stream.
        """
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                os.environ.get("SHELL") or "/bin/sh",
                "-c",
                # exec: the shell would stay in between, and take no signal on.
                f"exec {command}",
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:  # cancellation included: nothing may stay open
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(process, ours, passes_socket)

    async def connected(self) -> socket.socket:
        """Return the socket to speak SSH over: the proxy's own, or the one that it passes (ProxyUseFdpass); raises OSError."""
        if not self.passes_socket:
            return self.socket
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self.socket, _set, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self.socket)
        _, descriptors, _, _ = socket.recv_fds(self.socket, 1, 1)
        self.socket.close()
        if not descriptors:
            raise ConnectionResetError("the proxy passed no connection")
        self.socket = socket.socket(fileno=descriptors[0])
        self.socket.setblocking(False)
        return self.socket

    async def last_words(self) -> str:
        """Return what it complained of and how it ended, empty if it said nothing and still runs."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._hearing), _LAST_WORDS_SECONDS)
            await asyncio.wait_for(self._process.wait(), _LAST_WORDS_SECONDS)
        lines = [line.strip() for line in self._heard.decode("utf-8", "replace").splitlines() if line.strip()]
        said = f"said {lines[-1][-300:]!r}" if lines else ""
        code = self._process.returncode
        ended = "" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return " and ".join(part for part in (said, ended) if part)

    def close(self) -> None:
        """End it and all that it started; asyncssh calls this when the connection is closed."""
        self.socket.close()
        self._hearing.cancel()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    abort = close

    async def wait_closed(self) -> None:
        """Wait until it is gone, which SIGKILL makes soon."""
        await self._process.wait()

    async def _hear(self) -> None:
        """Keep the end of what it complains of, for as long as it runs: a full pipe would stop it."""
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._heard = (self._heard + chunk)[-_MOST_HEARD:]


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
