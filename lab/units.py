"""Durations and sizes as people write them: `15s`, `7d`, `512m`, `2g`. The command line, lab.toml and faults read them here."""

from __future__ import annotations

import math
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
    found = math.nan
    if isinstance(value, str):
        if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?", value.strip()):
            found = float(match.group(1)) * _SECONDS[match.group(2) or "s"]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = as_float(value)
    if not math.isfinite(found):
        raise ValueError(f"{shown(value)} is not a duration: write {DURATIONS}")
    return found


def size(value: object) -> int:
    """Return bytes for `512m`, `2g`, `2GiB` (all powers of 1024) and numbers; raise ValueError for anything else."""
    found = math.nan
    if isinstance(value, str):
        if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmg]?)(?:i?b)?", value.strip().lower()):
            found = float(match.group(1)) * _BYTES[match.group(2)]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = as_float(value)
    if not math.isfinite(found):
        raise ValueError(f"{shown(value)} is no size: write 512m, 2g or a number of bytes")
    return int(found)


def as_float(value: float | str) -> float:
    """Return float(*value*), infinite for whole numbers that are too large for one; raise ValueError as float does."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def shown(value: object) -> str:
    """Return *value* as errors show it, which are lines for people: a number may have a thousand digits."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
