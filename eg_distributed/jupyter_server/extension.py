"""The server extension, enabled by installing: what a Jupyter server has of us before its first kernel, and beside its kernels.

Each part is a room of its own with a `begin(app)`, called in order when the server loads us, which is before it serves HTTP. A
part that cannot begin is named in the log, with why, and the others begin all the same: kernels on hosts need none of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from . import events, metrics, rest

log = logging.getLogger(__name__)

PARTS: tuple[tuple[str, Callable[[Any], None]], ...] = (
    ("/api/distributed", rest.begin),
    ("our part of /metrics", metrics.begin),
    ("events of hosts", events.begin),
)
"""What is begun, and how it is named to people."""


def _load_jupyter_server_extension(app: Any) -> None:
    """Begin every part; called by jupyter_server (2 and later) with its ServerApp."""
    for name, begin in PARTS:
        try:
            begin(app)
        except Exception:
            # Whatever is wrong with one of ours, the server is the user's: it starts.
            log.exception("%s: left out of this server", name)
