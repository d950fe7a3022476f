"""What is left of labs that nothing needs, by labels, leases and the labs' own folders; what `lab gc` removes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab import lease as leases
from lab.drivers.choice import kinds, make
from lab.drivers.found import FoundLab
from lab.lifetime.finding import find_labs, is_busy, is_locked
from lab.lifetime.removal import destroy
from lab.state import StateFolder, cache_root, lab_folders

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

            remover = _remover(lab.name, [lab.driver], is_wanted, own=lab.folder is not None)
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


def _remover(
    name: str, drivers: Sequence[str], is_wanted: Callable[[], bool], *, own: bool = True
) -> Callable[[], list[str]]:
    """Return what removes the lab *name* of these *drivers*, and this user's folder of it if that is its *own*.

    By those drivers alone: the name may be that of another user's lab as well.
    """

    def remove() -> list[str]:
        folder = StateFolder(name)
        return destroy([make(kind, name, folder) for kind in drivers], folder, unless=is_wanted, keep_folder=not own)

    return remove


def _empty_folders(labs: list[FoundLab]) -> Iterator[Garbage]:
    """Find folders of labs that have nothing else (any more). Without the lab's own engine none is known to be empty."""
    if any(kind.unseen() for kind in kinds()):
        return
    for folder in lab_folders():
        if not all(kind.sees(StateFolder(folder.name)) for kind in kinds()):
            continue
        if not _is_empty(folder, labs) or is_busy(folder.name):
            continue

        def is_wanted(folder: Path = folder) -> bool:
            return not _is_empty(folder, find_labs())

        why = "no engine and no process has anything of this lab"
        # Drivers know what a lab has besides its folder (one for sockets); on a shared engine it may be another user's.
        private = [kind.name for kind in kinds() if kind.is_private]
        remover = _remover(folder.name, private, is_wanted)
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
    """Find what drivers see of labs whose folder is gone."""
    for kind in kinds():
        for stray in kind.strays():
            yield Garbage(stray.what, stray.why, stray.lab, 0.0, stray.remove)


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
