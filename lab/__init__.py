"""A container lab of SSH nodes with FQDN names and a Jupyter Enterprise Gateway."""

from lab.errors import EnvironmentUnfit, LabConflict, LabError, LabNotFound, LabNotReady, LabUsageError
from lab.kernel_probe import Landing, start_kernel_on
from lab.lab import Lab
from lab.machines import ExecResult, Gateway, Node

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
