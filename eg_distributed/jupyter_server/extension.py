"""The server extension, enabled by installing: what a Jupyter server has of us before its first kernel, and beside its kernels.

Each part is a room of its own with a `begin(app)`, called in order when the server loads us, which is before it serves HTTP. A
part that cannot be loaded, or cannot begin, is named in the log, with why, and the others begin all the same: kernels on hosts
need none of them.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

log = logging.getLogger(__name__)

PARTS = (
    ("kernelspecs of hosts", "kernelspecs"),
    ("clients' connections", "websocket"),
    ("what is said of hosts out of reach", "out_of_reach"),
    ("kernels that outlive their server", "adoption"),
    ("taking over kernels of other servers", "hand_over"),
    ("an end that comes", "ending"),
    ("/api/distributed", "rest"),
    ("our part of /metrics", "metrics"),
    ("events of hosts", "events"),
)
"""What is begun: how it is named to people, and the room. Kernels that are found again need the kernelspecs."""


def _load_jupyter_server_extension(app: Any) -> None:
    """Begin every part; called by jupyter_server (2 and later) with its ServerApp."""
    for name, room in PARTS:
        try:
            importlib.import_module(f".{room}", __package__).begin(app)
        except Exception:
            # Whatever is wrong with one of ours, the server is the user's: it starts.
            log.exception("%s: left out of this server", name)
