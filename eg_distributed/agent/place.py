"""An agent's place: its socket's name in its folder."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

BACKLOG = 1024
"""Connections that may wait to be accepted: a gateway that comes back opens one for each stream at once."""


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at *path*, whatever was there; raises OSError.

    It is bound under a name of its own and then moved, so that whoever sees the real name can connect.
    """
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(temporary)
        listening.listen(BACKLOG)
        os.rename(temporary, path)
    except OSError:
        listening.close()
        raise
    return listening
