"""What can be done to every container of a lab."""

from __future__ import annotations

from typing import Final

from lab.drivers.capabilities import Capability

CAPABILITIES: Final[frozenset[Capability]] = frozenset(
    {"network", "system", "processes", "mounts", "limits", "freezer", "sshd-supervised"}
)
