"""Which driver a lab is on: the one that has it already, else the best that this machine can run."""

from __future__ import annotations

from lab.drivers.contract import Driver
from lab.errors import EnvironmentUnfit, LabConflict, LabNotFound, LabUsageError
from lab.names import LABEL
from lab.progress import Progress
from lab.state import StateFolder

KINDS = ("docker", "local")


def make(kind: str, name: str, folder: StateFolder, sshd: str = "auto") -> Driver:
    """Return the driver *kind* for the lab *name*; raise EnvironmentUnfit when this machine can't run it.

    *sshd* (`auto`, `openssh`, `asyncssh`) is the SSH server of local nodes.
    """
    if kind == "docker":
        from lab.drivers.docker.driver import DockerDriver

        return DockerDriver(name, folder)
    if kind == "local":
        from lab.drivers.local.driver import LocalDriver

        return LocalDriver(name, folder, sshd)
    raise LabUsageError(f"there is no driver {kind!r}", remedy=f"choose one of {', '.join(KINDS)}")


def usable(name: str, folder: StateFolder, sshd: str = "auto") -> list[Driver]:
    """Return a driver of every kind that this machine can run now; called to look for a lab and to remove one.

    The kind that made the lab's folder comes first: on a shared engine the other may have somebody else's lab of that name.
    """
    found: list[Driver] = []
    for kind in sorted(KINDS, key=lambda each: each != folder.made_by):
        try:
            found.append(make(kind, name, folder, sshd))
        except EnvironmentUnfit:
            continue
    return found


def find_driver(name: str, folder: StateFolder) -> Driver:
    """Return the driver that has the lab *name*; raise LabNotFound, or EnvironmentUnfit if it is on an engine that is away."""
    drivers = usable(name, folder)
    for driver in drivers:
        if driver.exists():
            return driver
    unseen = ""
    if not any(driver.kind == "docker" for driver in drivers):
        if folder.made_by == "docker":
            # It is known to be there, where it can't be seen; or the engine is back by now.
            return make("docker", name, folder)
        unseen = "and no container engine answers"
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
    if kind is not None and kind not in KINDS:
        return make(kind, name, folder, sshd)
    for driver in usable(name, folder, sshd):
        if driver.exists():
            if owner := driver.stranger():
                if "local" in {kind, folder.made_by}:
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
    try:
        return make("docker", name, folder)
    except EnvironmentUnfit as error:
        try:
            driver = make("local", name, folder, sshd)
        except EnvironmentUnfit:
            raise error from None
        progress.note(f"{error.what}: this lab is local, its nodes are processes on loopback ports")
        return driver
