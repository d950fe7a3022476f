"""What labs there are on this machine: read from labels, leases and the labs' own folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lab import lease as leases
from lab.errors import EnvironmentUnfit, LabError, LabUsageError
from lab.files import Busy, held
from lab.names import LABEL, LABEL_MACHINE, LABEL_ROLE, LABEL_USER, check_name
from lab.state import StateFolder, locks_root, state_root
from lab.topology.daemons import MACHINES


@dataclass(frozen=True)
class FoundLab:
    """One lab, by whatever of it is there. *made* is UNIX seconds, 0 if nothing says it."""

    name: str
    driver: str
    nodes: int = 0
    gateways: int = 0
    running: int = 0
    made: float = 0.0
    lease: leases.Lease | None = None
    folder: Path | None = None
    user: str = ""
    """`user@host`: who made it, where a label says it."""
    services: int = 0
    clusters: tuple[str, ...] = ()
    """`spark`, `yarn`: the clusters that have a master's machine."""

    @property
    def machines(self) -> int:
        """Nodes, gateways and masters, running or not."""
        return self.nodes + self.gateways + self.services

    @property
    def owner(self) -> str:
        """Whose it is: who holds its lease, else who made it; empty where nothing says it."""
        return self.lease.owner if self.lease else self.user.partition("@")[0]

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab ls --json` prints of it."""
        return {
            "name": self.name,
            "driver": self.driver,
            "nodes": self.nodes,
            "gateways": self.gateways,
            "services": self.services,
            "with": list(self.clusters),
            "running": self.running,
            "made": self.made or None,
            "owner": self.owner or None,
            "expires": self.lease.expires if self.lease else None,
            "folder": str(self.folder) if self.folder else None,
        }


def unseen() -> str:
    """Return why labs on a container engine can't be seen now; nothing if they can."""
    from lab.drivers.docker.engine import connect

    try:
        connect()
    except EnvironmentUnfit as error:
        return error.what
    return ""


def find_labs() -> list[FoundLab]:
    """Return every lab that can be seen: on the engine that answers, and in this user's folders; by name."""
    found = {(lab.name, lab.driver): lab for lab in (*_on_engine(), *_local())}
    return sorted(found.values(), key=lambda lab: (lab.name, lab.driver))


def _on_engine() -> Iterator[FoundLab]:
    try:
        from lab.drivers.docker.engine import connect

        client = connect()
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
        if not _is_name(name):
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
    """Say whether the docker lab of *folder* is, or would be, on the engine that *client* talks to."""
    from lab.drivers.docker.engine import engine_id

    return folder.on_engine in {None, engine_id(client)}


def _note(
    told: dict[str, str], created: Any, labels: dict[str, list[dict[str, str]]], times: dict[str, list[float]]
) -> str:
    name = told[LABEL]
    labels.setdefault(name, []).append(told)
    times.setdefault(name, []).append(unix_time(created))
    return name


def unix_time(created: Any) -> float:
    """Return the engine's time stamp (UTC, nanoseconds; or a number) as UNIX seconds, 0 if it is none."""
    if isinstance(created, int | float):
        return float(created)
    try:
        return datetime.strptime(str(created)[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0.0


def _local() -> Iterator[FoundLab]:
    """Return the labs of this user's processes."""
    from lab.drivers.local.driver import LocalDriver

    for folder in folders():
        try:
            driver = LocalDriver(folder.name, StateFolder(folder.name))
        except EnvironmentUnfit:
            return
        if not driver.exists():
            continue
        try:
            nodes, gateways = driver.nodes(), driver.gateways()
            states = [machine.state for machine in (*nodes, *gateways)]
            made = folder.stat().st_mtime
        except (OSError, LabError):
            # It is being made or removed while we look.
            continue
        with contextlib.suppress(OSError):
            made = (folder / "id_ed25519").stat().st_mtime
        found = FoundLab(folder.name, "local", len(nodes), len(gateways), states.count("running"), made)
        yield replace(found, lease=leases.read(folder.name), folder=folder)


def folders() -> list[Path]:
    """Return the folders of this user's labs; others below the same root are somebody else's."""
    root = state_root()
    return sorted(each for each in root.iterdir() if each.is_dir() and _is_name(each.name)) if root.is_dir() else []


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except LabUsageError:
        return False
    return True


def is_busy(name: str) -> bool:
    """Say whether a process of this user works on the lab *name* now; whoever wants to would have to wait."""
    return is_locked(f"lab-{name}")


def is_locked(lock: str) -> bool:
    """Say whether a process of this user holds *lock* (lab/state.py)."""
    path = locks_root() / f"{lock}.lock"
    if not path.exists():
        return False
    try:
        with held(path):
            return False
    except Busy:
        return True
