"""A lab of nothing but machines that a test describes, for what looks at a lab's machines and changes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from lab.lab import Lab
from lab.state import StateFolder


class FakeLab:
    """As much of a lab as its clusters and an export ask for. Its machines are whatever a test gives it."""

    def __init__(self, nodes: Sequence[Any], gateways: Sequence[Any], services: Sequence[Any]) -> None:
        self.name, self.folder, self.driver = "mine", StateFolder("mine"), "docker"
        self.nodes, self.gateways, self.services = list(nodes), list(gateways), list(services)

    @property
    def machines(self) -> list[Any]:
        """Return all of them."""
        return [*self.gateways, *self.nodes, *self.services]

    def environment(self) -> dict[str, Any]:
        """Return what its users are told of it."""
        return {"name": self.name, "identity": "/path/to/key"}


def fake_lab(nodes: Sequence[Any] = (), *, gateways: Sequence[Any] = (), services: Sequence[Any] = ()) -> Lab:
    """Return a lab with the name `mine` that has these machines."""
    return cast("Lab", FakeLab(nodes, gateways, services))
