"""What a cluster has done so far, in numbers: written on its loop, read by whoever shows them, from any thread.

Plain integers, and none is ever taken away again, so nothing is locked and nobody waits: a reader sees each number as it was a
moment ago. What shows them to Prometheus is in `metrics.py`; nothing here knows of it.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

__all__ = ["MOST_HOSTS", "OTHER_HOSTS", "OUTCOMES", "START_BOUNDS", "WARM", "Counters", "Durations", "HostCounters"]

OUTCOMES = ("ready", "host_failed", "out_of_time", "kernel_failed", "timeout", "cancelled")
"""What comes of a start on a host: it runs; the host could not take it; the host's login took too long for this start; the kernel
ended before it was ready; it was not ready in time; who asked for it went away, or the gateway ended."""
WARM = ("forked", "cold")
"""How a start that may be warm was done: from a template, or as any other, since none fits."""
START_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
"""Seconds. A warm start takes half of one, a login some more, Spark a minute or two."""
MOST_HOSTS = 1000
"""Hosts that are counted by their names: clients may name any (`allow_any_host`), and each is some twenty time series."""
OTHER_HOSTS = "other"


class Durations:
    """How long something took, by *bounds* in seconds, ascending."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.seconds = 0.0
        """All of them together."""
        self._counts = [0] * (len(bounds) + 1)

    def note(self, seconds: float) -> None:
        """Count one that took so long; one that is just at a bound counts below it."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def cumulative(self) -> list[int]:
        """Return how many took at most so long as each bound; the last number is that of all."""
        return list(accumulate(self._counts.copy()))


class HostCounters:
    """What has been done with one host."""

    def __init__(self, label: str) -> None:
        self.label = label
        """The host's name, or OTHER_HOSTS."""
        self.starts = dict.fromkeys(OUTCOMES, 0)
        self.warm_starts = dict.fromkeys(WARM, 0)
        """Of starts that may be warm: how the kernel's process was made."""
        self.start_seconds = Durations(START_BOUNDS)
        """From the request to a kernel that is ready, other hosts that were tried before included."""
        self.reconnects = 0
        """Connections that were made again, after one was lost."""
        self.connect_failures = 0
        """Attempts to connect that failed."""
        self.deaths = 0
        """Kernels that ended unasked."""
        self.losses = 0
        """Times that streams of a kernel could not go on after a cut, so that output may be missing; told in its notebook."""
        self.bytes_to_kernels = 0
        self.bytes_from_kernels = 0
        self.kept_output_bytes = 0
        """Taken of what the node's agent kept while no gateway was there."""

    def note_start(self, outcome: str) -> None:
        """Count a start on this host; nothing for an empty *outcome*, a start that has not come to anything here."""
        if outcome:
            self.starts[outcome] += 1

    def note_warm(self, how: str) -> None:
        """Count how a start went that might have been warm; nothing for an empty text, which is of any other."""
        if how in self.warm_starts:
            self.warm_starts[how] += 1


class Counters:
    """Those of all hosts of a cluster, which owns it."""

    def __init__(self) -> None:
        self._hosts: dict[str, HostCounters] = {}
        self._others = HostCounters(OTHER_HOSTS)

    def of_host(self, name: str) -> HostCounters:
        """Return what is counted for the host *name*; of more than MOST_HOSTS, those of all further ones together."""
        found = self._hosts.get(name)
        if found is None:
            if len(self._hosts) >= MOST_HOSTS:
                return self._others
            found = self._hosts[name] = HostCounters(name)
        return found

    def hosts(self) -> list[HostCounters]:
        """Return all that is counted; from any thread."""
        known = list(self._hosts.copy().values())
        return [*known, self._others] if len(known) >= MOST_HOSTS else known
