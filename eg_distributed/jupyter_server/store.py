"""The records of a server's kernels, from which its next process finds them again: a private file for each kernel.

    <runtime_dir>/eg-distributed/<name>       locked by the server that has the name, see `process`
    <runtime_dir>/eg-distributed/<name>.d/    this store: KERNEL.json for each kernel, `server.json`, `sessions.db`

A record is written when the kernel has started, and removed when it is to end. It says where the kernel is, what its clients know
of it, and what a restart needs; what the kernel does is its node's to say. Each names the process that wrote it last, so that a
server whose kernel was taken over removes no record of the taker's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eg_distributed.agent.private import write_private
from eg_distributed.wire import (
    Malformed,
    Message,
    Wire,
    checked,
    flag,
    integer,
    number,
    optional,
    scalar,
    table,
    text,
    texts,
)

__all__ = ["FORMAT", "RECORDS", "Newer", "Record", "Store"]

log = logging.getLogger(__name__)

FORMAT = 1
"""What a record's fields mean; a release that changes that counts on."""
_SIZE = 1024 * 1024  # bytes of a record: a kernelspec with a long environment has some thousands
_MOST = 10_000  # records that are read
_AT_ONCE = 8  # records that are written or removed at once
_KERNEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
RECORDS = "[0-9a-f]*-*.json"
"""What records' names match where kernels have the ids that Jupyter gives them."""
_BROKEN = ".broken"
_SERVER = "server"


class Newer(ValueError):
    """A record is a later release's."""


def _any(value: Any) -> Any:
    return value


@dataclass(eq=False, repr=False)
class Record(Wire):
    """A kernel of a server, as its next process needs it."""

    kernel: str = checked(text(128))
    name: str = checked(text(1000))
    """Of its kernelspec."""
    spec: Message = checked(table(_any, 100))
    """The kernelspec itself, for a restart after it was removed or renamed."""
    host: str = checked(text(1000))
    attempt: str = checked(text(1000))
    connection: Message = checked(table(scalar, 100))
    """What clients know: sockets of this machine, and the key."""
    agent: Message | None = checked(optional(table(_any, 100)), None)
    """See `RemoteKernel.agent_kept`."""
    elsewhere: list[str] = checked(texts(1000), [])
    """Other hosts that a restart may take."""
    launched: bool = checked(flag, False)
    """Whether it stands behind a launcher."""
    resource_dir: str = checked(text(4096), "")
    launch: Message = checked(table(_any, 100), {})
    """What it was started with but its variables: its folder, and arguments."""
    env: Message = checked(table(text(1 << 17), 10_000), {})
    """The variables that were added for it; nothing of the server's own environment."""
    process: str = checked(text(100), "")
    written: float = checked(number(0, 1e12), 0.0)
    """In seconds since 1970."""
    format: int = checked(integer(1, 1 << 31), FORMAT)

    def dumped(self) -> bytes:
        """Return this as it is in its file; raises TypeError or ValueError for what JSON cannot say."""
        return json.dumps(self.write()).encode("ascii")  # names may have bytes in them that are no text

    @classmethod
    def loaded(cls, content: bytes) -> Record:
        """Return what a file says; raises Newer, or ValueError (Malformed is one) for what is broken."""
        try:
            message = json.loads(content)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(message, dict):
            raise Malformed("it holds no object")
        if isinstance(found := message.get("format"), int) and found > FORMAT:
            raise Newer(f"it has the format {found} of a later release; this one reads up to {FORMAT}")
        record = cls.read(message)
        if not _KERNEL.match(record.kernel):
            raise Malformed("its kernel's id is none")
        return record


class Store:
    """The records in *folder*, which this process alone may write to: it has the lock of the server's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = secrets.token_hex(8)
        """What records of ours have as `process`."""
        self.turns = asyncio.Semaphore(_AT_ONCE)
        """Taken by those who write or remove a record in a thread aside: hundreds of kernels may be found, or end, at once."""
        self._known: dict[str, str] = {}  # by kernel: which process had written the record when we last saw it

    def open(self) -> None:
        """Make the folder, and have others kept out of it; raises OSError where it is not ours."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.is_symlink():
            raise PermissionError(f"{self.folder} is a link, and not a folder of this user: move it away")
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if found.st_uid != os.getuid():
                raise PermissionError(f"{self.folder} is not a folder of this user: move it away")
            if found.st_mode & 0o077:
                # Kubernetes does that to a volume at each start of a pod with fsGroup: to refuse it would lose all kernels.
                os.fchmod(descriptor, 0o700)
                log.warning("%s could be entered by others: now it is this user's alone", self.folder)
        finally:
            os.close(descriptor)

    def describe(self, about: Message) -> None:
        """Have the folder say of the server what *about* does; raises OSError."""
        write_private(self.folder / f"{_SERVER}.json", json.dumps(about).encode("ascii"))

    def about(self) -> Message:
        """Return what the folder says of its server, {} where it says nothing."""
        try:
            said = json.loads((self.folder / f"{_SERVER}.json").read_bytes()[:_SIZE])
        except (OSError, ValueError, RecursionError):
            return {}
        return said if isinstance(said, dict) else {}

    @property
    def is_ours(self) -> bool:
        """Whether the folder is one, and this user's."""
        try:
            found = self.folder.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()

    @property
    def is_empty(self) -> bool:
        """Whether nothing in the folder is of a kernel."""
        return not any(path.suffix in (".json", _BROKEN) and path.stem != _SERVER for path in self.folder.iterdir())

    def touch(self) -> None:
        """Note that the server lives. Raises OSError."""
        os.utime(self.folder / f"{_SERVER}.json")

    def last_sign(self) -> float:
        """Return when the server was last heard of, in seconds since 1970. Raises OSError."""
        return max(path.stat().st_mtime for path in (self.folder, *self.folder.glob("*.json")))

    def _path(self, kernel: str) -> Path:
        if not _KERNEL.match(kernel) or kernel == _SERVER:
            raise OSError(f"no file can have the name of the kernel {kernel[:80]!r}")
        return self.folder / f"{kernel}.json"

    def write(self, record: Record) -> None:
        """Write *record* as this process's, in place of an earlier one of its kernel. Raises OSError, TypeError or ValueError."""
        record.process, record.written = self.process, time.time()
        content = record.dumped()
        if len(content) > _SIZE:
            raise ValueError(f"a record of {len(content)} bytes, at most {_SIZE} are read")
        Record.loaded(content)  # what could not be read again would be believed to be there
        path = self._path(record.kernel)
        write_private(path, content)
        for each in (
            path,
            self.folder,
        ):  # before it is believed: a new file's name may come before its content, or not at all
            descriptor = os.open(each, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._known[record.kernel] = self.process

    def drop(self, kernel: str) -> None:
        """Remove the record of a kernel that is to end, if there is one. Raises OSError."""
        self._known.pop(kernel, None)
        self._path(kernel).unlink(missing_ok=True)

    def drop_taken(self, kernel: str) -> None:
        """Remove the record of a kernel that another server has, unless that one has written it since. Raises OSError."""
        known = {self.process, self._known.get(kernel, self.process)}
        with contextlib.suppress(FileNotFoundError, ValueError):
            if self.read_one(self._path(kernel)).process in known:
                self.drop(kernel)

    def read_one(self, path: Path) -> Record:
        """Return the record in *path*; raises OSError, Newer, or ValueError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.getuid():
                raise PermissionError("it is another user's")
            content = file.read(_SIZE + 1)
        if len(content) > _SIZE:
            raise ValueError("it is too large")
        record = Record.loaded(content)
        if path.name != f"{record.kernel}.json":
            raise Malformed(f"it is of the kernel {record.kernel}, and named otherwise")
        return record

    def take(self, other: Store, record: Record) -> None:
        """Move *record* from the store *other* to this one. Raises OSError: FileNotFoundError if another server was first."""
        other._path(record.kernel).rename(self._path(record.kernel))
        self._known[record.kernel] = record.process

    def read(self, *, put_aside: bool = True) -> tuple[list[Record], dict[str, Exception]]:
        """Return all records, the earliest first, and by file name why others cannot be read. Raises OSError.

        A broken one is renamed if it is to be *put_aside*, and so told of once; what a later release wrote stays, for that one.
        """
        records: list[Record] = []
        errors: dict[str, Exception] = {}
        try:
            paths = sorted(path for path in self.folder.iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            return [], {}
        for path in paths[:_MOST]:
            if path.stem == _SERVER:
                continue
            try:
                record = self.read_one(path)
            except FileNotFoundError:
                continue
            except (Newer, OSError) as error:
                errors[path.name] = error
            except ValueError as error:
                errors[path.name] = error
                if put_aside:
                    with contextlib.suppress(OSError):
                        path.replace(path.with_suffix(_BROKEN))
            else:
                records.append(record)
                self._known[record.kernel] = record.process
        return sorted(records, key=lambda record: record.written), errors
