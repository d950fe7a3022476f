"""`connect` and `leads_here` for other rooms: asyncssh is imported by the first call, or by `prepare` before it.

asyncssh and what it imports take 0.3 s and more. A Jupyter server without hosts never needs them, and one with hosts should not
start later for them.
"""

from __future__ import annotations

from eg_distributed.settings import Distributed

from .way import Link, Progress

__all__ = ["connect", "leads_here", "prepare"]


async def connect(host: str, settings: Distributed, *, keep: bool = False, progress: Progress | None = None) -> Link:
    """Do as `connect.connect`, which is imported by the first call."""
    from .connect import connect

    return await connect(host, settings, keep=keep, progress=progress)


async def leads_here(host: str, settings: Distributed) -> bool:
    """Do as `connect.leads_here`, which is imported by the first call."""
    from .connect import leads_here

    return await leads_here(host, settings)


def prepare() -> None:
    """Import what a connection needs, if nobody has yet; called by a cluster's thread at its begin."""
    from . import connect  # noqa: F401
