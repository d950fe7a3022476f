"""Figures: us beside Enterprise Gateway's own proxy, in one run on one lab."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone


def this_machine(load: float | None = None) -> str:
    """Return what figures were measured on, with the *load* before, where that is told."""
    before = "" if load is None else f"a load of {load:.1f} before, "
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {before}{system}"


def today() -> str:
    """Return the date of a measurement."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")
