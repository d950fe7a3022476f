"""Which daemons `--with spark` and `--with yarn` mean, on which machines: names alone, images/*/daemons runs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

from lab.errors import LabUsageError

Kind = Literal["spark", "yarn"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

MASTERS: Final[dict[Kind, str]] = {"spark": "spark-master", "yarn": "yarn-resourcemanager"}
"""What runs once, on a machine of its own."""
WORKERS: Final[dict[Kind, str]] = {"spark": "spark-worker", "yarn": "yarn-nodemanager"}
"""What runs on every node."""
MACHINES: Final[dict[Kind, str]] = {"spark": "spark-master", "yarn": "yarn-rm"}
"""The masters' machines, by their short names."""
PORTS: Final[dict[Kind, int]] = {"spark": 8080, "yarn": 8088}
"""Where the masters answer to HTTP."""
JUPYTERLAB: Final = "jupyterlab"
"""The other word of `--with`, which is no daemon of nodes: a gateway of this name that is a JupyterLab."""
WITH: Final = (*KINDS, JUPYTERLAB)
"""All words of `--with`."""
LISTENS: Final[dict[str, tuple[int, ...]]] = {
    "spark-master": (7077, 8080),
    "spark-worker": (7078, 8081),
    "yarn-resourcemanager": (8030, 8031, 8032, 8033, 8088),
    "yarn-nodemanager": (8040, 8041, 8042),
}
"""The daemons' ports, where each has its machine's; in a local lab other ports stand for these."""


def check(kinds: Iterable[str]) -> tuple[Kind, ...]:
    """Return *kinds*, each once and in a fixed order; raise LabUsageError for one that there isn't."""
    wanted = set(kinds)
    for kind in sorted(wanted - set(KINDS)):
        raise LabUsageError(f"there is no kind {kind!r}", remedy=f"choose among {', '.join(WITH)}")
    return tuple(kind for kind in KINDS if kind in wanted)


def on_nodes(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return the daemons that each node runs in a lab with *kinds*."""
    return tuple(WORKERS[kind] for kind in check(kinds))


def of(daemons: Iterable[str]) -> tuple[Kind, ...]:
    """Return the kinds that *daemons*, masters or workers, belong to."""
    there = set(daemons)
    return tuple(kind for kind in KINDS if there & {MASTERS[kind], WORKERS[kind]})


def is_master(daemons: Sequence[str]) -> bool:
    """Say whether a machine with *daemons* is a master's, and so no node that kernels are started on."""
    return any(daemon in MASTERS.values() for daemon in daemons)


def image(daemons: Sequence[str]) -> str:
    """Return the image that has *daemons*: one builds on the other, and plain nodes pay for neither."""
    kinds = of(daemons)
    return "yarn" if "yarn" in kinds else "spark" if kinds else "node"
