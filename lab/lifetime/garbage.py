"""What is left of labs that nothing needs, by labels, leases and the labs' own folders; what `lab gc` removes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab import lease as leases
from lab.drivers.choice import make
from lab.errors import EnvironmentUnfit
from lab.lifetime.finding import FoundLab, find_labs, folders, is_busy, is_here, is_locked
from lab.lifetime.removal import destroy
from lab.processes import Process, environment
from lab.state import StateFolder, cache_root, locked, state_root

HALF_MADE_SECONDS: Final = 600.0
"""How old a half of a lab must be to be garbage: another user's `lab up`, whose lock can't be seen, makes it whole sooner."""


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


def _empty_folders(labs: list[FoundLab]) -> Iterator[Garbage]:
    """Find folders of labs that have nothing else (any more). Without the lab's own engine none is known to be empty."""
    from lab.drivers.docker.engine import connect

    try:
        client = connect()
    except EnvironmentUnfit:
        return
    for folder in folders():
        if not is_here(StateFolder(folder.name), client):
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

    if not processes.has_proc():
        return
    root = state_root()
    lost: dict[str, list[Process]] = {}
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

    place = environment(pid).get(processes.MARK, "")
    return place.removeprefix(f"{root}/").split("/")[0] if place.startswith(f"{root}/") else ""


def _unpacked() -> Iterator[Garbage]:
    """Find half-bootstrapped Debians in the cache: their maker was killed, and its lock is free."""
    if is_locked("images"):
        return
    cache = cache_root()
    for folder in cache.glob("debian-*") if cache.is_dir() else ():

        def remove(folder: Path = folder) -> list[str]:
            shutil.rmtree(folder, ignore_errors=True)
            return [f"folder {folder}"]

        yield Garbage(f"the folder {folder}", "its `lab up` did not end well", "", folder.stat().st_mtime, remove)
