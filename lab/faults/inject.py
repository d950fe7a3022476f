"""Inflict a fault: find a mechanism that works on each node, and write down how to undo it before it is done."""

from __future__ import annotations

import getpass
import os
import random
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from lab.drivers.machines import Machine
from lab.errors import LabConflict, LabError, LabNotReady, LabUsageError
from lab.faults import guard, reach
from lab.faults.catalogue.daemons import runs
from lab.faults.catalogue.index import kind
from lab.faults.healing import NOTING, Fault, locked, record, undo
from lab.faults.model import Context, FaultKind, Mechanism, Moves, seconds
from lab.faults.notes import Note, Notes
from lab.inventory import Inventory
from lab.names import short_name
from lab.processes import identify

LONGEST = 7 * 24 * 3600.0
"""Seconds. A fault that should last longer is a node of another kind, not a fault."""
NOBODY = "lab"
"""The owner of faults that belong to no process: they last until their duration ends or somebody heals them."""


def add(
    lab: Inventory,
    name: str,
    nodes: Sequence[Machine],
    *,
    duration: float | str | None = None,
    owner: str | None = None,
    seed: int | None = None,
    **options: Any,
) -> Fault:
    """Inflict the fault *name* on *nodes* and return it once it holds on all of them; on none, if one can't have it.

    No nodes: the machine that the fault is for, where there is just one (the Spark master of `spark-master-down`).

    It heals when *duration* (seconds, or `15s`) is over or its owner dies, whatever becomes of the caller. *owner* None is the
    calling process, a pid another one, `lab` none. *seed* decides what is random in it. *options* may be texts, as a
    command line has them.

    Raises LabUsageError (unknown fault or option, a value that can't be), LabConflict (another fault holds what this one
    needs), FaultUnavailable (no mechanism works here; the cause says what was tried), LabNotReady (a node doesn't answer).
    """
    return inflict(lab, kind(name), nodes, duration=duration, owner=owner, seed=seed, options=options)


def inflict(
    lab: Inventory,
    kind: FaultKind,
    nodes: Sequence[Machine],
    *,
    duration: float | str | None = None,
    owner: str | None = None,
    seed: int | None = None,
    options: Mapping[str, Any],
) -> Fault:
    """Inflict *kind*, which need not be in the catalogue, on *nodes*; as `add`."""
    parsed = kind.parse(options)
    lasts = None if duration is None else seconds(duration, f"{kind.name}: the duration")
    if lasts is not None and not 0 < lasts <= LONGEST:
        raise LabUsageError(f"{kind.name}: the duration can't be {duration!r}", remedy=f"give 0 < s <= {LONGEST:.0f}")
    nodes = nodes or ([machine for machine in lab.services if runs(machine, kind.daemon)] if kind.daemon else [])
    if not nodes:
        why = f"the lab {lab.name} has no {kind.daemon}" if kind.daemon else ""
        raise LabUsageError(f"{kind.name} needs a node", cause=why, remedy="name one, see `lab status`")
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
    machines = {short_name(machine.name): machine.address for machine in lab.machines}
    contexts = [
        Context(note.id, lab.name, node, parsed, note.seed + place, tuple(nodes), machines, lasts)
        for place, node in enumerate(nodes)
    ]
    with locked(lab) as notes:
        # First, so that somebody heals what a process leaves that is killed from here on.
        guard.start(lab.name, lab.folder.path)
        others = notes.read()
        try:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda context: _inflict_on_one(kind, context, note, notes, others), contexts))
        except BaseException:  # ^C included: a fault that is half inflicted must not stay
            with suppress(LabError):  # what came first is the error to tell; the watchdog goes on with the undoing
                undo(lab, note, notes)
            raise
        if kind.momentary:
            notes.remove(note.id)
        else:
            if lasts is not None:
                # From now on, not from when we began: applying it may take longer than a short duration.
                note.expires = time.time() + lasts
            note.ready = True
            notes.write(note)
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
    process = identify(int(digits))
    if process is None or not process.status:
        raise LabUsageError(f"the owner can't be {owner!r}", cause="there is no such process")
    began = process.started
    return [process.pid, began], f"{getpass.getuser()}@{socket.gethostname()}/{digits}/{began}"


def _inflict_on_one(kind: FaultKind, context: Context, note: Note, notes: Notes, others: Sequence[Note]) -> None:
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
        if not (kind.momentary and moves.apply[0][0].startswith("!")):
            _answers(context)
        # A gateway's processes may have less than a node's root, so what nodes do by themselves has to come from outside.
        elevated = mechanism.elevated or node.needs_privilege
        with NOTING:
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
            with NOTING:
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
    if refusal := context.node.refusal(mechanism.needs):
        return refusal
    if (mechanism.logins or kind.group in {"ssh", "login"}) and not reach.is_node(context.node):
        return "nobody logs in to a gateway"
    return mechanism.refuse(context)


def _answers(context: Context) -> None:
    """Raise LabNotReady for a machine that is down, in which nothing can be done now; before anything is noted."""
    state = context.node.state
    if state != "running" and not context.node.changes_while_down:
        remedy = f"`lab start {short_name(context.node.name)}`"
        raise LabNotReady(f"{context.node.name} can't be given a fault", cause=f"it is {state}", remedy=remedy)


def _holder(claims: Sequence[str], node: str, others: Sequence[Note]) -> Note | None:
    """Return the fault that holds one of *claims* on *node*."""
    return next((note for note in others if set(claims) & set(note.claims.get(node, []))), None)


def _marked(moves: Moves, context: Context) -> Moves:
    """Let the undo end with the fault's own folder; a mechanism that acts from outside alone has none."""
    if all(step[0].startswith("!") for step in moves.apply) and not context.node.keeps_notes:
        return moves
    return Moves(moves.apply, (*moves.undo, ("@remove", context.folder)))


def _with_marker(moves: Moves, context: Context, note: Note) -> tuple[tuple[str, ...], ...]:
    """Put the marker into the node first: it tells of the fault where this side's note is lost."""
    if not context.node.keeps_notes:
        return moves.apply
    return (("@write", f"{context.folder}/note.json", note.text()), *moves.apply)
