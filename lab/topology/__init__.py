"""The topology file, `lab.toml`: what a lab shall be, read strictly, compared with what there is."""

from lab.topology.model import (
    Auth,
    FaultStep,
    GatewayGroup,
    KernelspecEntry,
    Limits,
    NodeGroup,
    Topology,
    User,
)

__all__ = ["Auth", "FaultStep", "GatewayGroup", "KernelspecEntry", "Limits", "NodeGroup", "Topology", "User"]
