"""What labs there are on this machine, and what of them is garbage: read from labels, leases and the labs' own folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from lab import lease as leases
from lab.drivers.choice import make
from lab.errors import EnvironmentUnfit, LabError, LabUsageError
from lab.lifetime.removal import destroy
from lab.names import LABEL, LABEL_MACHINE, LABEL_ROLE, LABEL_USER, check_name
from lab.state import StateFolder, cache_root, locked, locks_root, state_root
from lab.topology.daemons import MACHINES

HALF_MADE_SECONDS: Final = 600.0
"""How old a half of a lab must be to be garbage: another user's `lab up`, whose lock can't be seen, makes it whole sooner."""


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


@dataclass(frozen=True)
class Garbage:
    """One thing that nobody needs: *what* it is, *why* it is garbage, since when it is there, and how it goes."""

    what: str
    why: str
    lab: str
    made: float
    remove: Callable[[], list[str]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab gc --json` prints of it."""
        return {"what": self.what, "why": self.why, "lab": self.lab, "made": self.made or None}


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
        own = folder.path.is_dir() and folder.made_by in {None, "docker"} and _is_here(folder, client)
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


def _is_here(folder: StateFolder, client: Any) -> bool:
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

    for folder in _folders():
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


def _folders() -> list[Path]:
    """Return the folders of this user's labs; others below the same root are somebody else's."""
    root = state_root()
    return sorted(each for each in root.iterdir() if each.is_dir() and _is_name(each.name)) if root.is_dir() else []


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except LabUsageError:
        return False
    return True


# -- garbage -----------------------------------------------------------------------------------------------------------


def find_garbage(*, older_than: float = 0.0) -> list[Garbage]:
    """Return what may go, each with its reason: labs whose lease is over, networks, folders and processes of no lab.

    *older_than* (seconds) spares what is younger. A lab that somebody works on now (its lock is held) is no garbage.
    """
    labs = find_labs()
    found = [*_labs(labs), *_empty_folders(labs), *_strays(), *_unpacked()]
    now = time.time()
    return [each for each in found if now - each.made >= older_than]


def _labs(labs: list[FoundLab]) -> Iterator[Garbage]:
    for lab in labs:
        why = _why(lab)
        if why and not is_busy(lab.name):

            def is_wanted(before: FoundLab = lab) -> bool:
                there = (now for now in find_labs() if (now.name, now.driver) == (before.name, before.driver))
                return any(not _why(now) for now in there)

            remover = _remover(lab.name, lab.driver, is_wanted, own=lab.folder is not None)
            yield Garbage(f"the lab {lab.name}", why, lab.name, lab.made, remover)


def _why(lab: FoundLab) -> str:
    """Return why *lab* is garbage, nothing if it is none."""
    # Without the folder the label alone speaks, with the lease's first term: machines that run have had it renewed
    # since, because their own init ends them when it is over.
    if lab.lease is not None and lab.lease.is_over() and (lab.folder is not None or not lab.running):
        return f"its lease is over, of {lab.lease.owner}"
    if not lab.machines and time.time() - lab.made > HALF_MADE_SECONDS and lab.lease is None:
        return "it is half-made: there is no machine"
    return ""


def _remover(name: str, kind: str, is_wanted: Callable[[], bool], *, own: bool = True) -> Callable[[], list[str]]:
    """Return what removes the lab *name* of the driver *kind*, and this user's folder of it if that is its *own*.

    By that driver alone: the name may be that of another user's lab as well.
    """

    def remove() -> list[str]:
        folder = StateFolder(name)
        return destroy([make(kind, name, folder)], folder, unless=is_wanted, keep_folder=not own)

    return remove


def is_busy(name: str) -> bool:
    """Say whether a process of this user works on the lab *name* now; whoever wants to would have to wait."""
    return _locked(f"lab-{name}")


def _locked(lock: str) -> bool:
    """Say whether a process of this user holds *lock* (lab/state.py)."""
    path = locks_root() / f"{lock}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _empty_folders(labs: list[FoundLab]) -> Iterator[Garbage]:
    """Find folders of labs that have nothing else (any more). Without the lab's own engine none is known to be empty."""
    from lab.drivers.docker.engine import connect

    try:
        client = connect()
    except EnvironmentUnfit:
        return
    for folder in _folders():
        if not _is_here(StateFolder(folder.name), client):
            continue
        if not _is_empty(folder, labs) or is_busy(folder.name):
            continue

        def is_wanted(folder: Path = folder) -> bool:
            return not _is_empty(folder, find_labs())

        why = "no engine and no process has anything of this lab"
        # The local driver knows the sockets' folder, too.
        remover = _remover(folder.name, "local", is_wanted)
        yield Garbage(f"the folder {folder}", why, folder.name, folder.stat().st_mtime, remover)


def _is_empty(folder: Path, labs: Iterable[FoundLab]) -> bool:
    """Say whether *folder* has been that of no lab among *labs* for a while, and no lease promises one."""
    granted = leases.read(folder.name)
    waits = granted is not None and not granted.is_over()
    try:
        is_young = time.time() - folder.stat().st_mtime < HALF_MADE_SECONDS
    except FileNotFoundError:
        return False
    return not waits and not is_young and all(lab.folder != folder for lab in labs)


def _strays() -> Iterator[Garbage]:
    """Find processes that carry a local lab's mark, of a lab whose folder is gone."""
    from lab.drivers.local import processes

    if not (processes.PROC / "self" / "environ").exists():
        return
    root = state_root()
    lost: dict[str, list[processes.Process]] = {}
    for process in processes.belonging(root):
        name = _lab_of(process.pid, root)
        if name and not (root / name).exists():
            lost.setdefault(name, []).append(process)
    for name, members in lost.items():

        def end(name: str = name) -> list[str]:
            with locked(f"lab-{name}", what=f"the lab {name}"):
                # An `up` may have had its time meanwhile: with a folder they are that lab's.
                return [] if (root / name).exists() else [f"{processes.end_all(root / name, [])} processes"]

        what = f"{len(members)} processes of the lab {name}"
        yield Garbage(what, f"its folder {root / name} is gone", name, 0.0, end)


def _lab_of(pid: int, root: Path) -> str:
    """Return the name of the lab whose mark a process carries, nothing if it is only a descendant of one that does."""
    from lab.drivers.local import processes

    try:
        variables = (processes.PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = f"{processes.MARK}={root}/".encode()
    for variable in variables:
        if variable.startswith(prefix):
            return os.fsdecode(variable.removeprefix(prefix)).split("/")[0]
    return ""


def _unpacked() -> Iterator[Garbage]:
    """Find half-bootstrapped Debians in the cache: their maker was killed, and its lock is free."""
    if _locked("images"):
        return
    cache = cache_root()
    for folder in cache.glob("debian-*") if cache.is_dir() else ():

        def remove(folder: Path = folder) -> list[str]:
            shutil.rmtree(folder, ignore_errors=True)
            return [f"folder {folder}"]

        yield Garbage(f"the folder {folder}", "its `lab up` did not end well", "", folder.stat().st_mtime, remove)
