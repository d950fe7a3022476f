"""Heals faults whose time is over or whose owner died: one detached process a lab, run as `watchdog.py NAME FOLDER`.

Started by `add` beside the lab, not inside nodes: it has to see owners, which are processes of this side, and to reach
nodes that are paused, killed or out of processes. It leaves when no fault is left. Killed itself, it is back with the next
call that looks at faults.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run by its path, because `-m` would load the whole lab before the fault's adder may go on. The folder of this file
    # would come first on the path then, with modules named like other people's.
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

if TYPE_CHECKING:
    from lab.faults.notes import Note

PAUSE = 0.1
"""Seconds between two looks: a duration is kept to that."""
RETRY = (0.5, 10.0)
"""First and longest pause before a healing that failed is tried again (a node that is paused or stopped, say)."""


class Patience:
    """When healing that failed is tried again, by fault."""

    def __init__(self) -> None:
        self._next: dict[str, tuple[float, float]] = {}

    def ready(self, identity: str, now: float) -> bool:
        """Say whether its turn has come."""
        return now >= self._next.get(identity, (0.0, 0.0))[0]

    def failed(self, identity: str, now: float) -> None:
        """Wait twice as long as before."""
        pause = min(self._next.get(identity, (0.0, RETRY[0] / 2))[1] * 2, RETRY[1])
        self._next[identity] = (now + pause, pause)


def _due(note: Note) -> str:
    """Say whether a note is still due: what was read without the lock may be old by now."""
    from lab.faults.notes import alive, due

    return due(note, time.time(), alive(note.owner))


def overdue(notes: list[Note], now: float, patience: Patience) -> list[tuple[Note, str]]:
    """Return what is to be healed now and why, the latest fault first."""
    from lab.faults.notes import alive, due

    found = []
    for note in sorted(notes, key=lambda note: -note.added):
        reason = due(note, now, alive(note.owner))
        if reason and patience.ready(note.id, now):
            found.append((note, reason))
    return found


def watch(name: str, folder: Path, descriptor: int) -> None:
    """Heal until nothing is left to heal, or the lab's folder is gone; *descriptor* holds the watchdog's lock."""
    from lab.faults import healing
    from lab.faults.notes import Notes
    from lab.files import Busy

    notes = Notes(folder)
    patience = Patience()
    while notes.folder.is_dir():
        for note, reason in overdue(notes.read(), time.time(), patience):
            try:
                healing.heal_note(healing.see(name), note, reason, check=_due)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the other faults have to be healed
                patience.failed(note.id, time.time())
                sys.stderr.write(f"{time.time():.3f} {note.name} {note.id}: {error}\n")
                sys.stderr.flush()
        if not notes.read():
            try:
                # Whoever adds a fault holds this lock until it has looked for a watchdog: none can slip in between.
                with notes.locked(0.0):
                    if not notes.read():
                        os.close(descriptor)
                        return
            except (Busy, FileNotFoundError):
                pass
        time.sleep(PAUSE)


def main(name: str, folder: Path) -> None:
    """Take the lock, let the starter go on, watch."""
    import fcntl

    descriptor = os.open(folder / "faults" / "watchdog", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    if os.fork():  # the lock goes with the child
        os._exit(0)
    os.setsid()
    try:
        watch(name, folder, descriptor)
    except FileNotFoundError:  # the lab is gone, and its faults with it
        return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
