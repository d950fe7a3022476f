"""How long hosts have been out of reach, counted so that what the gateway itself cannot see is held against no host."""

from __future__ import annotations

from collections.abc import Mapping

_LONGEST = 5.0
"""Seconds that may count between two looks: a gateway that stood still, or slept, has seen nothing meanwhile."""


class Absences:
    """The absences of all hosts of a gateway; owned by the Cluster, which looks every second.

    An absence grows only while another host is reached. With all of them away at once, it is most likely the gateway's own
    network that is down: a clock that went on would have every kernel of every host given up when it is over.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._looked_at: float | None = None

    def look(self, now: float, reached: Mapping[str, bool], *, online: bool) -> None:
        """Count the time since the last look.

        Args:
            now: in the loop's time
            reached: for each host's name whether it is connected
            online: whether any of them is reached over the network

        """
        passed = 0.0 if self._looked_at is None else min(now - self._looked_at, _LONGEST)
        self._looked_at = now
        for name, is_reached in reached.items():
            if is_reached:
                self._seconds.pop(name, None)
            elif online:
                self._seconds[name] = self._seconds.get(name, 0.0) + passed

    def seconds(self, host: str) -> float:
        """Return the seconds that count for *host* since it was last reached; 0 while it is."""
        return self._seconds.get(host, 0.0)
