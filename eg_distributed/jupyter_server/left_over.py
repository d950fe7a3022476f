"""What servers of this user have left that do not come back: records of kernels that are gone, and folders without any.

A record is removed where three things are known: no server has its store; none had it for longer than nodes keep the kernels of a
server that is gone; and the agent that has the kernel, or one that knows of its end, has it no more. So a record stays for as
long as its host is out of reach, or is asked by no server. Nobody logs in for this: hosts are asked that are connected anyway.
A folder without records goes a week after its server, with its name.

Each server does this once an hour, and so says that it lives, by the time of its own folder's file.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from eg_distributed.aside import aside
from eg_distributed.cluster import Cluster
from eg_distributed.errors import HostError
from eg_distributed.hosts import canonical_name
from eg_distributed.link.deadlines import within
from eg_distributed.protocol import AgentIdentity
from eg_distributed.wire import Malformed

from .process import forget_name, server_cluster, while_locked
from .store import Record, Store

__all__ = ["EVERY", "look_after", "remove_left_over"]

log = logging.getLogger(__name__)

EVERY = 3600.0  # seconds between two looks
_FIRST = 60.0  # seconds before the first, in which a server has other things to do
_FILES = 10.0  # seconds for what is on this machine's disks
_HOSTS = 10.0  # seconds for hosts to answer
_LONGER = 86400.0  # seconds for which a server has to be gone beyond the time for which nodes keep its kernels
_FOR_EVER = 30 * 86400.0  # the same where nodes keep them for ever, or nothing is known of that
_EMPTY = 7 * 86400.0  # seconds after which a folder without records goes
_MOST = 1000  # stores that are looked at


@dataclass
class _Left:
    """A server that may not come back."""

    lock: Path
    store: Store
    records: list[Record]
    silent: float
    """Seconds since anything was heard of it."""

    @property
    def has_kernels_no_more(self) -> bool:
        """Whether nodes have ended its kernels, by all that is known on this machine."""
        timeout = self.store.about().get("orphan_timeout")
        if not isinstance(timeout, (int, float)) or timeout <= 0:
            return self.silent > _FOR_EVER
        return self.silent > timeout + _LONGER


async def look_after(store: Store) -> None:
    """Remove what is left over, and say that the server of *store* lives, once an hour; cancelled at its end."""
    pause = _FIRST
    while True:
        await asyncio.sleep(pause)
        pause = EVERY
        try:
            await remove_left_over(store, server_cluster())
        except (OSError, asyncio.TimeoutError) as error:  # a disk that is full, or hangs: it is tried again
            log.debug("what servers have left stays: %r", error)


async def remove_left_over(ours: Store, cluster: Cluster | None) -> None:
    """Remove it, of all other servers whose stores are beside *ours*. Raises OSError, and TimeoutError for a disk that hangs."""
    found = await within(aside(("left over", ours.folder), functools.partial(_find, ours)), _FILES)
    asked = [record for left in found if left.has_kernels_no_more for record in left.records]
    gone = await cluster.run(_gone(cluster, asked)) if cluster is not None and asked else set()
    remove = functools.partial(_remove, found, gone)
    await within(aside(("remove left over", ours.folder), remove), _FILES)


def _find(ours: Store) -> list[_Left]:
    """Return the servers that do not run, and say that ours does."""
    with contextlib.suppress(FileNotFoundError):
        ours.touch()
    found = []
    for kept in sorted(ours.folder.parent.glob("*.d"))[:_MOST]:
        store, lock = Store(kept), kept.with_suffix("")
        if kept == ours.folder or not store.is_ours:
            continue
        with while_locked(lock) as is_free:
            if is_free:
                records, _ = store.read(put_aside=False)
                found.append(_Left(lock, store, records, time.time() - store.last_sign()))
    return found


async def _gone(cluster: Cluster, records: list[Record]) -> set[tuple[str, str]]:
    """Return the kernels and attempts of *records* of which a host says that they are no more; on the cluster's loop."""
    gone: set[tuple[str, str]] = set()
    by_host: dict[str, list[Record]] = {}
    for record in records:
        by_host.setdefault(canonical_name(record.host), []).append(record)
    for name, there in by_host.items():
        host = cluster.hosts.get(name)
        if host is None or not host.node.connected.is_set():
            continue
        (answer,) = (await cluster.list_kernels((name,), _HOSTS)).values()
        agent = host.node.agent
        if isinstance(answer, HostError) or agent is None:
            continue
        running = {kernel.kernel for kernel in answer}
        gone |= {
            (record.kernel, record.attempt)
            for record in there
            if record.kernel not in running and _knows(agent, record)
        }
    return gone


def _knows(agent: AgentIdentity, record: Record) -> bool:
    """Return True if *agent*'s not having the kernel of *record* means that there is none."""
    try:
        return record.agent is not None and agent.knows_end_of(AgentIdentity.read(record.agent))
    except Malformed:
        return False


def _remove(found: list[_Left], gone: set[tuple[str, str]]) -> None:
    for left in found:
        with while_locked(left.lock) as is_free:
            if not is_free:
                continue  # it has come back
            for record in left.records:
                if (record.kernel, record.attempt) in gone:
                    left.store.drop(record.kernel)
                    log.info("kernel %s on %s has ended, and its server is gone: forgotten", record.kernel, record.host)
            if left.silent > _EMPTY and left.store.is_empty:
                forget_name(left.lock)
