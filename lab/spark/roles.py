"""Which daemons `--with spark` and `--with yarn` mean, on which machines: names alone, images/*/daemons runs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

from lab.errors import LabUsageError

Role = Literal["spark", "yarn"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

MASTERS: Final[dict[Role, str]] = {"spark": "spark-master", "yarn": "yarn-resourcemanager"}
"""What runs once, on a machine of its own."""
WORKERS: Final[dict[Role, str]] = {"spark": "spark-worker", "yarn": "yarn-nodemanager"}
"""What runs on every node."""
MACHINES: Final[dict[Role, str]] = {"spark": "spark-master", "yarn": "yarn-rm"}
"""The masters' machines, by their short names."""
PORTS: Final[dict[Role, int]] = {"spark": 8080, "yarn": 8088}
"""Where the masters answer to HTTP."""


def check(roles: Iterable[str]) -> tuple[Role, ...]:
    """Return *roles*, each once and in a fixed order; raise LabUsageError for one that there isn't."""
    wanted = set(roles)
    for role in sorted(wanted - set(ROLES)):
        raise LabUsageError(f"there is no role {role!r}", remedy=f"choose among {', '.join(ROLES)}")
    return tuple(role for role in ROLES if role in wanted)


def on_nodes(roles: Iterable[str]) -> tuple[str, ...]:
    """Return the daemons that each node runs in a lab with *roles*."""
    return tuple(WORKERS[role] for role in check(roles))


def of(daemons: Iterable[str]) -> tuple[Role, ...]:
    """Return the roles that *daemons*, masters or workers, belong to."""
    there = set(daemons)
    return tuple(role for role in ROLES if there & {MASTERS[role], WORKERS[role]})


def is_master(daemons: Sequence[str]) -> bool:
    """Say whether a machine with *daemons* is a master's, and so no node that kernels are started on."""
    return any(daemon in MASTERS.values() for daemon in daemons)


def image(daemons: Sequence[str]) -> str:
    """Return the image that has *daemons*: one builds on the other, and plain nodes pay for neither."""
    roles = of(daemons)
    return "yarn" if "yarn" in roles else "spark" if roles else "node"
