"""The node's processors: how many the agent may use, how much of them is free, and how much a process uses.

All readings are of /proc and /sys/fs/cgroup, which answer at once whatever the node's disks do. A reading that is not there
(another system, a hidden /proc) stands for what holds nobody up.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Iterable, NamedTuple, Optional

_UNIT = os.sysconf("SC_CLK_TCK")
"""Clock ticks of /proc in a second."""
_QUOTAS_V2, _QUOTAS_V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")


class Use(NamedTuple):
    """What processes have used of the processors so far."""

    seconds: float
    """Of processors' time, with that of children which have been waited for."""
    runs: bool
    """Whether one of them runs now, or would if a processor were free."""


class Processors:
    """The processors of the machine; owned by `admission.Admission`. A simulated node has others."""

    def count(self) -> int:
        """Return how many the agent, and so its kernels, may use: of its affinity, and of its control groups' quotas."""
        allowed = float(len(os.sched_getaffinity(0)))
        return max(1, round(min([allowed, *_quotas()])))

    def idle(self) -> Optional[float]:
        """Return the seconds for which those that the agent may use have been idle so far, in all; None: it is not known.

        Of /proc/stat, which counts for the whole machine, from inside a container as well.
        """
        # Rejected: /proc/pressure/cpu. It tells that somebody waits, not how much is free, and its shortest average is of ten
        # seconds, after which a storm is half over; Red Hat's systems have it off by default. The load average is of a minute,
        # and counts what waits for disks.
        allowed = os.sched_getaffinity(0)
        seconds, found = 0.0, False
        try:
            with open("/proc/stat", "rb") as stat:
                for line in stat:
                    name, *fields = line.split()
                    if not name.startswith(b"cpu"):
                        break
                    if name[3:].isdigit() and int(name[3:]) in allowed:
                        seconds += (int(fields[3]) + int(fields[4])) / _UNIT  # idle, and idle with a disk at work
                        found = True
        except (OSError, ValueError, IndexError):
            return None
        return seconds if found else None

    def used(self, pid: int) -> Optional[Use]:
        """Return what the process *pid* has used; None if it is gone."""
        found = _stat(pid)
        return None if found is None else _use(found)

    def used_by_sessions(self, sessions: Iterable[int]) -> dict[int, Use]:
        """Return what all processes of each session have used; it looks at every process of the machine."""
        wanted = set(sessions)
        found: dict[int, Use] = {}
        if not wanted:
            return found
        for entry in os.listdir("/proc"):
            fields = _stat(int(entry)) if entry.isdigit() else None
            if fields is not None and (session := int(fields[3])) in wanted:
                one, before = _use(fields), found.get(session, Use(0.0, False))
                found[session] = Use(one.seconds + before.seconds, one.runs or before.runs)
        return found


def _stat(pid: int) -> Optional[list[bytes]]:
    """Return what /proc says of a process, from its state on; None if it is gone, or has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > 15 and fields[0] not in (b"Z", b"X") else None


def _use(fields: list[bytes]) -> Use:
    return Use(sum(int(field) for field in fields[11:15]) / _UNIT, fields[0] == b"R")


def _quotas() -> list[float]:
    """Return the processors' worth of each quota that holds for the agent: of its own control group, and of those above it."""
    found: list[float] = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            names = [part for part in path.split("/") if part]
            if not controllers:
                # In a container the path may be of the machine's own tree, of which only the root is to be seen here.
                found += [
                    quota for depth in range(len(names) + 1) for quota in _v2(_QUOTAS_V2.joinpath(*names[:depth]))
                ]
            elif "cpu" in controllers.split(","):
                found += [
                    quota for depth in range(len(names) + 1) for quota in _v1(_QUOTAS_V1.joinpath(*names[:depth]))
                ]
    return found


def _v2(group: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            return [int(quota) / int(period)]
    return []


def _v1(group: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        quota = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        if quota > 0:
            return [quota / int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))]
    return []
