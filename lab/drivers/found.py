"""What drivers find on this machine: labs, by whatever of them is there, and what is left of labs that are gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import lease as leases


@dataclass(frozen=True)
class FoundLab:
    """One lab, by whatever of it is there. *made* is UNIX seconds, 0 if nothing says it."""

    name: str
    driver: str
    nodes: int = 0
    gateways: int = 0
    running: int = 0
    made: float = 0.0
    lease: leases.Lease | None = None
    folder: Path | None = None
    user: str = ""
    """`user@host`: who made it, where a label says it."""
    services: int = 0
    clusters: tuple[str, ...] = ()
    """`spark`, `yarn`: the clusters that have a master's machine."""

    @property
    def machines(self) -> int:
        """Nodes, gateways and masters, running or not."""
        return self.nodes + self.gateways + self.services

    @property
    def owner(self) -> str:
        """Whose it is: who holds its lease, else who made it; empty where nothing says it."""
        return self.lease.owner if self.lease else self.user.partition("@")[0]

    def as_dict(self) -> dict[str, Any]:
        """Return what `lab ls --json` prints of it."""
        return {
            "name": self.name,
            "driver": self.driver,
            "nodes": self.nodes,
            "gateways": self.gateways,
            "services": self.services,
            "with": list(self.clusters),
            "running": self.running,
            "made": self.made or None,
            "owner": self.owner or None,
            "expires": self.lease.expires if self.lease else None,
            "folder": str(self.folder) if self.folder else None,
        }


@dataclass(frozen=True)
class Stray:
    """Something that a lab has left outside of its folder, which is gone: *what* and *why*, and what removes it.

    *remove* returns what was removed, in words.
    """

    lab: str
    what: str
    why: str
    remove: Callable[[], list[str]] = field(repr=False)
