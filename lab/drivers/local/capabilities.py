"""What can be done to every machine of a local lab."""

from __future__ import annotations

from typing import Final

from lab.drivers.capabilities import Capability

CAPABILITIES: Final[frozenset[Capability]] = frozenset({"stop-signals", "sshd-main"})
