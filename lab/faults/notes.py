"""What is known of active faults: a note for each in the lab's folder, written before anything is done.

A note holds the undoing steps themselves, so that whoever reads it can heal. Standard library only: the watchdog reads
notes without loading the lab.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import files

LOCK_SECONDS = 150.0
"""Longer than the slowest fault takes to be inflicted on all nodes, which are met at once: two mechanisms of half a minute, and
their undoing."""


class Busy(TimeoutError):
    """Somebody else has worked on the lab's faults for too long."""


@dataclass
class Note:
    """One active fault. *undo*, *claims* and *mechanisms* are by node; *owner* is (pid, start time) or None.

    *added* and *expires* are UNIX seconds. *elevated*: the nodes whose steps need capabilities. *ready*: it holds on all nodes.
    """

    id: str
    name: str
    nodes: list[str]
    options: dict[str, Any]
    seed: int
    added: float
    expires: float | None
    owner: list[int] | None
    owned_by: str
    mechanisms: dict[str, str] = field(default_factory=dict)
    undo: dict[str, list[list[str]]] = field(default_factory=dict)
    elevated: list[str] = field(default_factory=list)
    claims: dict[str, list[str]] = field(default_factory=dict)
    ready: bool = False

    def text(self) -> str:
        """Return it as JSON; also the marker inside nodes."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def parse(cls, text: str) -> Note:
        """Read one back; raise ValueError for what is none."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from error


def started(pid: int) -> int | None:
    """Return the start time of a process in ticks since boot, None if there is none (or only its remains)."""
    try:
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def alive(owner: list[int] | None) -> bool:
    """Say whether an owner lives; nobody's faults live on."""
    return owner is None or started(owner[0]) == owner[1]


def due(note: Note, now: float, living: bool) -> str:
    """Return why *note* is to be healed now, empty if it isn't. The watchdog's only decision, made with the faults' lock held.

    Whoever inflicts a fault holds that lock until it is ready: one that isn't has lost its maker amid its making.
    """
    if not note.ready:
        return "half inflicted"
    if not living:
        return "owner died"
    if note.expires is not None and now >= note.expires:
        return "duration over"
    return ""


class Notes:
    """The notes of one lab, in `faults/` of its folder."""

    def __init__(self, lab_folder: Path) -> None:
        self.folder = lab_folder / "faults"

    def read(self) -> list[Note]:
        """Return all, oldest first; half of one is none."""
        found = []
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                found.append(Note.parse(path.read_text()))
        return sorted(found, key=lambda note: note.added)

    def write(self, note: Note) -> None:
        """Keep a note, at once or not at all."""
        files.write(self.folder / f"{note.id}.json", note.text())

    def remove(self, identity: str) -> None:
        """Forget a fault that is healed."""
        (self.folder / f"{identity}.json").unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold the lab's faults among all processes; raise Busy, or FileNotFoundError when the lab's folder is gone."""
        if not self.folder.parent.is_dir():
            raise FileNotFoundError(self.folder.parent)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with take(self.folder / "lock", seconds):
            yield


@contextlib.contextmanager
def take(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock file; raise Busy when it isn't free within *seconds*. The kernel frees it when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise Busy(f"{path} is held by another process") from None
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
