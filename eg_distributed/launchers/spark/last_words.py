"""What a JVM said last, for the error that tells of its end: the few lines that name the cause, without the stack."""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from typing import Iterable

_KEPT = 200  # lines that are remembered: a stack and what stands above it
_TOLD = 6  # lines that are told
_WIDTH = 400  # characters of a line
_TAIL = 256 << 10  # bytes of a log that are read
_STACK = re.compile(r"\s+at [\w$.<>/]+|\s*\.\.\. \d+ more")
_FIRST = re.compile(r"unresolved dependency|UNRESOLVED DEPENDENCIES|^\s*::? ?[\w.-]+#[\w.-]+;\S+: not found")
_NOISE = re.compile(
    r"^\W*$|^:: |^Using Spark's default log4j|^Setting default log level|^To adjust logging level|\bWARN\b|\bINFO\b"
)
_ERROR = re.compile(r"\bERROR\b\s*(?P<said>.*)")


class LastWords:
    """The end of what a process printed; `add` is called by one thread, for each line."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._lines: deque[str] = deque(lines, maxlen=_KEPT)

    def add(self, line: str) -> None:
        """Remember *line*."""
        self._lines.append(line)

    def told(self) -> list[str]:
        """Return the lines that say why it ended, at most six: no stack, and a dependency that is missing first."""
        lines = [line.strip()[:_WIDTH] for line in self._lines if not _STACK.match(line)]
        lines = [line for line in lines if not _NOISE.search(line)] or [line for line in lines if line]
        first = list(dict.fromkeys(line for line in lines if _FIRST.search(line) and "#" in line))
        return first[:_TOLD] or lines[-_TOLD:]

    def errors(self) -> list[str]:
        """Return what was logged as an error, each once, at most three."""
        found = [match["said"].strip()[:_WIDTH] for match in map(_ERROR.search, self._lines) if match is not None]
        return list(dict.fromkeys(found))[:3]


class Log:
    """A log that other processes append to, from where it ends now; *descriptor* is open for writing.

    Read by its name, not through a pipe of ours: a driver that logs must not wait for a kernel that is busy.
    """

    def __init__(self, descriptor: int) -> None:
        self._path = f"/proc/self/fd/{descriptor}"
        self._start = self._size()

    def words(self) -> LastWords:
        """Return what has been logged since; nothing where the log is no file."""
        with contextlib.suppress(OSError):
            if os.path.isfile(self._path):
                with open(self._path, "rb") as log:
                    end = log.seek(0, os.SEEK_END)
                    start = self._start if self._start <= end else 0  # the agent has dropped its older half
                    log.seek(max(start, end - _TAIL))
                    return LastWords(log.read(_TAIL).decode("utf-8", "replace").splitlines())
        return LastWords()

    def _size(self) -> int:
        try:
            return os.stat(self._path).st_size if os.path.isfile(self._path) else 0
        except OSError:
            return 0
