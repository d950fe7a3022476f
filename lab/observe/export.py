"""One archive with all that is known of a lab: for a bug report, or for looking at a failed run when the lab is gone."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lab import events, lease
from lab.drivers.machines import Machine
from lab.errors import LabError
from lab.files import replacing
from lab.lab import Lab
from lab.observe import stats
from lab.observe.timeline import agent_logs, timeline
from lab.spark import logs
from lab.spark.clusters import report

_SECRET: Final = re.compile(r"pass(word|wd)?$|token|secret|_key$|credential|_pwd$", re.IGNORECASE)
_HIDDEN: Final = "(hidden)"


def export(lab: Lab, path: Path) -> Path:
    """Write everything about *lab* to *path* (a .tar.gz, replaced if it is there) and return it; called by `lab export`.

    What can't be had (a machine is down) is a file that says why. Private keys and what looks like a password stay out.
    Raises LabError if *path* can't be written.
    """
    prefix = f"{lab.name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    # Before the file: what goes wrong with a machine is an OSError as well, and no fault of *path*.
    files = contents(lab)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in files.items():
                data = text.encode()
                member = tarfile.TarInfo(f"{prefix}/{name}")
                member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
                archive.addfile(member, io.BytesIO(data))
    except OSError as error:
        raise LabError(
            f"the archive {path} can't be written", cause=str(error), remedy="choose another place"
        ) from error
    return path


def contents(lab: Lab) -> dict[str, str]:
    """Return the archive's files by their names."""
    merged = timeline(lab)
    files = {
        "README.txt": _README,
        "lab.json": _json(_tried(lambda: lab.environment())),
        "lease.json": _json(_tried(lambda: _lease(lab.name))),
        "stats.json": _json(_tried(lambda: stats.measure(lab).as_dict())),
        "events.jsonl": "".join(json.dumps(event) + "\n" for event in events.read(lab.name)),
        "faults.jsonl": "".join(
            json.dumps(event) + "\n" for event in events.read(lab.name) if str(event["kind"]).startswith("fault.")
        ),
        "timeline.txt": "".join(f"{time.strftime('%Y-%m-%d', time.gmtime(each.time))} {each}\n" for each in merged),
        "timeline.jsonl": "".join(json.dumps(each.as_dict()) + "\n" for each in merged),
    }
    for gateway in lab.gateways:
        files[f"gateways/{gateway.name}/inspect.json"] = _json(_tried(lambda machine=gateway: inspect(machine)))
        files[f"gateways/{gateway.name}/gateway.log"] = _log(gateway)
    for node in lab.nodes:
        files[f"nodes/{node.name}/inspect.json"] = _json(_tried(lambda machine=node: inspect(machine)))
        files[f"nodes/{node.name}/sshd.log"] = _log(node)
        for number, (where, _, text) in enumerate(agent_logs(node)):
            files[f"nodes/{node.name}/agent-{number}.log"] = f"# {where}\n{text}"
    for service in lab.services:
        files[f"services/{service.name}/inspect.json"] = _json(_tried(lambda machine=service: inspect(machine)))
        files[f"services/{service.name}/sshd.log"] = _log(service)
    for node in (*lab.nodes, *lab.services):
        folder = f"{'services' if node.spec.is_service else 'nodes'}/{node.name}"
        files |= {f"{folder}/{name}": text for name, text in logs.read(node).items()}
    if lab.services:
        files["clusters.json"] = _json(_tried(lambda: report(lab)))
    for name in ("lab.toml", "keeper.log", "known_hosts", "ssh_config"):
        kept = lab.folder.path / name
        if kept.is_file():
            files[name] = kept.read_text(errors="replace")
    return files


def inspect(machine: Machine) -> dict[str, Any]:
    """Return what there is to know of a machine: what the lab knows, and the driver's own facts, without secrets."""
    found: dict[str, Any] = {"name": machine.name, "state": machine.state, "address": machine.address}
    facts: dict[str, Any] = without_secrets(found | machine.inspect())
    return facts


def without_secrets(value: Any, name: str = "") -> Any:
    """Return *value* with every string hidden whose name, or `NAME=` in a list of variables, sounds like a secret."""
    if isinstance(value, Mapping):
        return {key: without_secrets(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(each) for each in value]
    if isinstance(value, str):
        variable, separator, _ = value.partition("=")
        if separator and variable.isidentifier() and _SECRET.search(variable):
            return f"{variable}={_HIDDEN}"
        if value and _SECRET.search(name) and name != "host_key":
            return _HIDDEN
    return value


def _lease(lab_name: str) -> dict[str, Any]:
    found = lease.read(lab_name)
    return {} if found is None else {"owner": found.holder, "expires": found.expires, "seconds": found.seconds}


def _log(machine: Machine) -> str:
    try:
        return machine.read_logs(timestamps=True)
    except LabError as error:
        return f"can't be read: {error}\n"


def _tried(ask: Any) -> Any:
    try:
        return ask()
    except LabError as error:
        return {"error": str(error)}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str) + "\n"


_README: Final = """What `lab export` found.

lab.json        names, addresses and ports, as of `lab env --json`
lease.json      whose the lab is, and until when
stats.json      how many kernels are on which node
events.jsonl    what the lab, its faults and tests did; faults.jsonl is the faults' part of it
timeline.txt    events, gateways' logs, sshd's logs and agents' logs in the order of time (UTC); timeline.jsonl is the same
gateways/NAME/  gateway.log and the driver's facts
nodes/NAME/     sshd.log, the agents' logs and the driver's facts; in labs with Spark or YARN the daemons' logs
services/NAME/  the same of a master's machine
clusters.json   workers, NodeManagers and applications, as the masters tell
"""
