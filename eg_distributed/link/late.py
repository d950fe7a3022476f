"""`connect` and `leads_here` for other rooms: asyncssh is imported by the first call, or by `prepare` before it.

asyncssh and what it imports take 0.3 s and more, on a slow home many seconds. A Jupyter server without hosts never needs them,
and one with hosts should not start later for them. Nor should a loop that has other things to do stand still: a thread imports
them.
"""

from __future__ import annotations

from eg_distributed.aside import aside
from eg_distributed.settings import Distributed

from .way import Link, Progress

__all__ = ["connect", "leads_here", "prepare"]

_imported: list[bool] = []
"""Not empty once all is imported: modules are listed by Python before they are complete."""


async def connect(host: str, settings: Distributed, *, keep: bool = False, progress: Progress | None = None) -> Link:
    """Do as `connect.connect`."""
    await prepare()
    from .connect import connect

    return await connect(host, settings, keep=keep, progress=progress)


async def leads_here(host: str, settings: Distributed) -> bool:
    """Do as `connect.leads_here`."""
    await prepare()
    from .connect import leads_here

    return await leads_here(host, settings)


async def prepare() -> None:
    """Have imported what a connection needs; called by a cluster at its begin, and by those that need it then."""
    if not _imported:
        try:
            await aside("asyncssh", _import)
        except OSError:  # too many threads hang with names or homes: better a moment in which nothing else is done
            _import()


def _import() -> None:
    from . import connect  # noqa: F401

    _imported.append(True)
