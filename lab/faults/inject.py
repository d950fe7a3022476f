"""Inflict faults, see which there are, heal them: from any process, at any time."""

from __future__ import annotations

import getpass
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lab.errors import LabConflict, LabError, LabNotFound, LabUsageError
from lab.faults import reach, watchdog
from lab.faults.model import Context, FaultKind, Mechanism, Moves, seconds
from lab.faults.record import Busy, Note, Notes, started
from lab.machines import Machine
from lab.names import short_name

if TYPE_CHECKING:
    from types import TracebackType

    from lab.lab import Lab

LONGEST = 7 * 24 * 3600.0
"""Seconds. A fault that should last longer is a node of another kind, not a fault."""
_NOTING = threading.Lock()
"""For the one note that several nodes' threads write to."""
NOBODY = "lab"
"""The owner of faults that belong to no process: they last until their duration ends or somebody heals them."""


class Fault:
    """One active fault; heals when left as a context manager."""

    def __init__(self, lab: Lab, note: Note) -> None:
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


def see(name: str) -> Lab:
    """Return the lab *name* without touching it: `Lab.attach` writes its files anew, which healing has no need of."""
    return _see(name)


@lru_cache(maxsize=8)
def _see(name: str) -> Lab:
    from lab.drivers import find_driver
    from lab.lab import Lab
    from lab.state import StateFolder

    folder = StateFolder(name)
    return Lab(name, find_driver(name, folder), folder)


def record(lab: Lab, kind: str, note: Note, **more: Any) -> None:
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
def _locked(lab: Lab) -> Iterator[Notes]:
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


# -- add -------------------------------------------------------------------------------------------------------------


def add(
    lab: Lab,
    kind: FaultKind,
    nodes: Sequence[Machine],
    *,
    duration: float | str | None = None,
    owner: str | None = None,
    seed: int | None = None,
    options: Mapping[str, Any],
) -> Fault:
    """Inflict *kind* on *nodes*; called by `lab.faults.add`, which has looked the kind up. See there for the rest."""
    parsed = kind.parse(options)
    lasts = None if duration is None else seconds(duration, f"{kind.name}: the duration")
    if lasts is not None and not 0 < lasts <= LONGEST:
        raise LabUsageError(f"{kind.name}: the duration can't be {duration!r}", remedy=f"give 0 < s <= {LONGEST:.0f}")
    if not nodes:
        raise LabUsageError(f"{kind.name} needs a node", remedy="name one, see `lab status`")
    if len({node.name for node in nodes}) < len(nodes):
        raise LabUsageError(f"{kind.name}: a node is named twice")
    process, owned_by = _owner(owner)
    now = time.time()
    note = Note(
        secrets.token_hex(4),
        kind.name,
        [node.name for node in nodes],
        {k: list(v) if isinstance(v, tuple) else v for k, v in parsed.items()},
        random.Random().randrange(1 << 32) if seed is None else seed,  # reported, so that it can be given again
        now,
        None if lasts is None else now + lasts,
        process,
        owned_by,
    )
    machines = {short_name(machine.name): machine.address for machine in (*lab.gateways, *lab.nodes)}
    contexts = [
        Context(note.id, lab.name, lab.driver, node, parsed, note.seed + place, tuple(nodes), machines, lasts)
        for place, node in enumerate(nodes)
    ]
    with _locked(lab) as notes:
        others = notes.read()
        try:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda context: _inflict(kind, context, note, notes, others), contexts))
        except BaseException:
            _undo(lab, note, notes)
            raise
        if kind.momentary:
            notes.remove(note.id)
        else:
            if lasts is not None:
                # From now on, not from when we began: applying it may take longer than a short duration.
                note.expires = time.time() + lasts
            note.ready = True
            notes.write(note)
            watchdog.start(lab.name, lab.folder.path)
    record(lab, "fault.added", note)
    if kind.momentary:
        record(lab, "fault.healed", note, reason="momentary")
    return Fault(lab, note)


def _owner(owner: str | None) -> tuple[list[int] | None, str]:
    """Return the owning process and how it is called: `user@host/pid/start`, as leases call it."""
    if owner == NOBODY:
        return None, NOBODY
    words = (owner or str(os.getpid())).split("/")
    digits = words[1] if len(words) == 3 else words[0]
    if not digits.isdigit():
        raise LabUsageError(f"the owner can't be {owner!r}", remedy=f"give a pid, or {NOBODY!r} for no process")
    began = started(int(digits))
    if began is None:
        raise LabUsageError(f"the owner can't be {owner!r}", cause="there is no such process")
    return [int(digits), began], f"{getpass.getuser()}@{socket.gethostname()}/{digits}/{began}"


def _inflict(kind: FaultKind, context: Context, note: Note, notes: Notes, others: Sequence[Note]) -> None:
    """Try the kind's mechanisms on one node, in order; raise FaultUnavailable when none works, or LabConflict."""
    node, reasons = context.node, []
    conflict: LabConflict | None = None
    for mechanism in kind.mechanisms:
        closed = _closed(kind, mechanism, context)
        held = _holder(mechanism.claims, node.name, others)
        if held is not None:
            conflict = LabConflict(
                f"{kind.name} can't join {held.name} ({held.id}) on {node.name}",
                cause=f"both need the node's {' and '.join(mechanism.claims)}",
                remedy=f"heal that one first: `lab fault heal {held.id}`",
            )
            closed = closed or f"{held.name} ({held.id}) holds the {' and '.join(mechanism.claims)}"
        if closed:
            reasons.append(f"{mechanism.name}: {closed}")
            continue
        moves = _marked(mechanism.moves(context), context)
        # A gateway has no capability at all, so what nodes do as root has to come from outside.
        elevated = mechanism.elevated or (context.driver == "docker" and not reach.is_node(node))
        with _NOTING:
            note.mechanisms[node.name] = mechanism.name
            note.undo[node.name] = [list(step) for step in moves.undo]
            note.claims[node.name] = list(mechanism.claims)
            if elevated:
                note.elevated.append(node.name)
            # Before anything is done: whoever finds this note after we were killed can undo all of it.
            notes.write(note)
            apply = moves.apply if kind.momentary else _with_marker(moves, context, note)
        try:
            reach.carry_out(node, apply, elevated=elevated)
        except reach.StepsFailed as error:
            reasons.append(f"{mechanism.name}: {error.cause or error.what}")
            reach.carry_out(node, moves.undo, elevated=elevated, undoing=True)
            with _NOTING:
                for known in (note.undo, note.claims, note.mechanisms):
                    known.pop(node.name, None)
                if elevated:
                    note.elevated.remove(node.name)
        else:
            return
    if conflict is not None:
        raise conflict
    raise reach.unavailable(kind.name, node, reasons)


def _closed(kind: FaultKind, mechanism: Mechanism, context: Context) -> str:
    """Return why a mechanism can't be on this node, as far as that is known before it is tried."""
    if context.driver not in mechanism.drivers:
        return "nodes of a local lab share this machine's kernel, network and users"
    of_logins = kind.group in {"ssh", "login"} or mechanism.name.startswith("pam_limits")
    if of_logins and not reach.is_node(context.node):
        return "nobody logs in to a gateway"
    return mechanism.refuse(context)


def _holder(claims: Sequence[str], node: str, others: Sequence[Note]) -> Note | None:
    """Return the fault that holds one of *claims* on *node*."""
    return next((note for note in others if set(claims) & set(note.claims.get(node, []))), None)


def _marked(moves: Moves, context: Context) -> Moves:
    """Let the undo end with the fault's own folder; a mechanism that acts from outside alone has none."""
    if all(step[0].startswith("!") for step in moves.apply) and context.driver == "local":
        return moves
    return Moves(moves.apply, (*moves.undo, ("@remove", context.folder)))


def _with_marker(moves: Moves, context: Context, note: Note) -> tuple[tuple[str, ...], ...]:
    """Put the marker into the node first: it tells of the fault where this side's note is lost."""
    if context.driver == "local":
        return moves.apply
    return (("@write", f"{context.folder}/note.json", note.text()), *moves.apply)


# -- heal -------------------------------------------------------------------------------------------------------------


def _undo(lab: Lab, note: Note, notes: Notes) -> None:
    """Undo *note* on its nodes as far as it goes, with the lock held; raise what stood in the way on one of them."""
    there = {machine.name: machine for machine in (*lab.nodes, *lab.gateways)}
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
        with _NOTING:
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
    if state != "running" and not (steps and steps[0][0].startswith("!")) and not reach.is_local(machine):
        remedy = f"`lab start {short_name(machine.name)}`; the lab goes on trying"
        raise LabError(f"the fault can't be healed on {machine.name}", cause=f"it is {state}", remedy=remedy)


def heal_note(lab: Lab, note: Note, reason: str) -> bool:
    """Undo one fault, whoever added it; return whether it was still there. Called by Fault, `heal` and the watchdog."""
    try:
        with _locked(lab) as notes:
            current = next((found for found in notes.read() if found.id == note.id), None)
            if current is None:
                return False
            _undo(lab, current, notes)
    except LabNotFound:
        return False  # the lab is gone
    record(lab, "fault.healed", current, reason=reason)
    return True


def active(lab: Lab) -> list[Fault]:
    """Return the faults that are to be healed, oldest first, whichever process added them.

    When the lab's folder knows nothing of faults (it may be new), nodes' own markers are asked.
    """
    notes = Notes(lab.folder.path)
    if not notes.folder.is_dir() and lab.folder.path.is_dir():
        _adopt(lab, notes)
    found = notes.read()
    if found:
        with _locked(lab) as again:
            if again.read():
                watchdog.start(lab.name, lab.folder.path)
    return [Fault(lab, note) for note in found]


def _adopt(lab: Lab, notes: Notes) -> None:
    """Take over the notes that nodes hold."""

    def look(machine: Machine) -> list[str]:
        if machine.state != "running" or reach.is_local(machine):
            return []
        script = 'for f in /run/lab-faults/*/note.json; do [ -f "$f" ] && cat "$f" && printf "\\0"; done; true'
        return machine.exec(["sh", "-c", script], user="root").stdout.split("\0")

    merged: dict[str, Note] = {}
    with ThreadPoolExecutor(8) as pool:
        for text in [text for texts in pool.map(look, lab.nodes) for text in texts]:
            with suppress(ValueError):
                note = Note.parse(text)
                known = merged.setdefault(note.id, note)
                known.undo |= note.undo
                known.claims |= note.claims
                known.mechanisms |= note.mechanisms
                known.elevated = sorted({*known.elevated, *note.elevated})
    with _locked(lab):
        for note in merged.values():
            notes.write(note)


def heal(lab: Lab, identity: str | None = None) -> list[str]:
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
