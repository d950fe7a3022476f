"""What happened to a lab, one JSON line each: who wants to know what a test or a fault did reads it back in order."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.errors import LabConflict
from lab.names import check_name
from lab.state import StateFolder, locked

FILE = "events.jsonl"
LOCK_SECONDS = 10.0
"""How long a record waits for others' records: each takes well under a millisecond."""
FOLLOW_SECONDS = 0.2
"""How often `follow` looks: soon enough for a reader, and the standard library can't be told of a file's growth."""

Event = dict[str, Any]
"""`time` (UNIX seconds), `kind` (`up`, `fault.added`, `test.begin` …), and what that kind has to say."""


def path_of(lab_name: str) -> Path:
    """Return where a lab's events are; the file is there from the first record until `lab down`."""
    return StateFolder(check_name(lab_name)).path / FILE


def record(lab_name: str, kind: str, /, **fields: Any) -> None:
    """Append one event with the time of now; called by whatever changes a lab or something in it.

    *fields* are kept as JSON, as their `str` where JSON has nothing for them. A lab without a folder (it is gone, or somebody
    else's) keeps no events: a late record must not bring a removed folder back. Nothing raises here but a field named
    `time` or `kind` (ValueError): what is recorded has happened already, and losing a line is better than losing the deed.
    """
    if reserved := {"time", "kind"} & fields.keys():
        raise ValueError(f"an event's own fields can't be replaced: {', '.join(sorted(reserved))}")
    path = path_of(lab_name)
    if not path.parent.is_dir():
        return
    line = json.dumps({"time": round(time.time(), 6), "kind": kind, **fields}, default=str) + "\n"
    try:
        with locked(f"events-{lab_name}", what=f"the events of the lab {lab_name}", seconds=LOCK_SECONDS):
            _append(path, line)
    except LabConflict:
        # Somebody holds the lock and hangs. One write to an O_APPEND file comes out whole on a local disk anyway.
        _append(path, line)


def _append(path: Path, line: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        os.write(descriptor, line.encode())
    except OSError:
        # A full disk is one of the faults that are recorded.
        return
    finally:
        os.close(descriptor)


def read(lab_name: str, since: float | None = None) -> list[Event]:
    """Return a lab's events, oldest first, those at or after *since* (UNIX seconds); nothing if it has none.

    A line that is no JSON (the disk was full, the machine went down) is left out.
    """
    try:
        text = path_of(lab_name).read_text("utf-8", errors="replace")
    except OSError:
        return []
    events = list(_parse(text))
    # By time, not by line: a clock that was set back or two writers may have swapped neighbours.
    events.sort(key=lambda event: event["time"])
    return [event for event in events if since is None or event["time"] >= since]


def follow(lab_name: str, since: float | None = None) -> Iterator[Event]:
    """Yield a lab's events from *since* on and then as they come; end when the lab is gone. Called by `lab events --follow`."""
    path = path_of(lab_name)
    offset, rest = 0, ""
    while True:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                new = file.read()
        except FileNotFoundError:
            if offset or not path.parent.is_dir():
                return
            new = b""
        offset += len(new)
        lines = rest + new.decode("utf-8", errors="replace")
        whole, _, rest = lines.rpartition("\n")
        for event in _parse(whole):
            if since is None or event["time"] >= since:
                yield event
        time.sleep(FOLLOW_SECONDS)


def _parse(text: str) -> Iterator[Event]:
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("time"), int | float) and "kind" in event:
            yield event
