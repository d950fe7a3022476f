"""What happened when, over all machines: events, gateways' logs, sshd's logs, agents' logs, merged in the order of time."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from lab import events
from lab.drivers.machines import Machine, Node
from lab.errors import LabError
from lab.lab import Lab

_AGENT_LOGS: Final = """
for log in "$HOME"/.cache/eg-distributed/*/agent.log "${XDG_CACHE_HOME:-/nowhere}"/eg-distributed/*/agent.log; do
    [ -s "$log" ] && stat -c "==%Y %n" "$log" && tail -n 2000 "$log"
done
exit 0
"""
"""Prints all agents' logs of the login user, each behind its time of change: the agent dates few of its lines itself."""

SECONDS: Final = 15.0
"""How long one machine's logs may take; a machine that hangs must not hide the others'."""

_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)? ?")
_JUPYTER: Final = re.compile(r"\[[A-Z] (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:[.,](\d+))? ")
_TORNADO: Final = re.compile(r"\[[A-Z] (\d{6} \d\d:\d\d:\d\d) ")
_PLAIN: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:[.,](\d+))?\b")


@dataclass(frozen=True, order=True)
class Entry:
    """One line of somebody at a time (UNIX seconds); *number* keeps a source's own order where times are equal."""

    time: float
    source: str
    """`event`, a machine's name, or `NAME agent`."""
    number: int
    text: str

    def __str__(self) -> str:
        return f"{clock(self.time)}  {self.source:<16} {self.text}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as one JSON line of the exported timeline."""
        return {"time": self.time, "source": self.source, "text": self.text}


def clock(seconds: float) -> str:
    """Return `20:42:39.251`, in UTC as containers tell it."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"


def timeline(lab: Lab, since: float | None = None, names: Collection[str] | None = None) -> list[Entry]:
    """Return all that is known of *lab* from *since* (UNIX seconds) on, in order. Asks all machines (those of *names*) at once.

    A machine that can't tell contributes one line that says why. Called by `lab export` and for the report of a failed test.
    """
    machines: list[Machine] = [each for each in lab.machines if names is None or each.name in names]
    with ThreadPoolExecutor(8, thread_name_prefix="lab-timeline") as pool:
        logs = pool.map(lambda machine: list(_log(machine, since)), machines)
        agents = pool.map(lambda node: list(_agents(node)), [each for each in machines if isinstance(each, Node)])
        found = [entry for entries in (*logs, *agents) for entry in entries]
    found += of_events(events.read(lab.name, since))
    return sorted(entry for entry in found if since is None or entry.time >= since)


def of_events(found: Iterable[Mapping[str, Any]]) -> Iterator[Entry]:
    """Yield the lab's own events as entries."""
    for number, event in enumerate(found):
        said = " ".join(f"{name}={_short(value)}" for name, value in event.items() if name not in {"time", "kind"})
        yield Entry(event["time"], "event", number, f"{event['kind']} {said}".rstrip())


def _short(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _log(machine: Machine, since: float | None) -> Iterator[Entry]:
    try:
        text = machine.read_logs(since=since, timestamps=True)
    except LabError as error:
        yield Entry(time.time(), machine.name, 0, f"its log can't be read: {error}")
        return
    yield from parse(machine.name, text)


def _agents(node: Node) -> Iterator[Entry]:
    for _, changed, text in agent_logs(node):
        yield from parse(f"{node.name} agent", text, default=changed)


def agent_logs(node: Node) -> list[tuple[str, float, str]]:
    """Return (path, time of its last change, text) of each agent's log on *node* that says anything; none if it is down."""
    try:
        if node.state != "running":
            return []
        text = node.exec(["sh", "-c", _AGENT_LOGS], timeout=SECONDS).stdout
    except LabError:
        return []
    found: list[tuple[str, float, str]] = []
    for line in text.splitlines(keepends=True):
        if match := re.match(r"==(\d+) (/.*)", line):
            found.append((match[2], float(match[1]), ""))
        elif found:
            path, changed, before = found[-1]
            found[-1] = (path, changed, before + line)
    return found


def parse(source: str, text: str, *, default: float | None = None) -> Iterator[Entry]:
    """Yield the lines of a log with their times; a line without one has the time of the line before it.

    Lines before the first time have *default*, or that first time. An engine's stamp is taken off the line.
    """
    lines = [(when, said) for when, said in map(_dated, text.splitlines()) if said.strip()]
    current = default if default is not None else next((when for when, _ in lines if when is not None), time.time())
    for number, (when, said) in enumerate(lines):
        current = when if when is not None else current
        yield Entry(current, source, number, said)


def _dated(line: str) -> tuple[float | None, str]:
    if match := _RFC3339.match(line):
        moment = datetime.strptime(match[1], "%Y-%m-%dT%H:%M:%S")
        zone = timezone.utc if match[3] in (None, "Z") else datetime.strptime(match[3], "%z").tzinfo
        # Nine digits behind the point are more than strptime takes.
        return moment.replace(tzinfo=zone).timestamp() + float(match[2] or 0), line[match.end() :]
    for pattern, layout in (
        (_JUPYTER, "%Y-%m-%d %H:%M:%S"),
        (_TORNADO, "%y%m%d %H:%M:%S"),
        (_PLAIN, "%Y-%m-%d %H:%M:%S"),
    ):
        if match := pattern.match(line):
            try:
                # A machine that stamps its own lines is a process of this one, in its time zone.
                moment = datetime.strptime(match[1], layout).astimezone()
            except ValueError:
                continue
            fraction = match[2] if pattern is not _TORNADO else None
            return moment.timestamp() + (float(f"0.{fraction}") if fraction else 0), line
    return None, line
