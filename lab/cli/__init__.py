"""The command `lab`: verbs by the room they belong to. Data goes to stdout, progress and errors to stderr."""

from lab.cli.root import cli, main

__all__ = ["cli", "main"]
