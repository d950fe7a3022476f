"""Agents of tests: a visitor that speaks the protocol by hand, stand-in kernels to start, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.agent.server import Agent, socket_path
from eg_distributed.link.links import Link, LocalLink
from eg_distributed.streams import Flow
from eg_distributed.wire import Message, Reader, Writer, encode, read_message
from tests.until import until

DEADLINE = 30.0
"""Seconds that a test waits for anything; only what is broken takes as long."""

STANDIN = [sys.executable, "-IS", str(Path(__file__).with_name("standin.py"))]


def standin(*behaviours: str, python: str = "") -> list[str]:
    """Return the argv of a stand-in kernel that behaves so; see `standin.py`."""
    return [python or STANDIN[0], *STANDIN[1:], "{connection_file}", *behaviours]


PYENV = Path("/root/.pyenv/versions")


def pythons(*versions: str) -> list[object]:
    """Return parameters for the interpreters of *versions*; those that aren't here are skipped."""
    found = {version: sorted(PYENV.glob(f"{version}.*/bin/python")) for version in versions}
    return [
        pytest.param(
            str(paths[0]) if paths else "", id=version, marks=[] if paths else pytest.mark.skip(f"no Python {version}")
        )
        for version, paths in found.items()
    ]


class Refusal(Exception):
    """The agent answered with an error."""

    def __init__(self, kind: str, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.remedy = remedy


class Visitor:
    """A control connection to an agent, as a gateway holds one; hears events and asks."""

    def __init__(self, link: Link, reader: Reader, writer: Writer, hello: Message, owner: str) -> None:
        self.link = link
        self.hello = hello
        self.owner = owner
        self.incarnation = "1"
        self.events: list[Message] = []
        self.strays: list[Message] = []  # replies to nothing that was asked
        self.closed = False
        self._reader, self._writer = reader, writer
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._news = asyncio.Condition()
        self._hearing = asyncio.ensure_future(self._hear())

    @classmethod
    async def at(
        cls,
        link: Link,
        owner: str = "tests",
        incarnation: str = "1",
        host: str = "?",
        keep_output: int = 0,
        gone_timeout: float = 0,
    ) -> Visitor:
        """Visit the agent behind *link*, as the gateway that knows its machine as *host*."""
        reader, writer = await link.open()
        said = {"type": "control", "gateway": owner, "incarnation": incarnation, "host": host}
        writer.write(encode({**said, "keep_output": keep_output, "gone_timeout": gone_timeout}))
        hello = await asyncio.wait_for(read_message(reader), DEADLINE)
        assert hello is not None
        visitor = cls(link, reader, writer, hello, owner)
        visitor.incarnation = incarnation
        return visitor

    async def _hear(self) -> None:
        while (message := await read_message(self._reader)) is not None:
            if "event" in message:
                self.events.append(message)
            elif message["id"] in self._replies:
                self._replies.pop(message["id"]).set_result(message)
            else:
                self.strays.append(message)
            async with self._news:
                self._news.notify_all()
        self.closed = True
        async with self._news:
            self._news.notify_all()

    def send(self, data: bytes) -> None:
        """Send *data* as it is."""
        self._writer.write(data)

    async def request(self, method: str, **params: Any) -> Any:
        """Ask, and return the answer; raises Refusal."""
        return await self.ask(method, params)

    async def ask(self, method: str, params: object) -> Any:
        """Ask with *params* of any type, and return the answer; raises Refusal."""
        number = len(self._replies) + 1 + int(time.monotonic_ns())
        self._replies[number] = asyncio.get_running_loop().create_future()
        self._writer.write(encode({"id": number, "method": method, "params": params}))
        answer = await asyncio.wait_for(self._replies[number], DEADLINE)
        if "error" in answer:
            raise Refusal(answer["kind"], answer["error"], answer.get("remedy", ""))
        return answer["result"]

    async def event(self, name: str, kernel: str) -> Message:
        """Wait for the event *name* of *kernel*, unless it came already, and return it."""

        def found() -> Message | None:
            return next((e for e in self.events if e["event"] == name and e.get("kernel") == kernel), None)

        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: found() is not None), DEADLINE)
        event = found()
        assert event is not None
        return event

    async def ended(self) -> None:
        """Wait until the agent has closed the connection."""
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: self.closed), DEADLINE)

    async def start(self, kernel: str, argv: list[str], **params: Any) -> Message:
        """Start a kernel, and return the agent's description of it; *params* go over the defaults."""
        defaults: Message = {
            "kernel": kernel,
            "attempt": "a1",
            "owner": self.owner,
            "host_set": "here",
            "argv": argv,
            "spec_env": {},
            "env": {},
            "cwd": None,
            "transport": "ipc",
            "key": "k",
            "signature_scheme": "hmac-sha256",
            "orphan_timeout": 0,
        }
        described: Message = await self.request("start", **{**defaults, **params})
        return described

    async def ready(self, kernel: str, argv: list[str], **params: Any) -> Message:
        """Start a kernel and wait until it is ready."""
        described = await self.start(kernel, argv, **params)
        await self.event("ready", kernel)
        return described

    async def stream(
        self,
        kernel: str,
        channel: str = "shell",
        stream: str = "s1",
        *,
        received: int = 0,
        resume: bool = False,
        lease: int = 0,
    ) -> tuple[Message, Reader, Writer]:
        """Open a link for a stream, and return the agent's answer and the link."""
        reader, writer = await self.link.open()
        hello = {"type": "stream", "kernel": kernel, "channel": channel, "stream": stream, "gateway": self.owner}
        how = {"incarnation": self.incarnation, "resume": resume, "received": received, "lease": lease}
        writer.write(encode({**hello, **how}))
        answer = await asyncio.wait_for(read_message(reader), DEADLINE)
        assert answer is not None
        return answer, reader, writer

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


@contextlib.asynccontextmanager
async def own_agent(folder: Path) -> AsyncIterator[tuple[Agent, Visitor]]:
    """Run an agent in *folder* in this very process, for tests that hold up a part of it; yields it and a visitor."""
    (folder / "k").mkdir(mode=0o700, exist_ok=True)
    path = socket_path(folder)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    agent = Agent(folder, "d")
    running = asyncio.ensure_future(agent.run(listening))
    visitor = await Visitor.at(LocalLink(str(path)))
    try:
        yield agent, visitor
    finally:
        for kernel in await visitor.request("list"):
            await visitor.request("stop", kernel=kernel["kernel"], grace=0, forget=True, force=True)
        agent.leave()
        await asyncio.wait_for(running, DEADLINE)
        visitor.close()


async def echoed(reader: Reader, writer: Writer, data: bytes) -> bytes:
    """Send *data* on a fresh stream, and return what comes back."""
    flow, got = Flow(), b""
    flow.push(data)
    while (put := flow.next_frame()) is not None:
        writer.write(put)
    while len(got) < len(data):
        got += b"".join(flow.feed(await asyncio.wait_for(reader.read(1 << 16), DEADLINE)))
    return got


async def written(path: Path) -> Any:
    """Wait until *path* exists, and return the JSON or the text in it."""
    await until(f"{path} exists", path.exists)
    text = path.read_text()
    try:
        return json.loads(text)
    except ValueError:
        return text


def alive(pid: int) -> bool:
    """Whether the process *pid* runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")


def end_agents(cache: Path) -> None:
    """End all agents whose folder is below *cache*, or is it, and their kernels."""
    for path in (*cache.glob("eg-distributed/*/*.sock"), *cache.glob("agent-*.sock")):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(path))
            _end(connection)


def _end(connection: socket.socket) -> None:
    connection.sendall(encode({"type": "control", "gateway": "the end", "incarnation": "1"}))
    with connection.makefile("rb") as file:

        def ask(number: int, method: str, params: Message) -> Any:
            connection.sendall(encode({"id": number, "method": method, "params": params}))
            while True:
                message = hear()
                if message.get("id") == number:
                    return message.get("result")

        def hear() -> Message:
            (length,) = struct.unpack(">I", file.read(4).rjust(4, b"\0"))
            if not length:
                raise ConnectionError
            message: Message = json.loads(file.read(length))
            return message

        hear()
        pid = ask(1, "ping", {})["pid"]
        descriptor = os.pidfd_open(pid)
        try:
            for number, kernel in enumerate(ask(2, "list", {}), 3):
                ask(number, "stop", {"kernel": kernel["kernel"], "grace": 0, "forget": True, "force": True})
            ask(1000, "leave", {})
            if not select.select([descriptor], [], [], 5)[0]:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
