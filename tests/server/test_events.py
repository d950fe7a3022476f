"""What a Jupyter server tells of hosts by events, to whoever listens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from eg_distributed.jupyter_server.events import SCHEMA, Watch
from tests.until import PROCESS_SECONDS

from .served import Served
from .site import Site


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[Served]:
    """A server that notices within seconds that a host hangs."""
    site.kernelspec("lone", config={"remote_hosts": "node1"})
    quick = {"EG_DISTRIBUTED_REQUEST_TIMEOUT": "1", "EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "1"}
    root = site.work / "events"
    root.mkdir()
    made = Served(site, root, **quick)
    yield made
    made.end()


@pytest.fixture
def listening(served: Served) -> Iterator[ClientConnection]:
    """A connection that gets the server's events, as JupyterLab's page has one."""
    with connect(f"ws{served.url.removeprefix('http')}/api/events/subscribe") as connection:
        yield connection


def heard(listening: ClientConnection) -> dict[str, Any]:
    """Return the next event of ours."""
    while True:
        event: dict[str, Any] = json.loads(listening.recv(timeout=PROCESS_SECONDS))
        if event["schema_id"] == SCHEMA:
            return event


def test_an_outage_of_a_host(site: Site, served: Served, listening: ClientConnection) -> None:
    """Its beginning, a restart that is refused meanwhile, and its end are told, each once, with kernel, host and words."""
    with served.notebook(kernel="lone") as notebook:
        assert notebook.run("print(1)") == "1"
        site.freeze("node1")
        try:
            event = heard(listening)
            assert (event["action"], event["host"], event["kernels"]) == ("out_of_reach", "node1", [notebook.kernel])
            assert event["message"].startswith("node1 has not answered since ")
            assert event["since"]
            assert notebook.act("restart").status_code >= 500
            event = heard(listening)
            assert (event["action"], event["kernels"]) == ("restart_refused", [notebook.kernel])
            assert "node1" in event["message"]
        finally:
            site.thaw("node1")
        event = heard(listening)
        assert (event["action"], event["kernels"]) == ("back", [notebook.kernel])
        assert notebook.run("print(2)") == "2"


class Said:
    """What a server's mapping kernel manager answers, as a test says it."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, str]] = {}
        self.told: list[tuple[str, str, list[str]]] = []
        self.watch = Watch(self, self._emit)

    def _emit(self, action: str, host: str, kernels: list[str], message: str, **_: str) -> None:
        assert host in message
        self.told.append((action, host, sorted(kernels)))

    def list_kernel_ids(self) -> list[str]:
        return [*self.models, "starting"]

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        if kernel_id not in self.models:
            raise KeyError(kernel_id)
        return {"id": kernel_id, "distributed": self.models[kernel_id]}

    def look(self, **models: tuple[str, str]) -> list[tuple[str, str, list[str]]]:
        """Return what is told once kernels are on these hosts and in these states."""
        self.models = {kernel: {"host": host, "state": state} for kernel, (host, state) in models.items()}
        self.told.clear()
        self.watch.look()
        return sorted(self.told)


def test_an_outage_is_one_for_all_kernels_of_a_host() -> None:
    """However many there are, and whatever else is on other hosts."""
    said = Said()
    assert said.look(a=("n1", "running"), b=("n1", "running"), c=("n2", "running")) == []
    assert said.look(a=("n1", "unknown"), b=("n1", "unknown"), c=("n2", "running")) == [
        ("out_of_reach", "n1", ["a", "b"])
    ]
    assert said.look(a=("n1", "unknown"), b=("n1", "unknown"), c=("n2", "running")) == []
    assert said.look(a=("n1", "running"), b=("n1", "unknown"), c=("n2", "running")) == []
    assert said.look(a=("n1", "running"), b=("n1", "running"), c=("n2", "running")) == [("back", "n1", ["a", "b"])]


def test_kernels_that_are_given_up_or_moved() -> None:
    """Both are told of the kernel, and a host that is left behind ends its outage without having come back."""
    said = Said()
    said.look(a=("n1", "unknown"), b=("n1", "unknown"))
    assert said.look(a=("n1", "dead"), b=("n1", "unknown")) == [("lost", "n1", ["a"])]
    assert said.look(a=("n2", "running"), b=("n1", "unknown")) == [("moved", "n2", ["a"])]
    assert said.look(a=("n2", "running")) == [("left", "n1", ["b"])]
