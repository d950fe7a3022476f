"""Durations and sizes as people write them: `15s`, `7d`, `512m`, `2g`. The command line, lab.toml and faults read them here."""

from __future__ import annotations

import re
from typing import Final

DURATION: Final = r"[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?"
SIZE: Final = r"[0-9]+(\.[0-9]+)?[kKmMgG]?i?[bB]?"
"""What the JSON schema of lab.toml says of both; the readers below also take blanks around them."""

DURATIONS: Final = "200ms, 5s, 2m, 1h, 7d, or seconds"
"""How errors tell what a duration looks like."""

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def seconds(value: object) -> float:
    """Return seconds for `15s`, `1.5h`, `250ms`, `7d`, `30` and numbers; raise ValueError for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?", value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration: write {DURATIONS}")
    return float(match.group(1)) * _SECONDS[match.group(2) or "s"]


def size(value: object) -> int:
    """Return bytes for `512m`, `2g`, `2GiB` (all powers of 1024) and numbers; raise ValueError for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmg]?)(?:i?b)?", text)
    if match is None:
        raise ValueError(f"{value!r} is no size: write 512m, 2g or a number of bytes")
    return int(float(match.group(1)) * _BYTES[match.group(2)])
