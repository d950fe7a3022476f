"""Our numbers by a port or a file of their own, as Enterprise Gateway shows them; without Enterprise Gateway itself."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY, CollectorRegistry, Counter

from eg_distributed.cluster import Cluster
from eg_distributed.enterprise_gateway import metrics
from eg_distributed.enterprise_gateway.metrics import TextFile, begin, listen
from eg_distributed.settings import Distributed
from lab.ports import free_port
from tests.until import until


@pytest.fixture
def registry() -> CollectorRegistry:
    """One with a number in it."""
    made = CollectorRegistry()
    Counter("seen", "Something that was seen.", registry=made).inc()
    return made


@pytest.fixture
def port() -> int:
    return free_port()


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(Distributed(metrics_textfile=str(tmp_path / "eg.prom")), "tests")
    yield made
    await asyncio.to_thread(made.close)


async def test_the_port(registry: CollectorRegistry, port: int) -> None:
    """/metrics is answered in Prometheus' format, on that address alone; nothing else is there."""
    server = listen(Distributed(metrics_port=port), registry)
    assert server is not None
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answers = await asyncio.gather(*(client.get("/metrics") for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert "seen_total 1.0" in answers[0].text
        assert answers[0].headers["content-type"].startswith("text/plain")
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/metrics")).status_code == 405
    server.stop()


async def test_a_port_that_is_taken(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """The gateway works without, and its log says which port, why, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert listen(Distributed(metrics_port=number), registry) is None
    assert f"127.0.0.1:{number}: Address already in use" in caplog.text
    assert "EG_DISTRIBUTED_METRICS_PORT" in caplog.text


async def test_an_address_that_is_none(registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """As a port that is taken."""
    assert listen(Distributed(metrics_port=1, metrics_address="no-such-host.invalid"), registry) is None
    assert "no metrics on no-such-host.invalid:1" in caplog.text


async def test_the_file(registry: CollectorRegistry, tmp_path: Path) -> None:
    """It is there at once, is written anew at an interval, in one piece, and leaves no other file."""
    path = tmp_path / "eg.prom"
    file = TextFile(Distributed(metrics_textfile=str(path), metrics_interval=1), registry)
    file.begin()
    await until("it is written", path.exists)
    assert "seen_total 1.0" in path.read_text()
    first = path.stat().st_ino
    await until("it is written again", lambda: path.stat().st_ino != first)
    file.end()
    await file.write()  # one that was under way
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_is_not_there(
    registry: CollectorRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so at the start, once; when the folder is there, the file is."""
    path = tmp_path / "later" / "eg.prom"
    file = TextFile(Distributed(metrics_textfile=str(path)), registry)
    await file.write()
    await file.write()
    assert caplog.text.count("No such file or directory") == 1
    assert str(path) in caplog.text
    path.parent.mkdir()
    await file.write()
    assert path.exists()


async def test_a_file_that_node_exporter_would_not_read(
    registry: CollectorRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says how it has to be called, and none is written."""
    TextFile(Distributed(metrics_textfile=str(tmp_path / "eg.txt")), registry).begin()
    assert "no file but *.prom" in caplog.text
    assert list(tmp_path.iterdir()) == []


async def test_the_file_has_ours_alone(cluster: Cluster, tmp_path: Path) -> None:
    """Node_exporter has a process of its own to tell of; the port's registry has ours besides what is there."""
    loop = asyncio.get_running_loop()
    cluster.counters.of_host("node1")
    collectors = begin(cluster, loop.call_soon)
    path = tmp_path / "eg.prom"
    await until("it is written", path.exists)
    assert "jupyter_distributed_reconnects_total" in path.read_text()
    assert "process_" not in path.read_text()
    assert REGISTRY.get_sample_value("jupyter_distributed_reconnects_total", {"host": "node1"}) == 0
    assert collectors is not None
    REGISTRY.unregister(collectors)


async def test_without_settings_nothing_is_shown(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """No port, no file, no collector."""
    caplog.set_level(logging.INFO)
    cluster.settings.metrics_textfile = ""
    assert begin(cluster, asyncio.get_running_loop().call_soon) is None
    assert metrics.__name__ not in {record.name for record in caplog.records}


async def test_a_path_that_is_none(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """A kernel's start is on the way there: it goes on, and the log says why there are no metrics."""
    cluster.settings.metrics_textfile = "~nobody-of-that-name/eg.prom"
    assert begin(cluster, asyncio.get_running_loop().call_soon) is None
    assert "no metrics" in caplog.text
    assert REGISTRY.get_sample_value("jupyter_distributed_reconnects_total", {"host": "node1"}) is None
