"""Labs on the container engine that answers, read from labels, and from this user's folders where they are theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lab import lease as leases
from lab.drivers.docker import engine
from lab.drivers.docker.engine import engine_id, unix_time
from lab.drivers.found import FoundLab
from lab.errors import EnvironmentUnfit
from lab.names import LABEL, LABEL_MACHINE, LABEL_ROLE, LABEL_USER, is_name
from lab.state import StateFolder
from lab.topology.daemons import MACHINES


def unseen() -> str:
    """Return why labs on a container engine can't be seen now; nothing if they can."""
    try:
        engine.connect()
    except EnvironmentUnfit as error:
        return error.what
    return ""


def find_labs() -> Iterator[FoundLab]:
    """Yield every lab on the engine, other users' as well; none where no engine answers."""
    try:
        client = engine.connect()
    except EnvironmentUnfit:
        return
    labels: dict[str, list[dict[str, str]]] = {}
    times: dict[str, list[float]] = {}
    counts: dict[str, list[str]] = {}
    running: dict[str, int] = {}
    clusters: dict[str, set[str]] = {}
    for network in client.networks.list(filters={"label": LABEL}):
        _note(network.attrs.get("Labels") or {}, network.attrs.get("Created"), labels, times)
    for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        name = _note(container.labels, container.attrs.get("Created"), labels, times)
        counts.setdefault(name, []).append(container.labels.get(LABEL_ROLE, ""))
        for kind, machine in MACHINES.items():
            if container.labels.get(LABEL_ROLE) == "service" and container.labels.get(LABEL_MACHINE) == machine:
                clusters.setdefault(name, set()).add(kind)
        running[name] = running.get(name, 0) + (container.status == "running")
    for name, seen in labels.items():
        if not is_name(name):
            continue
        roles = counts.get(name, [])
        users = {told[LABEL_USER] for told in seen if LABEL_USER in told}
        folder = StateFolder(name)
        # The folder may be of another lab of that name: a local one, one on another engine, or this is somebody else's.
        own = folder.path.is_dir() and folder.made_by in {None, "docker"} and is_here(folder, client)
        yield FoundLab(
            name,
            "docker",
            nodes=roles.count("node"),
            gateways=roles.count("gateway"),
            services=roles.count("service"),
            clusters=tuple(sorted(clusters.get(name, ()))),
            running=running.get(name, 0),
            made=min(filter(None, times[name]), default=0.0),
            lease=(leases.read(name) if own else None) or next(filter(None, map(leases.from_labels, seen)), None),
            folder=folder.path if own else None,
            user=min(users, default=""),
        )


def is_here(folder: StateFolder, client: Any) -> bool:
    """Return True if the docker lab of *folder* is, or would be, on the engine that *client* talks to."""
    return folder.on_engine in {None, engine_id(client)}


def _note(
    told: dict[str, str], created: Any, labels: dict[str, list[dict[str, str]]], times: dict[str, list[float]]
) -> str:
    name = told[LABEL]
    labels.setdefault(name, []).append(told)
    times.setdefault(name, []).append(unix_time(created))
    return name
