"""The verbs that tell what happened: logs, events, export."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from lab.cli.options import DURATION, Verb, complete_machines, find_machines, json_option, name_option
from lab.cli.output import note, progress, show
from lab.drivers.machines import Machine
from lab.errors import LabError, LabUsageError
from lab.lab import Lab


@click.command(cls=Verb)
@name_option
@click.argument("machines", nargs=-1, shell_complete=complete_machines)
@click.option("--tail", type=click.IntRange(0), help="Only the last lines of each.")
@click.option("--since", type=DURATION, help="Only what is not older than this, like 10m.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until ^C or the machines' end.")
@click.option("--timestamps", "-t", is_flag=True, help="The time (UTC) before each line.")
@json_option
def logs(
    name: str,
    machines: Sequence[str],
    tail: int | None,
    since: float | None,
    follow: bool,
    timestamps: bool,
    as_json: bool,
) -> None:
    """Print what MACHINES logged, or all: sshd's log of a node, Enterprise Gateway's of a gateway.

    Example: lab logs gateway --tail 50
    """
    lab = Lab.attach(name)
    found = find_machines(lab, machines or ("all",))
    moment = None if since is None else time.time() - since
    if follow:
        if as_json:
            raise LabUsageError("--follow has no end, so there is no one JSON document", remedy="`lab events --follow`")
        _follow(found, tail, moment, timestamps)
        return
    texts = {machine.name: machine.read_logs(tail, since=moment, timestamps=timestamps) for machine in found}
    if as_json:
        show({machine: text.splitlines() for machine, text in texts.items()})
        return
    for machine, text in texts.items():
        if len(texts) > 1:
            click.echo(f"==> {machine} <==")
        click.echo(text, nl=not text.endswith("\n") and bool(text))


def _follow(machines: Sequence[Machine], tail: int | None, since: float | None, timestamps: bool) -> None:
    """Print lines of several machines as they come, each with its machine's name, until the last of them has ended."""
    lines: queue.Queue[tuple[str, str | None]] = queue.Queue()
    now = time.time()

    def read(machine: Machine) -> None:
        try:
            for line in machine.follow_logs(since=now if since is None else since, timestamps=timestamps):
                lines.put((machine.name, line.rstrip("\n")))
        except LabError as error:
            note(f"lab: {error}")
        finally:
            lines.put((machine.name, None))

    prefix = len(machines) > 1
    if since is None:
        for machine in machines:
            for line in machine.read_logs(10 if tail is None else tail).splitlines():
                click.echo(f"{machine.name}: {line}" if prefix else line)
    for machine in machines:
        threading.Thread(target=read, args=(machine,), name=f"lab-logs-{machine.name}", daemon=True).start()
    ended = 0
    while ended < len(machines):
        name, text = lines.get()
        if text is None:
            ended += 1
        else:
            click.echo(f"{name}: {text}" if prefix else text)


@click.command(cls=Verb)
@name_option
@click.option("--since", type=DURATION, help="Only what is not older than this, like 10m.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until ^C or the lab's end.")
@json_option
def events(name: str, since: float | None, follow: bool, as_json: bool) -> None:
    """Print what happened to the lab: machines that came and went, faults, probes, tests.

    With --follow and --json it is one JSON document a line.

    Example: lab events --since 10m
    """
    from lab import events as record

    moment = None if since is None else time.time() - since
    if not record.path_of(name).exists():
        Lab.attach(name)
    if follow:
        for event in record.follow(name, moment):
            click.echo(json.dumps(event) if as_json else _line(event))
        return
    found = record.read(name, moment)
    if as_json:
        show(found)
        return
    for event in found:
        click.echo(_line(event))


def _line(event: dict[str, Any]) -> str:
    moment = datetime.fromtimestamp(event["time"], timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    details = " ".join(f"{key}={_word(value)}" for key, value in event.items() if key not in {"time", "kind"})
    return f"{moment} {event['kind']} {details}".rstrip()


def _word(value: Any) -> str:
    if isinstance(value, str) and value and not any(c.isspace() for c in value):
        return value
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return json.dumps(value, default=str)


@click.command(cls=Verb)
@name_option
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@json_option
def export(name: str, file: Path, as_json: bool) -> None:
    """Write one archive: inspect data, all logs, the fault timeline, and everything merged in order of time.

    FILE ends with .tar.gz; it is made new, for its owner alone.

    Example: lab export /tmp/lab.tar.gz
    """
    from lab.observe.export import export as write

    if not file.name.endswith((".tar.gz", ".tgz")):
        raise LabUsageError(f"{file} would be a .tar.gz by another name", remedy=f"`lab export {file}.tar.gz`")
    lab = Lab.attach(name)
    with progress() as shown:
        shown.step(f"collecting into {file}")
        written = write(lab, file)
    if as_json:
        show({"file": str(written), "bytes": written.stat().st_size})
    else:
        click.echo(str(written))


VERBS = (logs, events, export)
