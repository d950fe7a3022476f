"""ProxyCommand: the way to a host through another program's input and output, run as ssh runs it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

from eg_distributed.link.deadlines import within
from eg_distributed.link.groups import end_group

__all__ = ["ProxyProcess"]

_MOST_HEARD: Final = 4096
"""Bytes of its last words that are kept."""
_HEARD_AT_ONCE: Final = 65536
_PAUSE: Final = 0.1
"""Seconds between two looks at complaints beyond that many bytes."""
_LAST_WORDS_SECONDS: Final = 1.0
"""For a proxy's complaint and its end after the connection broke."""


class ProxyProcess:
    """A running ProxyCommand; `socket` is the way to the host. The login owns it, and its connection afterwards."""

    def __init__(
        self, process: asyncio.subprocess.Process, way: socket.socket, complaints: int, passes_socket: bool
    ) -> None:
        self.socket = way
        self.passes_socket = passes_socket
        self._process = process
        self._complaints = _Complaints(complaints)

    @classmethod
    async def start(cls, command: str, *, passes_socket: bool = False) -> ProxyProcess:
        """Run *command* by the user's shell, as ssh does, with sockets of our own as its input and output; raises OSError.

        Its complaints go into a buffer of their own: asyncssh's ProxyCommand has no shell, and mixes them into SSH's stream.
        """
        ours, theirs = socket.socketpair()
        # Not asyncio's own pipe: what is left in it when nobody reads any more keeps `wait` from ever ending.
        complaints, complaining = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                os.environ.get("SHELL") or "/bin/sh",
                "-c",
                # exec: the shell would stay in between, and take no signal on.
                f"exec {command}",
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=complaining,
                start_new_session=True,
            )
        except BaseException:  # cancellation included: nothing may stay open
            ours.close()
            os.close(complaints)
            raise
        finally:
            theirs.close()
            os.close(complaining)
        ours.setblocking(False)
        return cls(process, ours, complaints, passes_socket)

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
            await within(self._complaints.ended.wait(), _LAST_WORDS_SECONDS)
            await within(self._process.wait(), _LAST_WORDS_SECONDS)
        lines = [
            line.strip() for line in self._complaints.heard.decode("utf-8", "replace").splitlines() if line.strip()
        ]
        said = f"said {lines[-1][-300:]!r}" if lines else ""
        code = self._process.returncode
        if not code and not said:
            return ""  # it ended since we did
        ended = "" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return " and ".join(part for part in (said, ended) if part)

    def close(self) -> None:
        """End it and all that it started; asyncssh calls this when the connection is closed."""
        self.socket.close()
        self._complaints.close()
        if self._process.returncode is None:
            end_group(self._process.pid)

    abort = close

    async def wait_closed(self) -> None:
        """Wait until it is gone, which SIGKILL makes soon."""
        await self._process.wait()


class _Complaints:
    """The end of what a proxy says on stderr, read for as long as it runs, since a full pipe would stop it."""

    def __init__(self, descriptor: int) -> None:
        self.heard = b""
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._descriptor: int | None = descriptor
        self._read = 0
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._take)

    def close(self) -> None:
        """Read no more; what was heard stays."""
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        self.ended.set()

    def _take(self) -> None:
        if self._descriptor is None:
            return
        chunk = os.read(self._descriptor, 4096)
        if not chunk:
            self.close()
            return
        self.heard = (self.heard + chunk)[-_MOST_HEARD:]
        self._read += len(chunk)
        if self._read > _HEARD_AT_ONCE:  # one that never stops complaining can't have this loop for itself
            self._loop.remove_reader(self._descriptor)
            self._loop.call_later(_PAUSE, self._listen_again)

    def _listen_again(self) -> None:
        if self._descriptor is not None:
            self._loop.add_reader(self._descriptor, self._take)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
