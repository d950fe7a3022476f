"""The lab's folder on this machine: keys and files made from them. A cache: labels are the truth about a docker lab."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lab import files
from lab.errors import LabConflict
from lab.names import is_name

LOCK_SECONDS = 900.0
"""How long a second `lab up` of the same name waits for the first: longer than the slowest first build of images."""


def _root(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    base = Path(value) if value.startswith("/") else Path.home() / fallback
    return base / "eg_distributed_lab"


def state_root() -> Path:
    """Where the labs' folders are: `$XDG_STATE_HOME/eg_distributed_lab`."""
    return _root("XDG_STATE_HOME", ".local/state")


def cache_root() -> Path:
    """Where downloads and environments are that outlive labs: `$XDG_CACHE_HOME/eg_distributed_lab`."""
    return _root("XDG_CACHE_HOME", ".cache")


def locks_root() -> Path:
    """Where the locks of labs and of what they share are: below the cache, since a lock outlives its lab's folder."""
    return cache_root() / "locks"


def lab_folders() -> list[Path]:
    """Return the folders of this user's labs; others below the same root are somebody else's."""
    root = state_root()
    return sorted(each for each in root.iterdir() if each.is_dir() and is_name(each.name)) if root.is_dir() else []


class StateFolder:
    """The folder of one lab; made when it is first written to, gone after `lab down`."""

    def __init__(self, lab: str) -> None:
        self.path = state_root() / lab
        self.identity = self.path / "id_ed25519"
        self.certificate = self.path / "id_ed25519-cert.pub"
        self.authority = self.path / "authority"
        self.no_gateway = self.path / "no-gateway"
        """There in a lab whose topology asks for no gateway, so that `up` doesn't take it for half-made."""
        self.driver = self.path / "driver"
        """`docker` or `local`: whose lab this folder is, for who looks while the engine is away."""
        self.engine = self.path / "engine"
        """The id of the container engine that a docker lab is on: another one knows nothing of it."""
        self.pool = self.path / "pool"
        """The network that the lab's own is taken of, if its lab.toml names one."""
        self.wanted = self.path / "wanted.json"
        """What an `up` that has not ended yet makes of the lab, for the one that goes on from there."""
        self.host_keys = self.path / "host_keys"
        self.known_hosts = self.path / "known_hosts"
        self.ssh_config = self.path / "ssh_config"

    @property
    def made_by(self) -> str | None:
        """The driver that made this lab, by the folder; None where it doesn't say."""
        try:
            return self.driver.read_text().strip() or None
        except OSError:
            return None

    @property
    def on_engine(self) -> str | None:
        """The id of the engine that the lab is on, by the folder; None where it doesn't say."""
        try:
            return self.engine.read_text().strip() or None
        except OSError:
            return None

    @property
    def of_pool(self) -> str:
        """The pool that the lab's lab.toml names; empty where it names none."""
        try:
            return self.pool.read_text().strip()
        except OSError:
            return ""

    def write(self, path: Path, text: str) -> None:
        """Write *path* at once or not at all, so that an ssh that reads meanwhile sees one whole version."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write(path, text)

    def remove(self) -> bool:
        """Delete the folder; say whether there was one."""
        there = self.path.exists()
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()
        return there


@contextlib.contextmanager
def locked(name: str, *, what: str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock *name* among all processes of this user; raise LabConflict when it isn't free in time."""
    folder = locks_root()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.held(folder / f"{name}.lock", seconds))
        except files.Busy:
            raise LabConflict(
                f"{what} is busy",
                cause=f"another process has worked on it for {seconds:.0f} s",
                remedy="wait for it, or end it",
            ) from None
        yield
