"""What makes machines: the contract of all drivers, the choice among them, `docker/` and `local/`."""
