"""What a check of `lab doctor` found. Drivers check what they stand on, the doctor all that any lab needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "missing", "unknown"]
"""`warning`: a lab can be made, with less in it or on a second way. `missing`: not without it. `unknown`: nobody could look."""


@dataclass(frozen=True)
class Finding:
    """One thing: its *name* (stable, for programs), its *state*, what was *found*, and the *remedy* if it isn't ok."""

    name: str
    state: State
    found: str
    remedy: str = ""
    drivers: frozenset[str] = frozenset()
    """Which drivers it is about; the examination knows that, and no check says it."""

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab doctor --json` prints of it."""
        return {
            "name": self.name,
            "state": self.state,
            "found": self.found,
            "remedy": self.remedy,
            "drivers": sorted(self.drivers),
        }
