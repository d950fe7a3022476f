"""What a check found, and what all of them say together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

State = Literal["ok", "warning", "missing", "unknown"]
"""`warning`: a lab can be made, with less in it or on a second way. `missing`: not without it. `unknown`: nobody could look."""

BOTH: Final = frozenset({"docker", "local"})
DOCKER: Final = frozenset({"docker"})
LOCAL: Final = frozenset({"local"})


@dataclass(frozen=True)
class Finding:
    """One thing: its *name* (stable, for programs), its *state*, what was *found*, and the *remedy* if it isn't ok."""

    name: str
    state: State
    found: str
    remedy: str = ""
    drivers: frozenset[str] = field(default=BOTH)
    """Which drivers it is about."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab doctor --json` prints of it."""
        return {
            "name": self.name,
            "state": self.state,
            "found": self.found,
            "remedy": self.remedy,
            "drivers": sorted(self.drivers),
        }


@dataclass(frozen=True)
class Report:
    """All findings, for the *driver* that was asked for or that `up` would take."""

    driver: str
    findings: tuple[Finding, ...]

    @property
    def missing(self) -> list[Finding]:
        """What a lab of this driver can't be made without."""
        return [each for each in self.findings if each.state == "missing" and self.driver in each.drivers]

    @property
    def fit(self) -> bool:
        """Say whether `up` has all that it needs."""
        return not self.missing

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab doctor --json` prints: a contract that only grows."""
        findings = [each.as_dict() for each in self.findings]
        return {"driver": self.driver, "fit": self.fit, "missing": [m.name for m in self.missing], "findings": findings}
