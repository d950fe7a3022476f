"""Files that several processes share: written whole or not at all, and held by one at a time."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from filelock import FileLock, Timeout

PRIVATE: Final = 0o600
"""For this user alone: what most files of a lab are, since a log or a note may hold what a kernel printed."""
SHARED: Final = 0o666
"""As the umask has it: archives that other users may read."""


@contextlib.contextmanager
def replacing(path: Path, permissions: int = PRIVATE) -> Iterator[BinaryIO]:
    """Give a new file to write, which becomes *path* when the block ends; if the block raises, *path* stays as it was.

    The new file lies beside *path*, since a rename is atomic within one file system only. Its name is hidden and random: two
    writers don't meet, no glob for `*.json` finds it, and no other user can have put a link there. Raises OSError; the folder
    of *path* has to be there.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")

    def create(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_CLOEXEC, permissions)

    with open(partial, "xb", opener=create) as file:
        try:
            yield file
            file.close()
            partial.replace(path)
        except BaseException:  # ^C included: what is half-written must not stay
            partial.unlink(missing_ok=True)
            raise


def write(path: Path, content: str | bytes, permissions: int = PRIVATE) -> None:
    """Write *content* (text as UTF-8) to *path*, whole or not at all; as `replacing`."""
    with replacing(path, permissions) as file:
        file.write(content.encode() if isinstance(content, str) else content)


class Busy(TimeoutError):
    """Another process has held a lock file for too long."""


@contextlib.contextmanager
def held(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file *path*; raise Busy when it isn't free within *seconds*, FileNotFoundError where its folder is gone.

    The kernel frees it when its holder ends, however that ends; the file itself stays.
    """
    if not path.parent.is_dir():
        # filelock would make it, and so bring the folder of a removed lab back.
        raise FileNotFoundError(path.parent)
    lock = FileLock(path, mode=PRIVATE)
    try:
        lock.acquire(timeout=seconds, poll_interval=0.02)
    except Timeout:
        raise Busy(f"{path} is held by another process") from None
    try:
        yield
    finally:
        lock.release()
