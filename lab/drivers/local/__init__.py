"""The local driver: nodes and gateways as this user's processes on loopback ports, where there is no container engine."""
