"""Kernels that outlive their server, with real servers that are killed and stopped."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, ServerKernelManager
from jupyter_server.services.sessions.sessionmanager import SessionManager
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from eg_distributed.jupyter_server import listed
from tests.until import block_until

from .served import Notebook, Served
from .site import Site

pytestmark = pytest.mark.timeout(300)
"""Each starts two servers or more, of some seconds each, and many more where others work on the machine."""
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
        served.end_with_kernels()


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


def test_jupyter_server_has_what_is_used() -> None:
    """Private members among it, which a release may rename: then nothing is found again, and the log names them."""
    kernels = AsyncMappingKernelManager()  # type: ignore[no-untyped-call, unused-ignore]
    assert listed.missing(kernels, ServerKernelManager(parent=kernels)) == []
    assert all(hasattr(ServerApp, name) for name in ("_cleanup", "cleanup_kernels", "start_ioloop"))
    assert SessionManager.database_filepath.default_value == ":memory:"
    assert SessionManager._cursor is None
    assert listed.missing(object())


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
        # Who sends at once over the connection of before may be heard before its subscription is: it asks again.
        asked = "import os; print('x' in dir(), os.path.basename(os.environ['JPY_SESSION_NAME']))"
        block_until("it answers", lambda: notebook.run(asked) == "False some.ipynb")
        notebook.send("import os; os._exit(3)")
        notebook.wait_for("restarting")
        block_until("it answers", lambda: notebook.run("print('again')") == "again")
    assert second.rest.delete(f"/api/sessions/{model['id']}").status_code == 204
    site.await_none()
    assert not records(site)


def test_a_cell_that_goes_on(site: Site, start: Start) -> None:
    """Its kernel is busy at once for the next server, and serves pages meanwhile; when the cell is over, it is idle."""
    first = start()
    model = begun(first)
    with opened(first, model) as notebook:
        cell = notebook.send(
            "import os, time\nprint('on', flush=True)\nwhile not os.path.exists('over'): time.sleep(.05)"
        )
        notebook.output(cell, until="on")
    first.end(signal.SIGKILL)
    second = start()
    block_until("it is busy", lambda: state(second, model) == "busy")
    with opened(second, model) as notebook:
        (site.work / second.root.name / "over").touch()
        block_until("it is idle", lambda: state(second, model) == "idle")
        assert notebook.run("print(x)") == "42"


def test_a_host_that_is_silent(site: Site, start: Start) -> None:
    """It holds up neither the server's start nor other hosts' kernels: its own are unknown, and taken up when it is back."""
    first = start()
    model, other = (
        begun(first, "lone.ipynb", "lone"),
        begun(first, "other.ipynb", site.kernelspec("on2", config={"remote_hosts": "node2"})),
    )
    first.end(signal.SIGKILL)
    site.freeze("node1")
    try:
        second = start()
        block_until("the other host's is idle", lambda: state(second, other) == "idle")
        listed = second.rest.get(f"/api/kernels/{model['kernel']['id']}").json()
        assert listed["execution_state"] == "unknown"
        assert "node1, which has not answered yet" in listed["reason"]
        assert len(records(site)) == 2
        assert second.rest.post(f"/api/kernels/{model['kernel']['id']}/restart").status_code == 503
        assert second.rest.delete(f"/api/sessions/{other['id']}").status_code == 204
    finally:
        site.thaw("node1")
    block_until("it is idle", lambda: state(second, model) == "idle")
    with opened(second, model) as notebook:
        assert notebook.run("print(x)") == "42"


def test_a_kernel_that_ended_meanwhile(site: Site, start: Start) -> None:
    """It is not started again: neither it nor its session is listed, nothing is left of it, and the log says why."""
    first = start()
    model = begun(first)
    first.end(signal.SIGKILL)
    for process in site.kernels():
        process.send_signal(signal.SIGKILL)
    second = start()
    block_until("it is listed no more", lambda: not state(second, model))
    assert second.rest.get("/api/sessions").json() == []
    assert "ended while no server was there" in second.log.read_text()
    block_until("its record is gone", lambda: not records(site))


def test_a_stop_that_keeps_kernels(site: Site, start: Start) -> None:
    """With `keep_kernels` they run on after SIGTERM, and are there at the next start; without, SIGTERM and SIGINT end them."""
    first = start(EG_DISTRIBUTED_KEEP_KERNELS="1")
    model = begun(first)
    first.end(signal.SIGTERM)
    assert site.kernels()
    assert records(site)
    second = start()
    block_until("it is idle", lambda: state(second, model) == "idle")
    with opened(second, model) as notebook:
        assert notebook.run("print(x)") == "42"
    second.end(signal.SIGINT)
    site.await_none()
    assert not records(site)


@pytest.mark.long
def test_a_page_that_looks_while_the_server_stops(site: Site, start: Start) -> None:
    """As long as it is answered it finds the kernels that are kept, and their sessions outlive the stop, too."""
    first = start(EG_DISTRIBUTED_KEEP_KERNELS="1")
    model = begun(first)
    assert first.session("here.ipynb", "python3").status_code == 201  # a local kernel, which ends
    first.process.send_signal(signal.SIGTERM)
    looks = 0
    with contextlib.suppress(httpx.TransportError):
        while True:
            for address in ("/api/sessions", "/api/kernels"):
                assert model["kernel"]["id"] in first.rest.get(address).text
                looks += 1
    first.end()
    second = start()
    assert [each["path"] for each in second.rest.get("/api/sessions").json()] == ["some.ipynb"]
    assert looks
    block_until("its host has the kernel", lambda: state(second, model) == "idle")  # so that it can be ended


def test_two_servers_at_once(site: Site, start: Start) -> None:
    """Each keeps to its own kernels and sessions, whichever is started again first."""
    first, second = start(), start()
    model, other = begun(first, "a.ipynb"), begun(second, "b.ipynb")
    second.end(signal.SIGKILL)
    again = start()
    assert [each["path"] for each in again.rest.get("/api/sessions").json()] == ["b.ipynb"]
    assert [each["path"] for each in first.rest.get("/api/sessions").json()] == ["a.ipynb"]
    block_until("it is idle", lambda: state(again, other) == "idle")
    with opened(first, model) as notebook, opened(again, other) as another:
        assert (notebook.run("print(x)"), another.run("print(x)")) == ("42", "42")


@pytest.mark.long
def test_records_that_cannot_be_used(site: Site, start: Start) -> None:
    """A broken one and one of a later release are told of, with what to do; neither the server nor others are held up."""
    first = start()
    model = begun(first)
    first.end(signal.SIGKILL)
    (record,) = records(site)
    later, broken = record.with_name("later.json"), record.with_name("broken.json")
    later.write_text('{"format": 99}')
    broken.write_text("{")
    record.with_name("sessions.db").write_bytes(b"no database" * 100)
    second = start()
    block_until("it is idle", lambda: state(second, model) == "idle")
    log = second.log.read_text()
    for text in ("later.json", "it has the format 99 of a later release", "broken.json", "sessions.db is broken"):
        assert text in log
    assert later.exists()
    assert not broken.exists()
    later.unlink()


@pytest.mark.long
def test_a_server_that_cannot_start(site: Site, root: Path, start: Start) -> None:
    """It ends none of the kernels that it has found: the next one has them."""
    first = start()
    model = begun(first)
    first.end(signal.SIGKILL)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = (
            "--ServerApp.port_retries=0",
            "--ServerApp.allow_root=True",
            f"--ServerApp.port={taken.getsockname()[1]}",
        )
        failed = subprocess.run(
            [sys.executable, "-m", "jupyter_server", f"--ServerApp.root_dir={root}", *options],
            env=site.environment(**QUICK), capture_output=True, timeout=60,
        )  # fmt: skip
    assert failed.returncode != 0
    second = start()
    block_until("it is idle", lambda: state(second, model) == "idle")
    with opened(second, model) as notebook:
        assert notebook.run("print(x)") == "42"


def adopt(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `jupyter distributed adopt` as the site's user."""
    return subprocess.run(
        [sys.executable, "-m", "eg_distributed", "adopt", *arguments],
        env=site.environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.long
def test_kernels_of_another_server(site: Site, start: Start, root: Path) -> None:
    """They are listed, and taken over with their sessions: from a dead server, and from one that runs if that is said."""
    (root / "deep").mkdir()
    dead = Served(site, root / "deep", **QUICK)
    first = begun(dead, "a.ipynb")
    dead.end(signal.SIGKILL)
    taker, running = start(), start()
    second = begun(running, "b.ipynb")
    answer = json.loads(adopt(site, "--into", str(taker.port), "--json").stdout)
    by_kernel = {each["kernel"]: {**server, **each} for server in answer["servers"] for each in server["kernels"]}
    listed = [
        (by_kernel[each["kernel"]["id"]]["running"], by_kernel[each["kernel"]["id"]]["paths"])
        for each in (first, second)
    ]
    assert listed == [(False, ["a.ipynb"]), (True, ["b.ipynb"])]
    assert "Several servers run" in adopt(site).stderr
    of_dead = adopt(site, "--into", str(taker.port), "--server", by_kernel[first["kernel"]["id"]]["server"])
    assert of_dead.returncode == 0, of_dead
    of_running = adopt(site, "--into", str(taker.port), second["kernel"]["id"][:13])
    assert of_running.returncode == 1
    assert "Say --running" in of_running.stderr
    with opened(running, second) as old:
        assert adopt(site, "--into", str(taker.port), "--running", second["kernel"]["id"][:13]).returncode == 0
        with pytest.raises(ConnectionClosed) as closed:
            old.wait_for("never")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert running.rest.get("/api/sessions").json() == running.rest.get("/api/kernels").json() == []
    sessions = {each["path"]: each for each in taker.rest.get("/api/sessions").json()}
    assert sorted(sessions) == ["b.ipynb", "deep/a.ipynb"]
    for model in sessions.values():
        with opened(taker, model) as notebook:
            assert notebook.run("print(x)") == "42"
    running.end(signal.SIGTERM)
    assert len(site.kernels()) == 2
    assert adopt(site).stdout.strip() == "no other server has kernels"
    taker.end(signal.SIGKILL)
    again = start()
    assert {each["path"] for each in again.rest.get("/api/sessions").json()} == set(sessions)


def test_requests_that_cannot_be_granted(start: Start) -> None:
    """They are answered with why, and nothing is taken."""
    served = start()
    for body, words in (
        ([], "no JSON object"),
        ({}, "neither kernels nor a server"),
        ({"kernels": "all"}, "instead of"),
        ({"server": "nobody"}, "no other server 'nobody'"),
    ):
        answer = served.rest.post("/api/distributed/adopt", json=body)
        assert (
            answer.status_code,
            words in answer.json()["message"].lower().replace("json object", "JSON object"),
        ) == (400, True), answer.text
    answer = served.rest.post("/api/distributed/adopt", json={"kernels": ["0"]})
    assert "No other server has a kernel '0'" in answer.json()["refused"]["0"]


@pytest.mark.parametrize("kernel", ["failing", "failing-here"])
def test_a_stop_after_a_start_that_failed(site: Site, start: Start, kernel: str) -> None:
    """The server ends, and its other kernels: jupyter_server by itself hangs, with its port closed, whatever the kernel."""
    site.kernelspec("failing", [sys.executable, "-c", "raise SystemExit(3)", "{connection_file}"])
    folder = site.home / "data" / "kernels" / "failing-here"
    folder.mkdir(exist_ok=True)
    (folder / "kernel.json").write_text(json.dumps({"argv": ["/nowhere"], "display_name": "none", "language": "none"}))
    served = start()
    begun(served)
    assert served.session("failing.ipynb", kernel).status_code == 500
    served.end(signal.SIGTERM)
    assert served.process.returncode == 0
    site.await_none()
