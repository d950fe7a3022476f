"""A lab of SSH nodes with FQDN names and a Jupyter Enterprise Gateway, in containers or as processes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.converge.kernel_probe import Landing, start_kernel_on
    from lab.drivers.machines import ExecResult, Gateway, Node
    from lab.errors import EnvironmentUnfit, LabConflict, LabError, LabNotFound, LabNotReady, LabUsageError
    from lab.lab import Lab

__all__ = [
    "EnvironmentUnfit",
    "ExecResult",
    "Gateway",
    "Lab",
    "LabConflict",
    "LabError",
    "LabNotFound",
    "LabNotReady",
    "LabUsageError",
    "Landing",
    "Node",
    "start_kernel_on",
]

_HOMES = {
    "Lab": "lab.lab",
    "Landing": "lab.converge.kernel_probe",
    "start_kernel_on": "lab.converge.kernel_probe",
    "ExecResult": "lab.drivers.machines",
    "Gateway": "lab.drivers.machines",
    "Node": "lab.drivers.machines",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is: every pytest loads this package for its plugin, and few of them use a lab."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "lab.errors")), name)


def __dir__() -> list[str]:
    return __all__
