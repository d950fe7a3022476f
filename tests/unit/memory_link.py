"""Links to an agent that is this very process: every step of an exchange is the test's own, and no socket is in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from eg_distributed.link.links import Link
from eg_distributed.wire import Message, Reader, Writer, encode

from .malformed_agent import WELCOME, honest

Answers = Callable[[Message], list[bytes]]


class MemoryLink(Link):
    """A link whose control connection, the first one, is answered by *answers*; later ones are not to be had."""

    def __init__(self, answers: Answers = honest, greeting: Message = WELCOME) -> None:
        self.answers = answers
        self.greeting = greeting
        self.reader: asyncio.StreamReader  # of the control connection
        self.asked: list[str] = []  # methods, in order
        self.streams_refused = 0
        self._closed = asyncio.Event()
        self._greeted = False

    async def open(self) -> tuple[Reader, Writer]:
        """Open the control connection; raises ConnectionError for every later one."""
        if self._greeted:
            self.streams_refused += 1
            raise ConnectionError("the agent's socket is gone")
        self._greeted = True
        self.reader = asyncio.StreamReader()
        self.reader.feed_data(encode(self.greeting))
        return self.reader, self._Writer(self)

    def close(self) -> None:
        """Tell those who wait for it."""
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait for `close`."""
        await self._closed.wait()

    def lose(self) -> None:
        """End the control connection, behind what was said on it."""
        if not self.reader.at_eof():
            self.reader.feed_eof()

    def take(self, message: Message) -> None:
        """Answer one message of the gateway's."""
        if "method" in message:
            self.asked.append(message["method"])
            for answer in self.answers(message):
                self.reader.feed_data(answer)

    class _Writer:
        def __init__(self, link: MemoryLink) -> None:
            self._link = link
            self._messages = MessageCutter()

        def write(self, data: bytes) -> None:
            for message in self._messages.cut(data):
                self._link.take(message)

        async def drain(self) -> None:
            pass

        def close(self) -> None:
            pass


class MessageCutter:
    """Cuts what was written into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def cut(self, data: bytes) -> list[Message]:
        """Return the messages that *data* completes."""
        self._rest += data
        messages = []
        while len(self._rest) >= 4 and len(self._rest) >= 4 + (size := int.from_bytes(self._rest[:4], "big")):
            messages.append(json.loads(self._rest[4 : 4 + size]))
            self._rest = self._rest[4 + size :]
        return messages
