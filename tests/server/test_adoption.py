"""Kernels that outlive their server, with real servers that are killed and stopped."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.until import block_until

from .served import Notebook, Served
from .site import Site

Start = Callable[..., Served]
QUICK = {"EG_DISTRIBUTED_REQUEST_TIMEOUT": "1", "EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "1"}


@pytest.fixture
def root(site: Site, tmp_path: Path) -> Path:
    """A folder of notebooks that no other test's servers have, so that each finds its own kernels."""
    folder = site.work / tmp_path.name
    folder.mkdir()
    return folder


@pytest.fixture
def start(site: Site, root: Path) -> Iterator[Start]:
    """Start servers of that folder; each ends with the test, with its kernels."""
    site.kernelspec("lone", config={"remote_hosts": "node1"})
    made: list[Served] = []

    def start(**more: str) -> Served:
        made.append(Served(site, root, **{**QUICK, **more}))
        return made[-1]

    yield start
    for served in made:
        if served.process.poll() is None:
            for kernel in served.rest.get("/api/kernels").json():
                served.rest.delete(f"/api/kernels/{kernel['id']}")
        served.end()
        print(f"--- {served.url}\n{served.log.read_text()}")  # shown by pytest if the test has failed


@contextmanager
def opened(served: Served, model: dict[str, Any], session: str = "") -> Iterator[Notebook]:
    """The websocket of a session's kernel; ends with the block, and the kernel does not."""
    url = f"ws{served.url.removeprefix('http')}/api/kernels/{model['kernel']['id']}/channels?session_id={session or uuid.uuid4()}"
    with connect(url, max_size=None) as websocket:
        yield Notebook(served, model, websocket)


def begun(served: Served, path: str = "some.ipynb", kernel: str = "remote") -> dict[str, Any]:
    """A notebook's session; its kernel has `x`."""
    answer = served.session(path, kernel)
    assert answer.status_code == 201, answer.text
    model: dict[str, Any] = answer.json()
    with opened(served, model) as notebook:
        assert notebook.run("x = 42; import os; print(os.environ['JPY_SESSION_NAME'])").endswith(path)
    return model


def state(served: Served, model: dict[str, Any]) -> str:
    """What the server says that a kernel does; empty: it lists no such kernel."""
    answer = served.rest.get(f"/api/kernels/{model['kernel']['id']}")
    return str(answer.json()["execution_state"]) if answer.status_code == 200 else ""


def records(site: Site) -> list[Path]:
    """The records of all servers' kernels."""
    folder = site.home / "runtime" / "eg-distributed"
    return [path for path in folder.glob("*.d/*.json") if path.name != "server.json"]


def test_killed_and_started_again(site: Site, start: Start) -> None:
    """On another port a server has its kernels again, with session, folder and variables; they restart, are interrupted, end."""
    first = start()
    model = begun(first)
    (record,) = records(site)
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    first.end(signal.SIGKILL)
    second = start()
    (session,) = second.rest.get("/api/sessions").json()
    assert (session["id"], session["path"], session["kernel"]["id"]) == (
        model["id"],
        "some.ipynb",
        model["kernel"]["id"],
    )
    block_until("it is idle", lambda: state(second, model) == "idle")
    with opened(second, model) as notebook:
        assert notebook.run("print(x)") == "42"
        cell = notebook.send("print('on', flush=True); import time; time.sleep(60)")
        notebook.output(cell, until="on")
        assert notebook.act("interrupt").status_code == 204
        assert "KeyboardInterrupt" in notebook.output(cell)
        assert notebook.act("restart").status_code == 200
        assert notebook.run("print('x' in dir(), os.path.basename(os.environ['JPY_SESSION_NAME']), 1)") or True
        assert notebook.run("import os; print('x' in dir(), os.path.basename(os.environ['JPY_SESSION_NAME']))") == (
            "False some.ipynb"
        )
        notebook.send("import os; os._exit(3)")
        notebook.wait_for("restarting")
        block_until("it answers", lambda: notebook.run("print('again')") == "again")
    assert second.rest.delete(f"/api/sessions/{model['id']}").status_code == 204
    site.await_none()
    assert not records(site)
