"""Which host takes the next kernel. Others plug in their own by the entry point group `eg_distributed.load_balancers`."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import ClassVar, NamedTuple, cast

from .errors import RequestInvalid
from .hosts import HostSet

__all__ = ["GROUP", "HostView", "LeastConnection", "LoadBalancer", "RoundRobin", "load_balancer"]

GROUP = "eg_distributed.load_balancers"
"""The entry point group; an entry's name is what `load_balancer` or `EG_DISTRIBUTED_LOAD_BALANCER` is set to."""


class HostView(NamedTuple):
    """What a balancer may know of a host, at the moment of a pick."""

    name: str
    kernels: int
    """Kernels on the host, of all gateways, and those that this gateway is starting there."""
    healthy: bool = True
    """False if the host failed recently; such hosts are offered only when no healthy one is left."""
    known: bool = True
    """False while the host is not connected, and has failed: `kernels` is then what was there when it last was, or 0."""


class LoadBalancer(ABC):
    """Picks hosts for one host set. The cluster makes one for each host set and calls it from its own thread only."""

    is_exact: ClassVar[bool] = False
    """Whether a start is refused, and another host picked, where the host turns out to have more kernels than `pick` was told:
    another gateway may have started some in the same moment. That costs a round trip where it happens, and nothing else."""

    def __init__(self, hosts: HostSet) -> None:
        self.hosts = hosts

    @abstractmethod
    def pick(self, candidates: Sequence[HostView]) -> HostView:
        """Return the one of *candidates* (never empty, in the order of `hosts`) that is to take the next kernel.

        Called once for a start, and again, without the hosts that failed, for each host that could not take it; with `is_exact`
        also where the host had more kernels than it was picked for. Pins and restarts don't come here.
        """


class RoundRobin(LoadBalancer):
    """One host after the other, in the order of the host set."""

    def __init__(self, hosts: HostSet) -> None:
        super().__init__(hosts)
        self._places = {name: place for place, name in enumerate(hosts)}
        self._last = len(hosts) - 1

    def pick(self, candidates: Sequence[HostView]) -> HostView:
        """Return the next candidate after the one picked last."""
        places, first, count = self._places, self._last + 1, len(self.hosts)
        chosen = min(candidates, key=lambda view: (places[view.name] - first) % count)
        self._last = places[chosen.name]
        return chosen


class LeastConnection(RoundRobin):
    """The host with the fewest kernels; among equals, the one whose turn it is, so that an idle cluster fills evenly.

    Hosts of which nothing is known come last: one that never answers would have the fewest kernels for ever.

    Turns go by an order of this gateway's own. In that of the host set, gateways that see the same counts would all choose the
    same host at the same moment: of fifty starts on fifty hosts by ten gateways, ten would go to each of the first five.
    """

    is_exact = True

    def __init__(self, hosts: HostSet) -> None:
        super().__init__(hosts)
        order = random.sample(hosts, len(hosts))
        self._places = {name: place for place, name in enumerate(order)}

    def pick(self, candidates: Sequence[HostView]) -> HostView:
        """Return the candidate with the fewest kernels."""
        candidates = [view for view in candidates if view.known] or candidates
        fewest = min([view.kernels for view in candidates])  # a list: it is counted for each start
        return super().pick([view for view in candidates if view.kernels == fewest])


def load_balancer(name: str) -> Callable[[HostSet], LoadBalancer]:
    """Return the class that is registered as *name*; raises RequestInvalid with the known names otherwise."""
    builtin: dict[str, type[LoadBalancer]] = {"round-robin": RoundRobin, "least-connection": LeastConnection}
    if name in builtin:
        return builtin[name]
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return cast("Callable[[HostSet], LoadBalancer]", entry.load())
    known = sorted({*builtin, *(entry.name for entry in entry_points(group=GROUP))})
    raise RequestInvalid(f"no load balancer is called {name!r}", remedy=f"use one of {', '.join(known)}")
