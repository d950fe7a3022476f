"""Durations and sizes as people write them: `15s`, `2h`, `512m`, `2g`."""

from __future__ import annotations

import re
from typing import Final

DURATION: Final = r"[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?"
SIZE: Final = r"[0-9]+(\.[0-9]+)?[kKmMgG]?i?[bB]?"

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def seconds(text: str | float) -> float:
    """Return seconds for `15s`, `1.5h`, `250ms`, `30` and numbers; raise ValueError for anything else."""
    if isinstance(text, (int, float)):
        return float(text)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration: write 15s, 250ms, 2m, 8h or 1d")
    return float(match.group(1)) * _SECONDS[match.group(2) or "s"]


def size(text: str | float) -> int:
    """Return bytes for `512m`, `2g`, `2GiB` (all powers of 1024) and numbers; raise ValueError for anything else."""
    if isinstance(text, (int, float)):
        return int(text)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmg]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is no size: write 512m, 2g or a number of bytes")
    return int(float(match.group(1)) * _BYTES[match.group(2)])
