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
_FEW = 1000
"""Processes of the machine, at most, that are all looked at: some fifteen milliseconds, in which no cell is carried."""
_MOST_CHILDREN = 64
"""Of one process that are looked at."""
_QUOTAS_V2, _QUOTAS_V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")


class Use(NamedTuple):
    """What processes have used of the processors so far."""

    seconds: float
    """Of processors' time, with that of children which have been waited for."""
    runs: bool
    """Whether one of them runs now, or would if a processor were free."""

    def plus(self, other: Use) -> Use:
        """Return what both have used."""
        return Use(self.seconds + other.seconds, self.runs or other.runs)


class Processors:
    """The processors of the machine; owned by `admission.Admission`. A simulated node has others."""

    spare = 1.25
    """Starts for each processor: a fifth of its time a cold start waits for a disk, or for a socket to be seen."""
    least = 2
    """Starts at once on any machine: while one waits, the other one computes."""

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

    def used_below(self, pids: Iterable[int]) -> dict[int, Use]:
        """Return what each process has used with all that it has started, and those; the ones that are gone are left out.

        Where the system does not tell a process's children, what is of its session counts, unless there are very many processes
        on the machine: then it is as `used`.
        """
        found: dict[int, Use] = {}
        sessions: set[int] = set()
        for pid in pids:
            fields = _stat(pid)
            if fields is not None:
                found[pid] = _use(fields)
                below = _children(pid)
                if below is None:
                    sessions.add(pid)
                for each in below or ():
                    found[pid] = found[pid].plus(each)
        others: list[int] = []
        with contextlib.suppress(OSError):  # without a descriptor to spare: then it is as `used`
            others = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()] if sessions else []
        for pid in others if len(others) <= _FEW else ():
            fields = _stat(pid)
            if fields is not None and (session := int(fields[3])) in sessions and session != pid:
                found[session] = found[session].plus(_use(fields))
        return found


def _children(pid: int) -> Optional[list[Use]]:
    """Return what each process has used that *pid* has started, and those; None where the system does not tell them."""
    found: list[Use] = []
    waiting = [pid]
    while waiting and len(found) < _MOST_CHILDREN:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
            children = [Path(f"/proc/{parent}/task/{thread}/children").read_bytes().split() for thread in threads]
        except FileNotFoundError:
            if parent == pid and os.path.exists(f"/proc/{pid}/task/{pid}"):
                return None
            continue  # it has ended
        except OSError:
            continue
        for child in (int(each) for some in children for each in some):
            fields = _stat(child)
            if fields is not None:
                found.append(_use(fields))
                waiting.append(child)
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
