"""The examination: what each driver stands on, and what any lab needs, all at once and told in a fixed order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from lab.doctor import host
from lab.doctor.report import Report
from lab.drivers import choice
from lab.drivers.findings import Finding
from lab.errors import LabUsageError

Part = tuple[str, Callable[[], Iterable[Finding]], frozenset[str]]
"""The name of a part of the examination, its checks, and the drivers that they are about."""


def examine(driver: str | None = None) -> Report:
    """Look at this machine for a lab of *driver*, or of the one that `up` would take; called by `lab doctor`.

    Never raises for what it finds: a check that fails is a finding itself.
    """
    if driver not in {None, *choice.names()}:
        raise LabUsageError(f"there is no driver {driver!r}", remedy=f"choose one of {', '.join(choice.names())}")
    parts: list[Part] = [
        (name, checks, frozenset({kind.name})) for kind in choice.kinds() for name, checks in kind.checks.items()
    ]
    parts.append(("host", host.checks, frozenset(choice.names())))
    with ThreadPoolExecutor(len(parts) + 1) as pool:
        chosen = pool.submit(lambda: driver or choice.best())
        findings = [found for part in pool.map(_look, parts) for found in part]
        return Report(chosen.result(), tuple(findings))


def _look(part: Part) -> list[Finding]:
    """Run a part's checks; one that breaks ends its part with a finding that says so, and the others still speak."""
    name, checks, drivers = part
    findings: list[Finding] = []
    try:
        findings.extend(checks())
    except Exception as error:  # noqa: BLE001 -- a doctor who dies of what he finds helps nobody
        findings.append(Finding(f"{name} checks", "unknown", f"{type(error).__name__}: {error}", "report this"))
    return [dataclasses.replace(found, drivers=drivers) for found in findings]
