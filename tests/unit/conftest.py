"""Every test has a home of its own, so that its agents are not those of anybody else."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from eg_distributed import kernel
from eg_distributed.cluster import Cluster
from eg_distributed.link.connect import connect
from eg_distributed.settings import Distributed

from .agents import Visitor, end_agents
from .ssh_server import Sshd

Hosts = Callable[..., Awaitable[list[Sshd]]]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for UNIX sockets below it, which pytest's tmp_path is not."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="eg"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def proved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare every start of a stand-in the second in which an unknown kernel proves that it takes UNIX sockets."""
    monkeypatch.setattr(kernel, "PROVING", 0.0)


@pytest.fixture
def home(short: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home for the test, and the end of what ran in it."""
    folder = short / "home"
    (folder / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for name in list(os.environ):
        if name.startswith("EG_"):
            monkeypatch.delenv(name)
    yield folder
    end_agents(folder)


@pytest.fixture
def settings(home: Path) -> Distributed:
    """Settings with a runtime folder and an ssh_config of the test's own."""
    config = home / "ssh_config"
    config.write_text("")
    return Distributed(runtime_dir=str(home / "r"), gateway_id="tests", ssh_config=str(config))


@pytest_asyncio.fixture
async def hosts(short: Path, settings: Distributed) -> AsyncIterator[Hosts]:
    """Makes SSH hosts by name, and puts them into the ssh_config of *settings*."""
    opened: list[Sshd] = []

    async def make(*names: str) -> list[Sshd]:
        for name in names:
            sshd = Sshd(name, short)
            await sshd.open()
            opened.append(sshd)
        Path(settings.ssh_config).write_text("".join(sshd.config() for sshd in opened))
        return opened

    yield make
    for sshd in opened:
        await sshd.close()


@pytest_asyncio.fixture
async def visitor(settings: Distributed) -> AsyncIterator[Visitor]:
    """A visitor of the agent of this machine, brought up for the test."""
    link = await connect("localhost", settings)
    visitor = await Visitor.at(link)
    yield visitor
    visitor.close()
    link.close()


@pytest_asyncio.fixture
async def clusters(settings: Distributed) -> AsyncIterator[Callable[..., Cluster]]:
    """Makes clusters, each as a process of the same gateway unless it is named otherwise."""
    made: list[Cluster] = []

    def make(identity: str = "tests") -> Cluster:
        made.append(Cluster(settings, identity))
        return made[-1]

    yield make
    for cluster in made:
        await asyncio.to_thread(cluster.close)


@pytest.fixture
def cluster(clusters: Callable[..., Cluster]) -> Cluster:
    """One cluster."""
    return clusters()
