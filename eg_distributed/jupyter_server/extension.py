"""The server extension, enabled by installing: what a Jupyter server has of us before its first kernel, and beside its kernels.

Each part is a room of its own with a `begin(app)`, called in order when the server loads us, which is before it serves HTTP. A
part that cannot be loaded, or cannot begin, is named in the log, with why, and the others begin all the same: kernels on hosts
need none of them.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any, NamedTuple

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """What is begun: how it is named to people, the room, and what is called there."""

    name: str
    room: str
    begin: str = "begin"
    needs_lists: bool = False
    """Whether it uses what jupyter_server lists of kernels, which a kernel manager of somebody's may lack: see `listed`."""


PARTS = (
    # Before all that may make the cluster: whether kernels are found again decides what nodes know the server by.
    Part("records of kernels", "adoption", "prepare", needs_lists=True),
    Part("kernelspecs of hosts", "kernelspecs"),
    Part("clients' connections", "websocket"),
    Part("what is said of hosts out of reach", "out_of_reach", needs_lists=True),
    Part("kernels that outlive their server", "adoption", needs_lists=True),  # found with the hosts' kernelspecs
    Part("taking over kernels of other servers", "hand_over"),
    Part("an end that comes", "ending", needs_lists=True),
    Part("/api/distributed", "rest"),
    Part("our part of /metrics", "metrics"),
    Part("events of hosts", "events", needs_lists=True),
)


def _load_jupyter_server_extension(app: Any) -> None:
    """Begin every part; called by jupyter_server with its ServerApp, by releases before 2 as well, which have no use for us."""
    import jupyter_server

    if jupyter_server.version_info < (2,) or not hasattr(app, "event_logger"):
        app.log.info(
            "eg_distributed does nothing in this server, which is jupyter_server %s: its extension is for 2.14 or later",
            jupyter_server.__version__,
        )
        return
    _log_as(app)
    has_lists = _has_lists(app)
    for part in PARTS:
        if part.needs_lists and not has_lists:
            continue
        try:
            getattr(importlib.import_module(f".{part.room}", __package__), part.begin)(app)
        except Exception:
            # Whatever is wrong with one of ours, the server is the user's: it starts.
            log.exception("%s: left out of this server", part.name)


def _log_as(app: Any) -> None:
    """Have what we log written as the server's own lines are, as it does with tornado's, unless we have handlers already."""
    ours = logging.getLogger("eg_distributed")
    if not ours.handlers:
        ours.parent = app.log


def _has_lists(app: Any) -> bool:
    """Return False, and say what is left out, if the server's kernel manager is not as jupyter_server's."""
    if getattr(getattr(app, "gateway_config", None), "gateway_enabled", False):
        return False  # its kernels are a gateway's
    from . import listed

    if lacks := listed.missing(app.kernel_manager):
        log.error(
            "kernels end with this server, and nothing is said of hosts out of reach: its kernel manager (%s) has no %s",
            type(app.kernel_manager).__name__, ", ".join(lacks),
        )  # fmt: skip
    return not lacks
