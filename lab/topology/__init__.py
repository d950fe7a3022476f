"""The topology file, `lab.toml`: what a lab shall be, read strictly, compared with what there is."""

from lab.topology.limits import Limits, User
from lab.topology.model import (
    Auth,
    FaultStep,
    GatewayGroup,
    KernelspecEntry,
    NodeGroup,
    Topology,
)
from lab.topology.reading import load, loads
from lab.topology.schema import schema

__all__ = [
    "Auth",
    "FaultStep",
    "GatewayGroup",
    "KernelspecEntry",
    "Limits",
    "NodeGroup",
    "Topology",
    "User",
    "load",
    "loads",
    "schema",
]
