"""The examination: the engine first, then everything else at once, in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from lab.doctor import engine, host, kernel
from lab.doctor.findings import Finding, Report
from lab.drivers.choice import KINDS
from lab.errors import LabUsageError


def examine(driver: str | None = None) -> Report:
    """Look at this machine for a lab of *driver*, or of the one that `up` would take; called by `lab doctor`.

    Never raises for what it finds: a check that fails is a finding itself.
    """
    if driver not in {None, *KINDS}:
        raise LabUsageError(f"there is no driver {driver!r}")
    client, found = engine.connect()
    rooms: list[tuple[str, Callable[[], Iterator[Finding]]]] = [("kernel", kernel.checks), ("host", host.checks)]
    if client is not None:
        rooms.insert(0, ("engine", lambda: engine.checks(client)))
    with ThreadPoolExecutor(len(rooms)) as pool:
        findings = [found, *(each for each_room in pool.map(_look, rooms) for each in each_room)]
    chosen = driver or ("docker" if client is not None else "local")
    return Report(chosen, tuple(findings))


def _look(room: tuple[str, Callable[[], Iterator[Finding]]]) -> list[Finding]:
    """Run a room's checks; one that breaks ends its room with a finding that says so, and the others still speak."""
    name, checks = room
    findings: list[Finding] = []
    try:
        findings.extend(checks())
    except Exception as error:  # noqa: BLE001 -- a doctor who dies of what he finds helps nobody
        findings.append(Finding(f"{name} checks", "unknown", f"{type(error).__name__}: {error}", "report this"))
    return findings
