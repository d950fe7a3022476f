"""The folder in which a server keeps its hosts' kernelspecs: as Jupyter reads kernelspecs, and what each host has answered.

It is one more folder of the server's KernelSpecManager, whatever class that is of, so that nothing of ours stands between a
client and its kernelspecs, and the next server has them before any host has answered. Servers with the same hosts and settings
share one; files change whole. Only in threads: it is in somebody's home.
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

from eg_distributed.protocol import HostKernelspecs
from eg_distributed.settings import Distributed
from eg_distributed.wire import MAX_ANSWER

from .host_kernelspecs import Offered

log = logging.getLogger(__name__)

CURRENT = "current"
"""The link to the folder of the server that was started last: a JUPYTER_PATH for programs that are no server."""
_PARENT = "eg-distributed"
_STEM = "hosts-"
_KEPT = 30 * 86400.0  # seconds for which a folder stays that no server uses
_WHAT_COUNTS = (
    *("host_kernelspecs", "kernelspec_environments", "kernelspecs_shown", "kernelspecs_hidden"),
    *("kernelspec_name", "kernelspec_display_name", "user", "port", "ssh_config"),
)
"""The settings that a folder's content depends on, beside the hosts."""


class KernelspecFolder:
    """A folder below *data_dir*, of Jupyter's user, for *hosts* and *settings*; a KernelSpecManager looks into `kernels`."""

    def __init__(self, data_dir: str, hosts: Iterable[str], settings: Distributed) -> None:
        about = [[*hosts], *(getattr(settings, name) for name in _WHAT_COUNTS)]
        token = hashlib.sha256(json.dumps(about).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self._parent = Path(data_dir) / _PARENT
        self.path = self._parent / (_STEM + token)
        self.kernels = self.path / "kernels"
        self._answers = self.path / "answers"

    def open(self) -> None:
        """Make the folder, point the link to it, and remove those that have not been used for long; raises OSError."""
        for folder in (self._parent, self.path, self.kernels, self._answers):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(self.path)
        with _new_name(self._parent / CURRENT) as name:
            name.symlink_to(self.path.name)
            name.replace(self._parent / CURRENT)
        for other in self._parent.glob(f"{_STEM}*"):
            with contextlib.suppress(OSError):  # another server removes it as well
                if time.time() - other.lstat().st_mtime > _KEPT:
                    shutil.rmtree(other)

    # -- what hosts have answered ----------------------------------------------------------------------------------

    def answer(self, host: str) -> HostKernelspecs | None:
        """Return what *host* has answered last, as it was kept; None if there is nothing, or nothing that can be read."""
        try:
            with self._answer(host).open("rb") as file:
                content = file.read(2 * MAX_ANSWER)
            return HostKernelspecs.read(json.loads(content))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:  # Malformed is a ValueError
            log.info("what %s has said of its kernelspecs before cannot be read: %s", host, error)
            return None

    def keep(self, host: str, answer: HostKernelspecs) -> None:
        """Keep *answer* of *host* for the next server; raises OSError."""
        self._answers.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it
        _write(self._answer(host), json.dumps(answer.write()).encode())

    def _answer(self, host: str) -> Path:
        return self._answers / f"{hashlib.sha256(host.encode()).hexdigest()[:32]}.json"

    # -- kernelspecs -----------------------------------------------------------------------------------------------

    def write(self, offered: Iterable[Offered]) -> bool:
        """Have the folder hold just what is *offered*, and return True if that is a change; raises OSError."""
        wanted = {each.name: each for each in offered}
        is_changed = False
        self.kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, each in wanted.items():
            folder = self.kernels / name
            folder.mkdir(mode=0o700, exist_ok=True)
            # The pictures first: a kernelspec is there with its kernel.json.
            files: Mapping[str, bytes] = {**dict(each.logos), "kernel.json": each.kernel_json.encode()}
            for file, content in files.items():
                is_changed = _write(folder / file, content) or is_changed
            for path in folder.iterdir():
                if path.name not in files and not path.name.startswith("."):  # another server writes that just now
                    path.unlink()
                    is_changed = True
        for folder in self.kernels.iterdir():
            if folder.name not in wanted:
                is_changed = True
                (folder / "kernel.json").unlink(missing_ok=True)  # at once; who reads it now has it or has it not
                shutil.rmtree(folder, ignore_errors=True)
        os.utime(self.path)
        return is_changed


def _write(path: Path, content: bytes) -> bool:
    """Have *path* hold *content*, whole at any time, and return True if it did not before; raises OSError."""
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return False
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
