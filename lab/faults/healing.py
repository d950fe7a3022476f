"""Faults that are there: seen and healed, from any process, at any time."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lab.drivers.machines import Machine
from lab.errors import LabConflict, LabError, LabNotFound
from lab.faults import guard, reach
from lab.faults.notes import Note, Notes
from lab.files import Busy
from lab.inventory import Inventory, look
from lab.names import short_name

if TYPE_CHECKING:
    from types import TracebackType

IDENTITY = re.compile(r"[0-9a-f]{8}")
"""What ids are: see inject.py."""
NOTING = threading.Lock()
"""For the one note that several nodes' threads write to."""


class Fault:
    """One active fault; heals when left as a context manager."""

    def __init__(self, lab: Inventory, note: Note) -> None:
        self._lab = lab
        self._note = note
        self.id = note.id
        self.name = note.name
        self.nodes = tuple(note.nodes)
        self.options: Mapping[str, Any] = note.options
        self.mechanism = " + ".join(dict.fromkeys(note.mechanisms.values()))
        """How it is done here; several, if nodes differ."""
        self.mechanisms: Mapping[str, str] = note.mechanisms
        self.owner = note.owned_by
        self.added = note.added
        self.expires = note.expires
        """UNIX seconds, None for a fault without a duration."""

    def __repr__(self) -> str:
        return f"<Fault {self.id} {self.name} on {', '.join(self.nodes)}: {self.mechanism}>"

    def __enter__(self) -> Fault:  # noqa: PYI034 -- Self needs a newer Python than 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()

    @property
    def active(self) -> bool:
        """Whether it is still to be healed, asked now."""
        return any(note.id == self.id for note in Notes(self._lab.folder.path).read())

    def heal(self) -> None:
        """Undo it now, on all its nodes; fine if it is healed already."""
        heal_note(self._lab, self._note, "healed")

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab fault ls --json` prints: a contract that only grows."""
        return {
            "id": self.id,
            "name": self.name,
            "nodes": list(self.nodes),
            "options": {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items()},
            "mechanism": self.mechanism,
            "owner": self.owner,
            "added": self.added,
            "expires": self.expires,
        }


@lru_cache(maxsize=8)
def see(name: str) -> Inventory:
    """Return what the lab *name* has, looked up once; called by the watchdog."""
    return look(name)


def record(lab: Inventory, kind: str, note: Note, **more: Any) -> None:
    """Put a line into the lab's events."""
    from lab import events

    events.record(
        lab.name,
        kind,
        fault=note.name,
        id=note.id,
        nodes=note.nodes,
        options=note.options,
        mechanism=" + ".join(dict.fromkeys(note.mechanisms.values())),
        owner=note.owned_by,
        expires=note.expires,
        **more,
    )


@contextmanager
def locked(lab: Inventory) -> Iterator[Notes]:
    """Hold the lab's faults among all processes; raise LabConflict when they aren't free in time, LabNotFound without a lab."""
    notes = Notes(lab.folder.path)
    try:
        with notes.locked():
            yield notes
    except Busy as error:
        raise LabConflict(
            f"the faults of {lab.name} are busy", cause=str(error), remedy="wait for it, or end it"
        ) from None
    except FileNotFoundError:
        raise LabNotFound(
            f"the lab {lab.name} has no folder here", cause=str(lab.folder.path), remedy=f"`lab up --name {lab.name}`"
        ) from None


def undo(lab: Inventory, note: Note, notes: Notes) -> None:
    """Undo *note* on its nodes as far as it goes, with the lock held; raise what stood in the way on one of them."""
    there = {machine.name: machine for machine in lab.machines}
    failures: list[LabError] = []

    def one(name: str) -> None:
        machine = there.get(name)
        if machine is not None:  # a node that is gone took its faults along
            try:
                steps = [tuple(step) for step in note.undo[name]]
                _reachable(machine, steps)
                reach.carry_out(machine, steps, elevated=name in note.elevated, undoing=True)
            except LabNotFound:
                pass
            except LabError as error:
                failures.append(error)
                return
        with NOTING:
            del note.undo[name]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, list(note.undo)))
    if note.undo:
        with suppress(FileNotFoundError):
            notes.write(note)
        raise failures[0]
    notes.remove(note.id)


def _reachable(machine: Machine, steps: Sequence[tuple[str, ...]]) -> None:
    """Raise LabError when the machine's state keeps *steps* from being undone now; the watchdog tries again."""
    state = machine.state
    if state != "running" and not (steps and steps[0][0].startswith("!")) and not machine.changes_while_down:
        remedy = f"`lab start {short_name(machine.name)}`; the lab goes on trying"
        raise LabError(f"the fault can't be healed on {machine.name}", cause=f"it is {state}", remedy=remedy)


def heal_note(lab: Inventory, note: Note, reason: str, *, check: Callable[[Note], str] | None = None) -> bool:
    """Undo one fault, whoever added it; return whether that was done. Called by Fault, `heal` and the watchdog.

    *check* says why the note, as it is once the lock is held, is to be healed; empty: it isn't any more.
    """
    try:
        with locked(lab) as notes:
            current = next((found for found in notes.read() if found.id == note.id), None)
            if current is not None and check is not None:
                reason = check(current)
            if current is None or not reason:
                return False
            undo(lab, current, notes)
    except LabNotFound:
        return False  # the lab is gone
    record(lab, "fault.healed", current, reason=reason)
    return True


def active(lab: Inventory) -> list[Fault]:
    """Return the faults that are to be healed, oldest first, whichever process added them.

    When the lab's folder knows nothing of faults (it may be new), nodes' own markers are asked.
    """
    notes = Notes(lab.folder.path)
    if not notes.folder.is_dir() and lab.folder.path.is_dir():
        _adopt(lab, notes)
    found = notes.read()
    if found:
        with locked(lab) as again:
            if again.read():
                guard.start(lab.name, lab.folder.path)
    return [Fault(lab, note) for note in found]


def _adopt(lab: Inventory, notes: Notes) -> None:
    """Take over the notes that nodes hold."""

    def look(machine: Machine) -> list[str]:
        if machine.state != "running" or not machine.keeps_notes:
            return []
        notes = f"{shlex.quote(machine.faults_folder)}/*/note.json"
        script = f'for f in {notes}; do [ -f "$f" ] && cat "$f" && printf "\\0"; done; true'
        return machine.exec(["sh", "-c", script], user="root").stdout.split("\0")

    merged: dict[str, Note] = {}
    with ThreadPoolExecutor(8) as pool:
        for text in [text for texts in pool.map(look, [*lab.nodes, *lab.services]) for text in texts]:
            with suppress(ValueError):
                note = Note.parse(text)
                if not IDENTITY.fullmatch(note.id):
                    continue  # it becomes a file's name here, and nodes are whoever's
                note.ready = True  # a marker is written before the rest, and can't tell
                known = merged.setdefault(note.id, note)
                known.undo |= note.undo
                known.claims |= note.claims
                known.mechanisms |= note.mechanisms
                known.elevated = sorted({*known.elevated, *note.elevated})
    with locked(lab):
        for note in merged.values():
            notes.write(note)


def heal(lab: Inventory, identity: str | None = None) -> list[str]:
    """Heal one fault by its id, or all, the latest first; return the ids. Raises LabNotFound for an id there isn't."""
    found = active(lab)
    chosen = [fault for fault in found if identity in {None, fault.id}]
    if identity is not None and not chosen:
        there = ", ".join(f"{fault.id} ({fault.name})" for fault in found) or "none"
        raise LabNotFound(f"the lab {lab.name} has no fault {identity}", cause=f"active: {there}")
    failures = []
    for fault in reversed(chosen):
        try:
            fault.heal()
        except LabError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return [fault.id for fault in chosen]
