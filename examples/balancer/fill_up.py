"""A balancer that fills one host before it takes the next one, so that idle machines can be switched off."""

from __future__ import annotations

from collections.abc import Sequence

from eg_distributed.balancing import HostView, LoadBalancer

KERNELS_EACH = 10
"""How many kernels a host takes before the next host is used."""


class FillUp(LoadBalancer):
    """Fill the hosts in the order of `remote_hosts`, ten kernels each. If all are full, take the one with the fewest."""

    is_exact = True
    """Two gateways may choose the same host at the same moment. The one that comes second picks again."""

    def pick(self, candidates: Sequence[HostView]) -> HostView:
        """Return the first candidate with room. Hosts that have failed are not offered while healthy ones are left."""
        known = [host for host in candidates if host.known] or candidates
        with_room = [host for host in known if host.kernels < KERNELS_EACH]
        return with_room[0] if with_room else min(known, key=lambda host: host.kernels)
