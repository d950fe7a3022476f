"""Kernelspecs' folders that gateways have brought to this node: each kept under its digest, for as long as it may be of use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import stat
import time
from pathlib import Path
from typing import IO, Optional

from ..protocol import FolderAnswer, FolderHello
from ..wire import Reader, Writer, encode
from .spawning import StartError

LINK = "resource_dir"
"""The link in a kernel's own folder to the kernelspec's folder that it was started from: what a kernel uses is kept, and
this is how an agent that has restarted knows."""
SILENCE = 30.0
"""Seconds that a gateway may take for the next bytes of a folder."""
JUST_USED = 3600.0
"""Seconds after its last use within which a folder is kept whatever the bounds say: a start may be about to link to it."""
KEPT = 30 * 86400.0
"""Seconds without use after which a folder goes."""
BUDGET = 512 * 1024 * 1024
"""Bytes that folders which no kernel uses may have together."""
_BLOCK = 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class FolderMissing(StartError):
    """The kernelspec's folder that a start names is not here; its gateway brings it and asks again."""


class SpecFolders:
    """The folders below an agent's own *directory*: `f/` has one for each digest. Owned by the agent."""

    def __init__(self, directory: Path) -> None:
        self._folders = directory / "f"
        self._kernels = directory / "k"

    def find(self, digest: str) -> Optional[Path]:
        """Return where the folder *digest* is, and note its use; None for no digest. Raises FolderMissing. Called in threads."""
        if not digest:
            return None
        if not _DIGEST.match(digest):
            raise StartError(f"{digest!r} is no digest of a kernelspec's folder")
        found = self._place(digest)
        try:
            os.utime(found)
        except OSError as error:
            raise FolderMissing(f"the kernelspec's folder {digest} is not here ({error.strerror})") from None
        return found

    async def receive(self, hello: FolderHello, reader: Reader, writer: Writer) -> None:
        """Take the folder that *hello* announces, unless it is here; say how that went. Raises OSError, asyncio.TimeoutError."""
        if not _DIGEST.match(hello.digest):
            writer.write(encode(FolderAnswer(ok=False, error="no digest").write()))
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(FolderMissing):
            await loop.run_in_executor(None, self.find, hello.digest)
            writer.write(encode(FolderAnswer(ok=True, wanted=False).write()))
            return
        writer.write(encode(FolderAnswer(ok=True, wanted=True).write()))
        error = ""
        archive = self._folders / f"{os.urandom(8).hex()}.new"
        try:
            # In threads, all that is done on the disk: one that is slow must not hold up the node's kernels.
            file = await loop.run_in_executor(None, _create, archive)
            try:
                missing = hello.size
                while missing:
                    block = await _block(reader, min(missing, _BLOCK))
                    missing -= len(block)
                    await loop.run_in_executor(None, file.write, block)
            finally:
                file.close()
            await loop.run_in_executor(None, _unpack, archive, hello.digest, self._place(hello.digest))
            await loop.run_in_executor(None, self.prune)
        except (OSError, ValueError) as caught:
            error = f"{getattr(caught, 'strerror', None) or caught} ({self._folders})"
        finally:
            with contextlib.suppress(OSError):
                await loop.run_in_executor(None, archive.unlink)
        writer.write(encode(FolderAnswer(ok=not error, error=error or None).write()))
        await writer.drain()

    def _place(self, digest: str) -> Path:
        return self._folders / digest[:16]  # short, since it is seen in argv, and in tracebacks of what lies in it

    def prune(self) -> None:
        """Remove folders that nothing has used for long, and the longest unused ones above the budget.

        Called in a thread: when the agent starts, and after each folder that was brought.
        """
        if not self._folders.is_dir():
            return
        used = set()
        for link in self._kernels.glob(f"*/{LINK}"):
            with contextlib.suppress(OSError):
                used.add(os.readlink(link))
        now = time.time()
        unused = []
        for folder in self._folders.iterdir():
            with contextlib.suppress(OSError):
                age = now - folder.lstat().st_mtime
                if age > JUST_USED and str(folder) not in used:
                    unused.append((age, folder))
        room = BUDGET
        for age, folder in sorted(unused):
            room -= _size(folder)
            if age > KEPT or room < 0 or folder.suffix == ".new":  # the latter of an agent that ended in the middle
                _remove(folder)


async def _block(reader: Reader, size: int) -> bytes:
    """Return the next *size* bytes; raises OSError if there are no more."""
    try:
        return await asyncio.wait_for(reader.readexactly(size), SILENCE)
    except asyncio.IncompleteReadError:
        raise OSError(0, "the gateway closed the connection") from None


def _create(archive: Path) -> IO[bytes]:
    archive.parent.mkdir(mode=0o700, exist_ok=True)
    return open(os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")


def _unpack(archive: Path, digest: str, place: Path) -> None:
    """Unpack *archive* to *place*, whole or not at all; raises OSError, and ValueError for one that is not *digest*'s."""
    import hashlib  # here: an agent that gets no folder starts faster without them
    import zipfile

    checksum = hashlib.sha256()
    with open(archive, "rb") as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
    if checksum.hexdigest() != digest:
        raise ValueError("what came is not what was announced")
    partial = place.with_name(f"{os.urandom(8).hex()}.new")
    partial.mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                parts = info.filename.rstrip("/").split("/")
                if any(part in ("", ".", "..") for part in parts):
                    raise ValueError(f"{info.filename!r} is no name for a file of a kernelspec's folder")
                path = partial.joinpath(*parts)
                if info.filename.endswith("/"):
                    path.mkdir(mode=0o700, parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Not writable: a kernel that writes beside itself would change what others of its digest start from.
                mode = 0o500 if info.external_attr >> 16 & 0o111 else 0o400
                with packed.open(info) as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target, _BLOCK)
                path.chmod(mode)
        os.rename(partial, place)
    except BaseException as error:
        _remove(partial)
        # zipfile and what it decompresses with have a dozen types for an archive that is malformed.
        if isinstance(error, Exception) and not isinstance(error, (OSError, ValueError)):
            raise ValueError(f"the archive cannot be read ({error})") from error
        if not (isinstance(error, OSError) and place.is_dir()):  # else another delivery was quicker
            raise


def _size(folder: Path) -> int:
    """Return the bytes of what is in *folder*, or of the file."""
    total = 0
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(OSError):
            found = path.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
