"""The catalogue of faults: every kind by its name."""

from __future__ import annotations

from functools import cache

from lab.errors import LabUsageError
from lab.faults.catalogue.daemons import KINDS as DAEMONS
from lab.faults.catalogue.disks import KINDS as DISKS
from lab.faults.catalogue.host import KINDS as HOST
from lab.faults.catalogue.login import KINDS as LOGIN
from lab.faults.catalogue.network import KINDS as NETWORK
from lab.faults.catalogue.resolving import KINDS as RESOLVING
from lab.faults.catalogue.shaping import KINDS as SHAPING
from lab.faults.catalogue.ssh import KINDS as SSH
from lab.faults.model import FaultKind
from lab.names import nearest


@cache
def _kinds() -> dict[str, FaultKind]:
    return {each.name: each for each in (*NETWORK, *SHAPING, *RESOLVING, *HOST, *DISKS, *SSH, *LOGIN, *DAEMONS)}


def catalogue() -> list[FaultKind]:
    """Return all faults, by group; what `lab fault catalogue` prints."""
    return list(_kinds().values())


def kind(name: str) -> FaultKind:
    """Return one fault of the catalogue; raise LabUsageError with the nearest names."""
    found = _kinds().get(name)
    if found is None:
        near = nearest(name, _kinds(), 3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "`lab fault catalogue` names all"
        raise LabUsageError(f"there is no fault {name!r}", remedy=remedy)
    return found
