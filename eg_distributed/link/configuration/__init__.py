"""What ssh_config says of a host, read once, by `ssh -G` or by our own reader, into one object that the login uses as it is."""

from .configuration import Configuration, Hop, configuration_of, own_user

__all__ = ["Configuration", "Hop", "configuration_of", "own_user"]
