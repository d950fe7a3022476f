"""What a Jupyter server tells of hosts by events, to whoever listens."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from eg_distributed.jupyter_server.events import SCHEMA, Watch
from tests.until import PROCESS_SECONDS, block_until

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


def heard(listening: ClientConnection, seconds: float = PROCESS_SECONDS) -> dict[str, Any]:
    """Return the next event of ours."""
    while True:
        event: dict[str, Any] = json.loads(listening.recv(timeout=seconds))
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


def test_a_restart_is_no_outage(served: Served, listening: ClientConnection) -> None:
    """A kernel that starts anew is not known for a while, and nothing is told of its host."""
    with served.notebook(kernel="lone") as notebook:
        for _ in range(3):
            assert notebook.act("restart").status_code == 200
            assert notebook.run("print(1)") == "1"
        assert_nothing_heard(listening)


def test_a_kernel_that_ends_in_an_outage(site: Site, served: Served, listening: ClientConnection) -> None:
    """Its host is back once it answers, whatever became of the kernel, and nothing is called lost."""
    with served.notebook(kernel="lone") as notebook:
        number = int(notebook.run("import os; print(os.getpid())"))
        site.freeze("node1")
        try:
            assert heard(listening)["action"] == "out_of_reach"
            os.kill(number, signal.SIGKILL)
        finally:
            site.thaw("node1")
        assert heard(listening)["action"] == "back"
        block_until("the kernel is started again", lambda: state_of(served, notebook.kernel) == "alive")
        assert_nothing_heard(listening)


def test_a_restart_that_fails(site: Site, served: Served, listening: ClientConnection) -> None:
    """The old kernel has ended and the new one cannot start: that is told, without what it printed."""
    program = site.folder / "program"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    name = site.kernelspec("going", [str(program), "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    with served.notebook(kernel=name) as notebook:
        assert notebook.run("print(1)") == "1"
        program.unlink()
        assert notebook.act("restart").status_code >= 500
        event = heard(listening)
        assert (event["action"], event["kernels"]) == ("restart_failed", [notebook.kernel])
        assert "has ended" in event["message"]


def state_of(served: Served, kernel: str) -> str | None:
    """Return what the server says of a kernel."""
    state: str | None = served.rest.get(f"/api/kernels/{kernel}").json().get("distributed", {}).get("state")
    return state


def assert_nothing_heard(listening: ClientConnection) -> None:
    """Look at all that has come, and at what comes in the next looks."""
    with pytest.raises(TimeoutError):
        raise AssertionError(heard(listening, 2.5))


class Said:
    """What a server's mapping kernel manager answers, as a test says it."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, str]] = {}
        self.told: list[tuple[str, str, list[str]]] = []
        self.lost: set[str] = set()
        self.watch = Watch(self, self._emit)

    def _emit(self, action: str, host: str, kernels: list[str], message: str, **_: str) -> None:
        assert host in message
        self.told.append((action, host, sorted(kernels)))

    def list_kernel_ids(self) -> list[str]:
        return [*self.models, "starting"]

    def get_kernel(self, kernel_id: str) -> Any:
        return SimpleNamespace(provisioner=SimpleNamespace(is_lost=kernel_id in self.lost))

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        said = self.models.get(kernel_id)
        if said is None:
            raise KeyError(kernel_id)
        return {"id": kernel_id, **({"distributed": said} if said else {})}

    def look(self, **models: tuple[str, str] | None) -> list[tuple[str, str, list[str]]]:
        """Return what is told once kernels are on these hosts and in these states, `away` among them; None: not known now."""
        self.models = {}
        for kernel, where in models.items():
            host, state = where or ("", "")
            known = {"host": host, "state": "unknown" if state == "away" else state} if where else {}
            self.models[kernel] = {**known, "since": "2026-01-01T00:00:00+00:00"} if state == "away" else known
        self.told.clear()
        self.watch.look()
        return sorted(self.told)


def test_an_outage_is_one_for_all_kernels_of_a_host() -> None:
    """However many there are, and whatever else is on other hosts."""
    said, there = Said(), ("n1", "alive")
    assert said.look(a=there, b=there, c=("n2", "unknown")) == []
    assert said.look(a=("n1", "away"), b=("n1", "away"), c=("n2", "alive")) == [("out_of_reach", "n1", ["a", "b"])]
    assert said.look(a=("n1", "away"), b=("n1", "away"), c=("n2", "alive")) == []
    assert said.look(a=there, b=("n1", "away"), c=("n2", "alive")) == []
    assert said.look(a=there, b=there, c=("n2", "alive")) == [("back", "n1", ["a", "b"])]


def test_kernels_that_are_given_up_or_moved() -> None:
    """Both are told of the kernel, once it runs; a host that is left behind ends its outage without having come back."""
    said = Said()
    said.look(a=("n1", "alive"), b=("n1", "alive"))
    said.look(a=("n1", "away"), b=("n1", "away"))
    said.lost = {"a"}
    assert said.look(a=("n1", "dead"), b=("n1", "away")) == [("lost", "n1", ["a"])]
    assert said.look(a=None, b=("n1", "away")) == []
    assert said.look(a=("n2", "unknown"), b=("n1", "away")) == []
    assert said.look(a=("n3", "alive"), b=("n1", "away")) == [("moved", "n3", ["a"])]
    assert said.look(a=("n3", "alive")) == [("left", "n1", ["b"])]
