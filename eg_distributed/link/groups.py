"""Ending a child with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["end_group"]


def end_group(leader: int) -> None:
    """Kill the process group of *leader*, a child that was started with a session of its own; none may be left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
