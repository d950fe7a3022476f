"""Which driver a lab is on: the one that has it already, else the best that this machine can run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from lab.drivers.contract import Driver, DriverKind
from lab.drivers.docker.kind import KIND as DOCKER
from lab.drivers.local.kind import KIND as LOCAL
from lab.errors import EnvironmentUnfit, LabConflict, LabNotFound, LabUsageError
from lab.names import LABEL
from lab.progress import Progress
from lab.state import StateFolder

_TABLE: dict[str, DriverKind] = {kind.name: kind for kind in (DOCKER, LOCAL)}
"""All drivers by their names, in the order in which a new lab tries them."""


def kinds() -> tuple[DriverKind, ...]:
    """Return all drivers that there are, the best for a new lab first."""
    return tuple(_TABLE.values())


def names() -> tuple[str, ...]:
    """Return the names of all drivers, in the same order. Not a constant: `register` adds to them."""
    return tuple(_TABLE)


def errors() -> tuple[type[Exception], ...]:
    """Return what drivers raise, besides LabError and OSError, when what they stand on refuses or goes away."""
    return tuple(error for kind in kinds() for error in kind.errors())


def register(kind: DriverKind) -> None:
    """Add a driver behind all others, or put it in the place of the one of its name; for drivers outside of this package."""
    _TABLE[kind.name] = kind


def make(kind: str, name: str, folder: StateFolder, sshd: str = "auto") -> Driver:
    """Return the driver *kind* for the lab *name*; raise EnvironmentUnfit when this machine can't run it.

    *sshd* (`auto`, `openssh`, `asyncssh`) is the SSH server of local nodes.
    """
    if kind not in _TABLE:
        raise LabUsageError(f"there is no driver {kind!r}", remedy=f"choose one of {', '.join(_TABLE)}")
    return _TABLE[kind].make(name, folder, sshd)


def usable(name: str, folder: StateFolder, sshd: str = "auto") -> list[Driver]:
    """Return a driver of every kind that this machine can run now; called to look for a lab and to remove one.

    The kind that made the lab's folder comes first: on a shared engine the other may have somebody else's lab of that name.
    """
    found: list[Driver] = []
    for kind in sorted(_TABLE, key=lambda each: each != folder.made_by):
        try:
            found.append(make(kind, name, folder, sshd))
        except EnvironmentUnfit:
            continue
    return found


def _away(drivers: Sequence[Driver]) -> Iterator[DriverKind]:
    """Yield the drivers that may have labs, but can't be asked: *drivers* are those that can."""
    there = {driver.kind for driver in drivers}
    return (kind for kind in kinds() if kind.absence and kind.name not in there)


def unseen_driver(name: str, folder: StateFolder, drivers: Sequence[Driver]) -> Driver | None:
    """Return the driver that made the lab if it was away when *drivers* were made and is back, and none of them has the lab.

    Raises EnvironmentUnfit if it is away still: the lab is known to be there, where it can't be seen.
    """
    made_by = next((kind for kind in _away(drivers) if kind.name == folder.made_by), None)
    if made_by is None or any(driver.exists() for driver in drivers):
        return None
    return made_by.make(name, folder, "auto")


def find_driver(name: str, folder: StateFolder) -> Driver:
    """Return the driver that has the lab *name*; raise LabNotFound, or EnvironmentUnfit if it is on an engine that is away."""
    drivers = usable(name, folder)
    for driver in drivers:
        if driver.exists():
            return driver
    if (back := unseen_driver(name, folder, drivers)) is not None:
        return back
    unseen = ", ".join(f"and {kind.absence}" for kind in _away(drivers))
    raise LabNotFound(f"there is no lab {name}", cause=unseen, remedy=f"`lab up --name {name}`")


def not_ours(name: str, owner: str) -> LabConflict:
    """Return the error for a lab of another user of the engine, *owner* (`user@host`)."""
    return LabConflict(
        f"the lab {name} on this container engine is {owner}'s",
        remedy="choose another name: `lab up --name NAME`, or LAB_NAME in the environment; if nobody needs it, remove what has "
        f"the label {LABEL}={name} (`docker ps -a --filter label={LABEL}={name}`)",
    )


def choose_driver(name: str, folder: StateFolder, kind: str | None, progress: Progress, sshd: str = "auto") -> Driver:
    """Return the driver for `up`: the one that has the lab; else *kind*, docker where an engine answers, or local."""
    if kind is not None and kind not in _TABLE:
        return make(kind, name, folder, sshd)
    for driver in usable(name, folder, sshd):
        if driver.exists():
            if owner := driver.stranger():
                if {kind, folder.made_by} - {None, driver.kind}:
                    continue
                raise not_ours(name, owner)
            if kind not in {None, driver.kind}:
                raise LabConflict(
                    f"the lab {name} is {driver.kind} already", remedy=f"`lab down --name {name}`, or another name"
                )
            return driver
    # A lab that was docker's stays so while its engine is away: a local one in its folder would hide it.
    kind = kind or folder.made_by
    if kind is not None:
        return make(kind, name, folder, sshd)
    return _best(name, folder, progress, sshd)


def best() -> str:
    """Return the name of the driver that `up` would take for a new lab: the first that can run here, else the last of all."""
    for kind in kinds():
        with contextlib.suppress(EnvironmentUnfit):
            return kind.make("doctor", StateFolder("doctor"), "auto").kind
    return names()[-1]


def _best(name: str, folder: StateFolder, progress: Progress, sshd: str) -> Driver:
    """Return the first driver that this machine can run; raise what the very first says if there is none."""
    failure: EnvironmentUnfit | None = None
    for each in kinds():
        try:
            driver = each.make(name, folder, sshd)
        except EnvironmentUnfit as error:
            failure = failure or error
            continue
        if failure is not None:
            progress.note(f"{failure.what}: {each.fallback}")
        return driver
    assert failure is not None
    raise failure
