"""What a login says after it was sent the agent: the answer behind the noise of start-up files, or why there is none."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Awaitable, Callable

from eg_distributed.errors import AgentUnavailable
from eg_distributed.link.deadlines import within
from eg_distributed.protocol import SENTINEL
from eg_distributed.wire import Message, Reader, one_line

log = logging.getLogger(__name__)

BLANK_LINES = b"\n" * 3
"""Sent ahead of the agent: a start-up file that reads its input takes a line of these, and not of the agent."""
_MAX_NOISE = 32 * 1024 * 1024
"""Bytes that a login may print before the answer; they are not kept. What bounds all but a loop that prints is the time."""
_MAX_ANSWER = 65536
_SHOWN = 400
"""Characters of what a login said that an error shows."""
_KEPT = max(_SHOWN, len(SENTINEL))
_EXIT_DEADLINE = 1.0
"""Seconds that the exit code of a login which has closed its output may take."""
_PACKED, _PIECES = re.compile(rb"[A-Za-z0-9+/]{48}"), 4
"""A piece of what is sent, as no word of a shell is long; and how many of them are looked at, in each chunk that came."""

_INSTALL = (
    "install python3 (3.9 or later) on the host, or name the interpreter in Distributed.python; a forced command or a restricted "
    "shell must let it run"
)


class BootAnswer:
    """Reads the answer of one boot, for `connect`; *sent* is what the login was sent, *exit_code* waits for its end."""

    def __init__(
        self,
        stdout: Reader,
        stderr: Reader,
        host: str,
        sent: bytes,
        exit_code: Callable[[], Awaitable[int | None]],
    ) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._host = host
        self._sent = sent
        self._exit_code = exit_code
        self.noise = 0
        """Bytes that the login printed before the answer."""
        self.last_noise = ""
        """The end of those."""
        self._tail = b""  # the end of what came on stdout
        self._noise = 0  # bytes

    async def read_within(self, seconds: float) -> str:
        """Return the path of the agent's socket; raises AgentUnavailable, also where it has not come after *seconds*."""
        answer = await self.message_within(seconds)
        if not answer.get("ok") or not isinstance(answer.get("socket"), str):
            raise self._unavailable(
                f"the agent cannot run: {answer.get('error')}",
                "the agent needs Python 3.9 or later and a writable ~/.cache or /tmp on the host",
            )
        passed_over = answer.get("passed_over")
        for place in passed_over[:4] if isinstance(passed_over, list) else ():
            log.warning("%s: its agent is not in %s", self._host, one_line(str(place), 300))
        return str(answer["socket"])

    async def message_within(self, seconds: float) -> Message:
        """Return the message behind the sentinel; raises AgentUnavailable, also where it has not come after *seconds*."""
        try:
            return await within(self._read(), seconds)
        except asyncio.TimeoutError:
            raise self._silence(seconds) from None

    async def _read(self) -> Message:
        while SENTINEL not in self._tail:
            chunk = await self._stdout.read(65536)
            self._noise += len(chunk)
            self._tail = self._tail[-_KEPT:] + chunk
            if not chunk or self._noise > _MAX_NOISE or self._is_echo(chunk):
                raise await self._refusal(ended=not chunk)
        noise, _, said = self._tail.partition(SENTINEL)
        self.noise = self._noise - len(SENTINEL) - len(said)
        self.last_noise = _shown(noise)
        while b"\n" not in said:
            chunk = await self._stdout.read(65536)
            said += chunk
            if not chunk or len(said) > _MAX_ANSWER:
                raise self._unavailable(
                    "the agent's answer is cut off", "check whether the node ends what logins start"
                )
        try:
            message = json.loads(said.partition(b"\n")[0])
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self._unavailable("the agent's answer is malformed", "check what `python3` is on that host")
        return message

    def _is_echo(self, said: bytes) -> bool:
        """Return True if *said* has a piece of what was sent in it."""
        pieces = itertools.islice(_PACKED.finditer(said), _PIECES)
        return any(piece[0] in self._sent for piece in pieces)

    def _silence(self, seconds: float) -> AgentUnavailable:
        """Return the error of a login that has not answered after *seconds*."""
        said = _shown(self._tail)
        return self._unavailable(
            f"the login worked, but no agent answered in time ({seconds:g} s for its start)"
            + (f"; it printed {self._noise} bytes that are not the agent's, at last {said!r}" if said else ""),
            "check the node's load and disk, and what its start-up files do at a login: one that waits, or reads its input to "
            "the end, keeps python3 from starting",
        )

    async def _refusal(self, *, ended: bool) -> AgentUnavailable:
        """Return why no answer came: what the login said, what became of what it was sent, or how it ended."""
        complaint = await self._stderr.read(4096) if ended else b""
        if self._is_echo(complaint + self._tail):
            return self._unavailable(
                "no agent could be started: what was sent for python3 came back, so the login's start-up files replace the "
                "command by another program",
                "have them leave logins without a terminal alone, such as by `[ -t 0 ] && exec zsh`; see what "
                f"`ssh {self._host} echo hello` prints",
            )
        said = _shown(complaint) or _shown(self._tail)
        if said or not ended:
            return self._unavailable(f"no agent could be started: the login said {said!r}", _INSTALL)
        try:
            code = await within(self._exit_code(), _EXIT_DEADLINE)
        except asyncio.TimeoutError:
            code = None
        how = "ended" if code is None else f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"
        return self._unavailable(
            f"no agent could be started: the login {how} without a word",
            'check whether its start-up files end it where there is no terminal, such as by `[ -z "$PS1" ] && exit`; else '
            + _INSTALL,
        )

    def _unavailable(self, cause: str, remedy: str) -> AgentUnavailable:
        return AgentUnavailable(cause, host=self._host, remedy=remedy)


def _shown(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip()[-_SHOWN:]
