"""What all findings say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lab.drivers.findings import Finding


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
