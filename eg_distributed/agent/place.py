"""An agent's place: its folder and its socket's name there. Caches are cleaned, and homes restored, while an agent runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Iterable, NamedTuple, Optional

from ..protocol import AgentIdentity
from . import identity
from .identity import FILE
from .records import RECORD

OURS, GONE, TAKEN = "ours", "gone", "taken"
"""What a socket's name may lead to: the agent's own socket, nothing that listens, another agent."""
BACKLOG = 1024
"""Connections that may wait to be accepted: a gateway that comes back opens one for each stream at once."""


class Look(NamedTuple):
    """What was found at a place."""

    name: str
    """OURS, GONE or TAKEN."""
    is_whole: bool
    """Whether the folder and the identity are there."""
    missing: list[Path]
    """Folders of kernels without a record."""


class Place:
    """The place of the agent with identity *who*, which listens at *path*; all methods are called in threads."""

    def __init__(self, who: AgentIdentity, path: Path) -> None:
        self._who = who
        self._folder = Path(who.folder)
        self._path = path
        self._socket = _inode(path)

    def claim(self) -> None:
        """Take what has the socket's name now for the agent's own."""
        self._socket = _inode(self._path)

    def look(self, kernels: Iterable[Path]) -> Look:
        """Look at the place, and at the folders of *kernels*; raises OSError where nothing can be told."""
        found = _inode(self._path)
        name = OURS
        if found is None or found != self._socket:
            name = TAKEN if found is not None and _answers(self._path) else GONE
        missing = [folder for folder in kernels if not (folder / RECORD).exists()]
        return Look(name, (self._folder / FILE).exists() and (self._folder / "k").is_dir(), missing)

    def mend(self) -> None:
        """Make the folder again, and what is in it but kernels; raises OSError."""
        (self._folder / "k").mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise OSError(0, f"{self._folder} is not a folder of this user")
        self._folder.chmod(0o700)
        if not (self._folder / FILE).exists():
            identity.keep(self._who)

    def bind(self) -> Optional[socket.socket]:
        """Return a socket that listens under the agent's name; None where a login is just bringing up an agent there.

        Raises OSError.
        """
        with open(os.open(self._folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return None
            if _answers(self._path):
                return None
            listening = listen(self._path)
            self.claim()
            return listening

    def leave(self) -> None:
        """Remove the socket's name, unless it is another agent's by now; raises nothing."""
        with contextlib.suppress(OSError):
            if _inode(self._path) == self._socket:
                os.unlink(self._path)


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at *path*, whatever was there; raises OSError.

    It is bound under a name of its own and then moved, so that whoever sees the real name can connect.
    """
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(temporary)
        listening.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError:
        listening.close()
        raise
    return listening


def _inode(path: Path) -> Optional[tuple[int, int]]:
    """Return which file has the name *path*, None for none; raises OSError where that can't be told."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _answers(path: Path) -> bool:
    """Whether an agent listens at *path*; one whose queue is full does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True
