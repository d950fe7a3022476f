"""The docker driver: nodes and gateways as containers on a network of their own, through the Engine's API."""
