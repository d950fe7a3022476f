"""What servers leave that do not come back: removed when that is certain, and not before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eg_distributed.cluster import Cluster
from eg_distributed.jupyter_server.left_over import remove_left_over
from eg_distributed.jupyter_server.process import kept_by, while_locked
from eg_distributed.jupyter_server.store import Store
from tests.unit.clusters import start
from tests.unit.conftest import Hosts

from .test_store import record

DAY = 86400.0
STRANGER = {"id": "somebody-else", "folder": "/x", "machine": "m", "boot": "b"}


def server(folder: Path, name: str, **about: object) -> Store:
    """A server's name and store."""
    store = Store(kept_by(folder / name))
    store.open()
    (folder / name).write_text("0123456789abcdef")
    store.describe({"root": "/home/me", **about})
    return store


def aged(store: Store, silent: float) -> None:
    """Have nothing been heard of *store*'s server for *silent* seconds."""
    at = time.time() - silent
    for path in (*store.folder.glob("*"), store.folder):
        os.utime(path, (at, at))


def kernels(store: Store) -> set[str]:
    return {each.kernel for each in store.read()[0]}


async def test_records_of_kernels_that_are_gone(clusters: Callable[..., Cluster], hosts: Hosts, tmp_path: Path) -> None:
    """They go by the word of an agent that knows; one that runs, is another agent's, or on a host out of reach, stays."""
    await hosts("node1", "node2")
    cluster = clusters()
    kernel = await start(cluster, "runs", "node1")
    agent = kernel.agent_kept
    ours, dead = server(tmp_path, "ours"), server(tmp_path, "dead", orphan_timeout=60)
    dead.write(record("runs", host="node1", agent=agent))
    dead.write(record("gone", host="NODE1", agent=agent))
    dead.write(record("another-agents", host="node1", agent=STRANGER))
    dead.write(record("nobodys", host="node1"))
    dead.write(record("away", host="node2", agent=agent))
    aged(dead, DAY / 2)
    await remove_left_over(ours, cluster)
    assert len(kernels(dead)) == 5  # it may come back: its kernels would be found again
    aged(dead, 2 * DAY)
    await remove_left_over(ours, None)
    with while_locked(tmp_path / "dead") as is_free:
        assert is_free
        await remove_left_over(ours, cluster)
    assert len(kernels(dead)) == 5  # nobody could be asked; it runs
    await remove_left_over(ours, cluster)
    assert kernels(dead) == {"runs", "another-agents", "nobodys", "away"}
    assert not cluster.host("node2").node.connected.is_set()


@pytest.mark.parametrize("about", [{"orphan_timeout": 0}, {}])
async def test_kernels_that_are_kept_for_ever(
    clusters: Callable[..., Cluster], hosts: Hosts, tmp_path: Path, about: dict[str, object]
) -> None:
    """Their server is waited for longer."""
    await hosts("node1")
    cluster = clusters()
    kernel = await start(cluster, "runs", "node1")
    ours, dead = server(tmp_path, "ours"), server(tmp_path, "dead", **about)
    dead.write(record("gone", host="node1", agent=kernel.agent_kept))
    aged(dead, 20 * DAY)
    await remove_left_over(ours, cluster)
    assert kernels(dead) == {"gone"}
    aged(dead, 40 * DAY)
    await remove_left_over(ours, cluster)
    assert not dead.folder.exists()


async def test_folders_of_servers(tmp_path: Path) -> None:
    """One without a record goes with its name after a week; ours lives, and so does one with a record that cannot be read."""
    ours, empty, broken = (server(tmp_path, name) for name in ("ours", "empty", "broken"))
    (tmp_path / "delivered-me-0123456789abcdef").touch()
    (empty.folder / "sessions.db").touch()
    (broken.folder / "k-1.broken").touch()
    for store in (ours, empty, broken):
        aged(store, 6 * DAY)
    await remove_left_over(ours, None)
    assert time.time() - ours.last_sign() < DAY
    assert empty.folder.exists()
    for store in (ours, empty, broken):
        aged(store, 8 * DAY)
    await remove_left_over(ours, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "broken.d", "ours", "ours.d"]
