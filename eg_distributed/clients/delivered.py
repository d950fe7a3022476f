"""What each client's session has got, on disk beside what the server itself keeps: its next process cuts by it.

Written by a thread of its own, the latest state alone and four times a second at most: clients confirm up to twenty. But a new
session is written at once: it has to be known to be waited for. Needs no server.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_REPLIES = 100  # ids of replies that are remembered for each session
_MOST = 64 * 1024  # bytes of a file that is read
_STALE = 30 * 86400.0  # seconds after which a kernel's folder is removed that nobody has written to
_MANY = 10_000  # sessions that are remembered at once
_PAUSE = 0.25  # seconds between two rounds of writing
_PRUNE_EVERY = 86400.0


@dataclass
class Got:
    """What a session has got."""

    output: str = ""
    """The id of the last message on iopub; empty: none yet."""
    replies: deque[str] = field(default_factory=lambda: deque(maxlen=_REPLIES))
    """The ids of the last replies."""
    path: Path | None = field(default=None, compare=False)
    """Its file."""
    is_new: bool = field(default=True, compare=False)
    """Whether there is no such file yet."""

    def content(self) -> tuple[str, list[str]]:
        """Return what is written of it."""
        return self.output, list(self.replies)


def _name(text: str) -> str:
    """Return a file's name for what a client has named."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


class Delivered:
    """What sessions have got, by kernel and session; *folder* None: nothing is kept. Called on the server's loop."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._got: dict[tuple[str, str], Got] = {}
        self._changed: dict[Path, Got | None] = {}  # what is to be written; None: removed
        self._news = threading.Condition()  # for that, and what is in each Got
        self._is_hurried = False
        self._has_new = False  # a session, which nobody would wait for if the server were killed now
        self._is_writing = False
        if folder is not None:
            threading.Thread(target=self._write, name="delivered", daemon=True).start()

    @property
    def is_kept(self) -> bool:
        """Whether anything is kept at all."""
        return self._folder is not None

    def sessions(self, kernel: str) -> set[str]:
        """Return the names, as `name_of` has them, of the sessions that an earlier process had for *kernel*."""
        if self._folder is None:
            return set()
        with contextlib.suppress(OSError):
            return {path.name for path in (self._folder / _name(kernel)).iterdir() if not path.suffix}
        return set()

    @staticmethod
    def name_of(session: str) -> str:
        """Return what `sessions` calls *session*."""
        return _name(session)

    def got(self, kernel: str, session: str) -> Got:
        """Return what *session* has got."""
        found = self._got.get((kernel, session))
        if found is None:
            if len(self._got) >= _MANY:
                self._got.pop(next(iter(self._got)))
            found = self._got[kernel, session] = self._read(kernel, session)
        return found

    def _read(self, kernel: str, session: str) -> Got:
        got = Got()
        if self._folder is not None:
            got.path = self._folder / _name(kernel) / _name(session)
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
                with got.path.open("rb") as file:
                    read: Any = json.loads(file.read(_MOST))
                got.output = str(read["output"])[:256]
                got.replies.extend(str(each)[:256] for each in read["replies"])
                got.is_new = False
        return got

    def note(self, kernel: str, session: str, output: str, replies: list[str]) -> None:
        """*session* has got the messages on iopub up to *output* (empty: as before), and *replies*."""
        if self._folder is None:
            return
        got = self.got(kernel, session)
        with self._news:
            got.output = output or got.output
            got.replies.extend(replies)
        self._put(got.path or self._folder / _name(kernel) / _name(session), got)

    def forget(self, kernel: str, session: str | None = None) -> None:
        """Forget *session*, which has ended, or all of *kernel*'s."""
        for each in [each for each in self._got if each[0] == kernel and session in (None, each[1])]:
            del self._got[each]
        if self._folder is not None:
            folder = self._folder / _name(kernel)
            self._put(folder if session is None else folder / _name(session), None)

    def read_again(self, kernel: str) -> None:
        """Have what sessions of *kernel* have got read from disk, when it is next asked for: another gateway had them."""
        for each in [each for each in self._got if each[0] == kernel]:
            del self._got[each]

    # -- the thread ----------------------------------------------------------------------------------------------

    def _put(self, path: Path, got: Got | None) -> None:
        with self._news:
            if got is None:
                for each in [each for each in self._changed if path in each.parents]:
                    del self._changed[each]
            is_news = path not in self._changed
            self._changed[path] = got
            self._has_new = self._has_new or (got is not None and got.is_new)
            if is_news:
                self._news.notify_all()

    def settled(self, seconds: float) -> bool:
        """Have all be written now, and wait for that, up to *seconds*: at the server's end."""
        with self._news:
            self._is_hurried = True
            self._news.notify_all()
            is_settled = self._news.wait_for(lambda: not self._changed and not self._is_writing, seconds)
            self._is_hurried = False
            return is_settled

    def _write(self) -> None:
        pruned = -math.inf
        while True:
            if time.monotonic() - pruned > _PRUNE_EVERY:
                pruned = time.monotonic()
                with contextlib.suppress(OSError):
                    self._prune()
            with self._news:
                self._news.wait_for(lambda: bool(self._changed), _PRUNE_EVERY)
                self._is_writing = bool(self._changed)
                batch = {path: None if got is None else got.content() for path, got in self._changed.items()}
                for got in self._changed.values():
                    if got is not None:
                        got.is_new = False
                self._has_new = False
                self._changed.clear()
            for path, content in batch.items():
                with contextlib.suppress(OSError):  # what can't be noted may come twice
                    self._write_one(path, content)
            with self._news:
                self._is_writing = False
                self._news.notify_all()
                self._news.wait_for(lambda: (self._is_hurried or self._has_new) and bool(self._changed), _PAUSE)

    def _write_one(self, path: Path, content: tuple[str, list[str]] | None) -> None:
        if content is None:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
                path.parent.rmdir()
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(".part")  # a process that is killed leaves what was there whole
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        output, replies = content
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps({"output": output, "replies": replies}).encode())
        part.replace(path)

    def _prune(self) -> None:
        """Remove what nobody has written to for long: sessions of kernels that run on, and kernels that are gone."""
        assert self._folder is not None
        for folder in list(self._folder.iterdir()):
            with contextlib.suppress(OSError):  # of one folder that is none of ours, say
                for path in list(folder.iterdir()):
                    if time.time() - path.stat().st_mtime > _STALE:
                        path.unlink()
                if time.time() - folder.stat().st_mtime > _STALE:
                    shutil.rmtree(folder, ignore_errors=True)
