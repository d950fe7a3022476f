"""A kernelspec's folder, brought to the nodes where argv names it as `{resource_dir}`: looked at, packed, delivered.

The folder on the gateway is the truth: a copy that an operator once installed at the same path on a node is not used, since it
may be of another release, on this host and not on the next one. `"bring_folder": false` in the process proxy's config has those
used.

The other end is `agent/spec_folder.py`, which keeps each folder under its digest, so that it travels once for each change.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import os
import stat
import weakref
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .aside import aside
from .errors import AgentUnavailable, HostUnresponsive, KernelStartFailed
from .protocol import FolderAnswer, FolderHello
from .streams import CHUNK
from .wire import MAX_ANSWER, Malformed, Reader, Writer, encode, read_message

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_FILES = 5000
"""Files and folders that a kernelspec's folder may have to be brought along."""
_NOT_BROUGHT = "__pycache__"  # of the gateway's Python, and checked against times that do not travel
_DATE = (2020, 1, 1, 0, 0, 0)  # a fixed one: the same content must give the same digest on every gateway
_NAMED = 5  # entries that an error or a line of the log names
_REMEDY = (
    "move large files out of it, raise Distributed.folder_limit, or have the hosts hold the folder at the same path and set "
    '"bring_folder": false in the kernelspec\'s process proxy config'
)


@dataclass(frozen=True)
class SpecFolder:
    """A kernelspec's folder as it was at one look; made for a start, kept by the request."""

    path: str
    """On the gateway."""
    digest: str
    """SHA-256 of its archive, as hex digits: the name by which nodes know it."""
    size: int
    """Bytes of its files."""
    left_out: tuple[str, ...] = ()
    """What is not brought, and why: links that lead out of it, sockets and the like, and what cannot be read."""


class _Archive:
    """An archive's bytes, in an object that can be referred to weakly: deliveries to several nodes share one."""

    def __init__(self, content: bytes) -> None:
        self.content = content


@dataclass(frozen=True)
class _Entry:
    """A file or a folder (`name` ends in `/`) to be packed; *target* is the file that is read."""

    name: str
    target: str
    mode: int
    size: int
    changed: tuple[int, int]


class SpecFolders:
    """The kernelspecs' folders of one gateway; owned by its Cluster, used on the cluster's loop.

    *limit* is in bytes of a folder's files. Folders are read in threads of their own: a kernelspec on a mount that hangs holds up
    its own starts, until their launch timeout, and nothing else.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, tuple[list[_Entry], list[str], SpecFolder]] = {}
        self._archives: weakref.WeakValueDictionary[str, _Archive] = weakref.WeakValueDictionary()

    async def look(self, path: str, deadline: float) -> SpecFolder:
        """Return the folder *path* as it is now, *deadline* in the loop's time; packs it only if anything has changed.

        Raises KernelStartFailed for one that cannot be brought: unreadable, too large, or silent until the deadline.
        """
        return await self._in_thread(path, deadline, ("kernelspec", path), lambda: self._look(path))

    async def deliver(
        self, folder: SpecFolder, host: str, connect: Callable[[], Awaitable[tuple[Reader, Writer]]], deadline: float
    ) -> None:
        """Bring *folder* to the agent of *host*, unless it has come there meanwhile; *connect* opens a connection to the agent.

        Raises HostError, or KernelStartFailed for a folder that cannot be read any more or has changed since the look.
        """
        packing = ("archive", folder.digest)
        archive = await self._in_thread(folder.path, deadline, packing, lambda: self._archive(folder))
        try:
            sending = _send(folder.digest, archive.content, connect)
            answer = await asyncio.wait_for(sending, deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError:
            raise HostUnresponsive(
                f"the kernelspec's folder ({folder.path}, {len(archive.content)} bytes packed) was not there when the launch "
                "timeout ended",
                host=host,
                remedy="raise KERNEL_LAUNCH_TIMEOUT, or make the folder smaller",
            ) from None
        except OSError as error:
            raise HostUnresponsive(
                f"the connection was lost ({error})", host=host, remedy="check the network to the host"
            ) from error
        except ValueError as error:
            raise AgentUnavailable(
                f"its agent does not take the kernelspec's folder ({error})",
                host=host,
                remedy="see agent.log on the host",
            ) from error
        if not answer.ok:
            raise AgentUnavailable(
                f"the kernelspec's folder ({folder.path}) cannot be kept there: {answer.error}",
                host=host,
                remedy="free disk space on the host",
            )

    async def _in_thread(self, path: str, deadline: float, key: tuple[str, str], work: Callable[[], T]) -> T:
        try:
            seconds = max(deadline - asyncio.get_running_loop().time(), 0.001)
            return await asyncio.wait_for(aside((id(self), *key), work), seconds)
        except asyncio.TimeoutError:
            raise KernelStartFailed(
                f"the kernelspec's folder {path} on the gateway could not be read before the launch timeout ended",
                remedy="check the disk that it is on",
            ) from None
        except OSError as error:
            raise KernelStartFailed(
                f"the kernelspec's folder {path} on the gateway cannot be read ({error.strerror or error})",
                remedy="let the gateway's user read it",
            ) from error

    # -- in threads ----------------------------------------------------------------------------------------------

    def _look(self, path: str) -> SpecFolder:
        entries, left_out = _walk(path)
        size = sum(entry.size for entry in entries)
        if size > self._limit or len(entries) > MOST_FILES:
            count = f"more than {MOST_FILES}" if len(entries) > MOST_FILES else str(len(entries))
            raise KernelStartFailed(
                f"the kernelspec's folder {path} on the gateway is too large to be brought to a node: {size} bytes in {count} "
                f"files and folders, at most {self._limit} bytes in {MOST_FILES} are",
                remedy=_REMEDY,
            )
        known = self._known.get(path)
        if known is not None and known[:2] == (entries, left_out):
            return known[2]
        seen = entries, [*left_out]
        archive = _pack(entries, left_out, self._limit)
        digest = hashlib.sha256(archive.content).hexdigest()
        folder = SpecFolder(path, digest, size, tuple(left_out))
        if left_out:
            log.warning("kernelspec's folder %s: not brought to nodes: %s", path, named(left_out))
        self._known[path] = (*seen, folder)
        self._archives[digest] = archive
        return folder

    def _archive(self, folder: SpecFolder) -> _Archive:
        archive = self._archives.get(folder.digest)
        if archive is None:
            entries, left_out = _walk(folder.path)
            archive = _pack(entries, left_out, self._limit)
            if hashlib.sha256(archive.content).hexdigest() != folder.digest:
                self._known.pop(folder.path, None)
                raise KernelStartFailed(
                    f"the kernelspec's folder {folder.path} on the gateway was changed during the start",
                    remedy="start the kernel again",
                )
            self._archives[folder.digest] = archive
        return archive


def named(left_out: list[str] | tuple[str, ...]) -> str:
    """Return *left_out* for an error or the log: the first few, and how many more there are."""
    more = len(left_out) - _NAMED
    return ", ".join(left_out[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _walk(root: str) -> tuple[list[_Entry], list[str]]:
    """Return what is to be packed of the folder *root*, by name, and what is left out; raises OSError for *root* itself.

    Stops above MOST_FILES entries: somebody's home might have become a kernelspec's folder.
    """
    inside = os.path.realpath(root)
    entries: list[_Entry] = []
    left_out: list[str] = []
    pending = [""]
    while pending and len(entries) <= MOST_FILES:
        folder = pending.pop()
        try:
            names = sorted(os.listdir(f"{inside}/{folder}"))  # noqa: PTH208 - as text, whatever bytes are in it
        except OSError as error:
            if not folder:
                raise
            left_out.append(f"{folder} ({error.strerror})")
            continue
        for name in names:
            if name == _NOT_BROUGHT:
                continue
            relative = folder + name
            try:
                entry = _entry(inside, relative)
            except (OSError, _LeftOut) as error:
                left_out.append(f"{_printable(relative)} ({getattr(error, 'strerror', None) or error})")
                continue
            entries.append(entry)
            if entry.name.endswith("/"):
                pending.append(entry.name)
    return sorted(entries, key=lambda entry: entry.name), left_out


class _LeftOut(Exception):
    """Why an entry of a folder is not brought."""


def _entry(inside: str, relative: str) -> _Entry:
    """Return the entry *relative* of the folder *inside*; raises OSError, or _LeftOut for what is no file or folder of it."""
    path = f"{inside}/{relative}"
    target = os.path.realpath(path)
    if target != inside and not target.startswith(inside.rstrip("/") + "/"):
        raise _LeftOut("a link that leads out of the folder")
    found = Path(target).stat()
    if _printable(relative) != relative:
        raise _LeftOut("a name that is not UTF-8")
    changed = (found.st_mtime_ns, found.st_ctime_ns)
    if stat.S_ISDIR(found.st_mode):
        if target != path:
            raise _LeftOut("a link to a folder")  # copied, it might hold itself
        return _Entry(f"{relative}/", target, found.st_mode, 0, changed)
    if not stat.S_ISREG(found.st_mode):
        raise _LeftOut("neither a file nor a folder")
    if not os.access(target, os.R_OK):
        raise _LeftOut("not readable for the gateway's user")
    return _Entry(relative, target, found.st_mode, found.st_size, changed)


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _pack(entries: list[_Entry], left_out: list[str], limit: int) -> _Archive:
    """Return the archive of *entries*, *limit* bytes of content at most; what can't be read after all is added to *left_out*."""
    buffer = io.BytesIO()
    total = 0
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            info = zipfile.ZipInfo(entry.name, _DATE)
            info.external_attr = entry.mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            content = b""
            if not entry.name.endswith("/"):
                try:
                    content = _read(entry.target, limit - total)
                except OSError as error:
                    left_out.append(f"{entry.name} ({error.strerror})")
                    continue
                total += len(content)
            archive.writestr(info, content)
    return _Archive(buffer.getvalue())


def _read(path: str, limit: int) -> bytes:
    """Return the content of the file *path*; raises OSError, also if it has become something else, or has grown past *limit*."""
    # O_NONBLOCK: what was a file a moment ago may be a FIFO now, and would never open.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "no file any more")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(0, "it grows while it is read")
    return content


async def _send(digest: str, content: bytes, connect: Callable[[], Awaitable[tuple[Reader, Writer]]]) -> FolderAnswer:
    """Send an archive over a connection of its own, so that no request waits behind it; raises OSError, ValueError."""
    reader, writer = await connect()
    try:
        writer.write(encode(FolderHello(digest, len(content)).write()))
        answer = await _answer(reader)
        if answer.ok and answer.wanted:
            for start in range(0, len(content), CHUNK):
                writer.write(content[start : start + CHUNK])
                await writer.drain()
            answer = await _answer(reader)
        return answer
    finally:
        writer.close()


async def _answer(reader: Reader) -> FolderAnswer:
    message = await read_message(reader, MAX_ANSWER)
    if message is None:
        raise Malformed("it closed the connection")
    return FolderAnswer.read(message)
