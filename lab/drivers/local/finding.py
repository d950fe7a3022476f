"""Labs of this user's processes, read from the labs' folders; and processes that are left of labs without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lab import lease as leases
from lab.drivers.found import FoundLab, Stray
from lab.drivers.local import processes
from lab.drivers.local.driver import LocalDriver
from lab.errors import EnvironmentUnfit, LabError
from lab.processes import Process, environment
from lab.state import StateFolder, lab_folders, locked, state_root


def find_labs() -> Iterator[FoundLab]:
    """Yield the labs of this user's processes; none on a system where the driver can't run."""
    for folder in lab_folders():
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


def strays() -> Iterator[Stray]:
    """Yield processes that carry a local lab's mark, of a lab whose folder is gone."""
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
        yield Stray(name, what, f"its folder {root / name} is gone", end)


def _lab_of(pid: int, root: Path) -> str:
    """Return the name of the lab whose mark a process carries, nothing if it is only a descendant of one that does."""
    place = environment(pid).get(processes.MARK, "")
    return place.removeprefix(f"{root}/").split("/")[0] if place.startswith(f"{root}/") else ""
