"""What is known of active faults: a note for each in the lab's folder, written before anything is done.

A note holds the undoing steps themselves, so that whoever reads it can heal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import files
from lab.processes import Process

LOCK_SECONDS = 150.0
"""Longer than the slowest fault takes to be inflicted on all nodes, which are met at once: two mechanisms of half a minute, and
their undoing."""


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


def alive(owner: list[int] | None) -> bool:
    """Return True if the owner lives, or if the fault has no owner."""
    return owner is None or bool(Process(*owner).status)


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
        with files.held(self.folder / "lock", seconds):
            yield
