"""The folder in which a server keeps its hosts' kernelspecs: as Jupyter reads kernelspecs, and what each host has answered.

It is one more folder of the server's KernelSpecManager, whatever class that is of, so that nothing of ours stands between a
client and its kernelspecs, and the next server has them before any host has answered. Answers are those of all servers with the
same hosts and settings; kernelspecs are each server's own, since two that have heard of their hosts at different times would take
them away from each other. Files change whole. Only in threads: it is in somebody's home.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eg_distributed.kernelspecs.host_kernelspecs import Offered
from eg_distributed.protocol import HostKernelspecs
from eg_distributed.settings import Distributed
from eg_distributed.wire import MAX_ANSWER

log = logging.getLogger(__name__)

CURRENT = "current"
"""The link to the folder of the server that was started last: a JUPYTER_PATH for programs that are no server."""
_PARENT = "eg-distributed"
_STEM = "hosts-"
_NAMES = "names.json"
_KEPT = 30 * 86400.0  # seconds for which a folder stays that no server uses
_LEFT = 3600.0  # seconds after which a file that was being written is one of a server that was killed
_WHAT_COUNTS = ("kernelspec_environments", "user", "port", "ssh_config")
"""The settings that a host's answer depends on, beside the hosts."""


class KernelspecFolder:
    """A folder below *data_dir*, of Jupyter's user, for *hosts* and *settings*; a KernelSpecManager looks into `kernels`.

    *server* is the server's name, which it has again when it is started again.
    """

    def __init__(self, data_dir: str, hosts: Iterable[str], settings: Distributed, server: str) -> None:
        about = [[*hosts], *(getattr(settings, name) for name in _WHAT_COUNTS)]
        self._parent = Path(data_dir) / _PARENT
        self._hosts = self._parent / (_STEM + _token(json.dumps(about)))
        self.path = self._hosts / _token(server)
        self.kernels = self.path / "kernels"
        self._answers = self._hosts / "answers"

    def open(self) -> None:
        """Make the folder, point the link to it, and remove those that have not been used for long; raises OSError."""
        for folder in (self._parent, self._hosts, self._answers, self.path, self.kernels):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._note_use()
        try:
            with _new_name(self._parent / CURRENT) as name:
                name.symlink_to(self.path.relative_to(self._parent))
                name.replace(self._parent / CURRENT)
        except OSError as error:  # for other programs alone
            log.warning("%s cannot lead to the hosts' kernelspecs: %s", self._parent / CURRENT, error)
        for other in (*self._parent.glob(f"{_STEM}*"), *self._parent.glob(f"{_STEM}*/*")):
            with contextlib.suppress(OSError):  # another server removes it as well
                if other.name != self._answers.name and time.time() - other.lstat().st_mtime > _KEPT:
                    shutil.rmtree(other)

    def _note_use(self) -> None:
        for folder in (self._hosts, self.path):
            os.utime(folder)

    # -- what hosts have answered ----------------------------------------------------------------------------------

    def answer(self, host: str) -> HostKernelspecs | None:
        """Return what *host* has answered last, as it was kept; None if there is nothing, or nothing of ours. Raises OSError."""
        try:
            with self._answer(host).open("rb") as file:
                content = file.read(2 * MAX_ANSWER)
            return HostKernelspecs.read(json.loads(content))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:  # Malformed is a ValueError
            log.info("what %s has said of its kernelspecs before cannot be read: %s", host, error)
            return None

    def keep(self, host: str, answer: HostKernelspecs) -> None:
        """Keep *answer* of *host* for the next server; raises OSError."""
        self._answers.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it
        _write(self._answer(host), json.dumps(answer.write()).encode())

    def _answer(self, host: str) -> Path:
        return self._answers / f"{_token(host)}.json"

    # -- kernelspecs -----------------------------------------------------------------------------------------------

    def names(self) -> dict[str, str]:
        """Return which name each kernelspec of before has, by what tells it from others; raises OSError."""
        try:
            found: Any = json.loads((self.path / _NAMES).read_bytes()[: 2 * MAX_ANSWER])
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: name for key, name in found.items() if isinstance(name, str)}

    def write(self, offered: Iterable[Offered]) -> bool:
        """Have the folder hold just what is *offered*, and return True if that is a change; raises OSError.

        What somebody else has put there is removed, unless its name says that it is no kernelspec. What cannot be written or
        removed keeps nothing else from it.
        """
        wanted = {each.name: each for each in offered}
        is_changed, failure = False, None
        self.kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, each in wanted.items():
            try:
                is_changed = self._write_one(self.kernels / name, each) or is_changed
            except OSError as error:
                failure = error
        for path in _visible(self.kernels):
            if path.name not in wanted:
                try:
                    if path.is_dir():
                        (path / "kernel.json").unlink(missing_ok=True)  # at once; who reads it now has it or has it not
                    _remove(path)
                    is_changed = True
                except OSError as error:
                    failure = error
        names = {each.key: each.name for each in wanted.values()}
        _write(self.path / _NAMES, json.dumps(names).encode())
        self._note_use()
        if failure is not None:
            raise failure
        return is_changed

    def _write_one(self, folder: Path, each: Offered) -> bool:
        if folder.is_symlink() or not folder.is_dir():
            _remove(folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        is_changed = False
        # The pictures first: a kernelspec is there with its kernel.json.
        files: Mapping[str, bytes] = {**dict(each.logos), "kernel.json": each.kernel_json.encode()}
        for file, content in files.items():
            is_changed = _write(folder / file, content) or is_changed
        for path in _visible(folder):
            if path.name not in files:
                _remove(path)
                is_changed = True
        return is_changed


def _token(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _visible(folder: Path) -> list[Path]:
    """Return what is in *folder*, but hidden files, which are others' (.DS_Store); remove what a killed server left."""
    found = []
    for path in folder.iterdir():
        if not path.name.startswith("."):
            found.append(path)
        elif path.suffix == ".new":
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _LEFT:
                    path.unlink()
    return found


def _remove(path: Path) -> None:
    """Remove *path*, whatever it is; raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> bool:
    """Have *path* hold *content*, whole at any time, and return True if it did not before; raises OSError."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return False
    if path.is_dir() and not path.is_symlink():
        _remove(path)
    with _new_name(path) as name:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        name.replace(path)
    return True


@contextlib.contextmanager
def _new_name(path: Path) -> Iterator[Path]:
    """A name beside *path* that nothing has, and that nothing has afterwards."""
    name = path.with_name(f".{secrets.token_hex(8)}.new")
    try:
        yield name
    finally:
        name.unlink(missing_ok=True)
