"""How much memory processes have, each page counted once: a page that several share is divided among them (PSS)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path


def pss(pids: Iterable[int]) -> float:
    """Return the MiB of the processes *pids*; those that have ended meanwhile count nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def of_containers(containers: Iterable[str]) -> set[int]:
    """Return the processes of *containers* (full ids), by the numbers that they have on this machine."""
    wanted = tuple(containers)
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            groups = (path / "cgroup").read_text()
            if any(each in groups for each in wanted):
                found.add(int(path.name))
    return found
