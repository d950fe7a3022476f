"""An agent that misbehaves as told: what a node could send in the place of an honest one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eg_distributed.protocol import PROTOCOL, SENTINEL
from eg_distributed.wire import Message, encode, read_message

if TYPE_CHECKING:  # `nox -s fuzz` has no pytest, which that one needs
    from .ssh_server import Sshd

WELCOME: Message = {"ok": True, "protocol": PROTOCOL, "digest": "d", "kernels": []}
Answers = Callable[[Message], list[bytes]]
"""Returns what the agent sends for a request, message by message, as it goes over the connection."""


def described(kernel: str, **fields: Any) -> Message:
    """Return an honest agent's description of *kernel*, with *fields* changed."""
    honest = {
        "kernel": kernel,
        "attempt": "a1",
        "owner": "tests",
        "host_set": "",
        "argv": ["python"],
        "state": "running",
        "exit_code": None,
        "pid": 7,
        "start_time": 1.0,
        "log_path": "/log",
    }
    return {**honest, **fields}


def reply(request: Message, result: Any) -> bytes:
    """Return an honest reply to *request*."""
    return encode({"id": request["id"], "result": result})


def honest(request: Message) -> list[bytes]:
    """Answer as an agent that has every kernel that it is asked for."""
    params = request["params"]
    results = {
        "adopt": {kernel: described(kernel) for kernel in params.get("kernels", [])},
        "start": described(params.get("kernel", ""), state="starting"),
        "ping": {"pid": 7, "digest": "d", "starting": 0, "running": 0},
        "stop": {"stopped": True, "exit_code": 0},
        "list": [],
    }
    return [reply(request, results.get(request["method"]))]


class MalformedAgent:
    """Greets with *greeting* and answers by *answers*; counts the links that are open to it."""

    def __init__(self) -> None:
        self.greeting: bytes = encode(WELCOME)
        self.answers: Answers = honest
        self.opened = 0
        self.open_links: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def say(self, *messages: bytes) -> None:
        """Send *messages* to every gateway that is connected."""
        for writer in self.open_links:
            writer.writelines(messages)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open_links.add(writer)
        try:
            await read_message(reader)
            writer.write(self.greeting)
            while (request := await read_message(reader)) is not None:
                writer.writelines(self.answers(request))
        except OSError:
            pass  # the gateway has closed it
        finally:
            self.open_links.discard(writer)
            writer.close()

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Listen at *path* meanwhile."""
        server = await asyncio.start_unix_server(self._serve, path)
        try:
            yield
        finally:
            server.close()
            for writer in list(self.open_links):
                writer.close()


def lead_to(sshd: Sshd, path: Path) -> None:
    """Have the login at *sshd* answer as a boot that found an agent at *path*."""
    answer = json.dumps({"ok": True, "socket": str(path)}).replace("{", "{{").replace("}", "}}")
    sentinel = SENTINEL.decode().replace("\x1e", "\\036")
    sshd.command = f"head -n 1 >/dev/null; printf '{sentinel}%s\\n' '{answer}' # {{command}}"
