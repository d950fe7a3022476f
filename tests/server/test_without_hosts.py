"""A Jupyter server of somebody who has no hosts: our extension costs next to nothing until a first kernel of ours."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.until import PROCESS_SECONDS, block_until

from .served import Served
from .site import Site

SPY = """
import json, sys, threading
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import url_path_join

class Spy(JupyterHandler):
    def get(self):
        threads = [each.name for each in threading.enumerate()]
        self.finish(json.dumps({"modules": list(sys.modules), "threads": threads}))

def _jupyter_server_extension_points():
    return [{"module": "spy"}]

def _load_jupyter_server_extension(app):
    app.web_app.add_handlers(".*$", [(url_path_join(app.web_app.settings["base_url"], "spy"), Spy)])
"""
LOCAL = "python3"


class Start:
    """Starts servers without hosts, which have a runtime folder of their own."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.runtime = folder / "runtime"
        self.root = folder / "root"
        self.root.mkdir()
        (folder / "spy.py").write_text(SPY)
        self._variables = {
            "EG_REMOTE_HOSTS": "",
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "PYTHONPATH": str(folder),
        }
        self.all: list[Served] = []

    def __call__(self, root: Path | None = None, **more: str) -> Served:
        """Start the server, or start it again; with *root*, one of that folder."""
        options = {"ServerApp.jpserver_extensions": "{'spy': True}"}
        self.all.append(Served(self.site, root or self.root, options, **{**self._variables, **more}))
        return self.all[-1]


@pytest.fixture
def start(site: Site, tmp_path: Path) -> Iterator[Start]:
    """Starts servers without hosts."""
    start = Start(site, tmp_path)
    yield start
    for each in start.all:
        each.end_with_kernels()


def sessions(served: Served) -> dict[str, str]:
    """Return the kernels of the server's sessions, by path."""
    return {each["path"]: each["kernel"]["id"] for each in served.rest.get("/api/sessions").json()}


def test_a_server_without_hosts_has_next_to_nothing_of_ours(start: Start, tmp_path: Path) -> None:
    """No SSH, no cryptography, no thread, no file: at its start, with a local kernel, and when it is asked for hosts."""
    served = start(JUPYTER_DATA_DIR=str(tmp_path / "data"))  # kernelspecs of other tests name hosts
    with served.notebook(kernel=LOCAL) as notebook:
        assert notebook.run("print(6 * 7)") == "42"
        assert served.rest.get("/api/distributed/hosts").json() == {"hosts": []}
        assert served.rest.get("/api/distributed/kernels").json() == {"kernels": [], "errors": {}}
        assert served.rest.get("/api/distributed/adopt").json() == {"servers": []}
        assert served.rest.get("/metrics").status_code == 200
        seen: dict[str, Any] = served.rest.get("/spy").json()
    assert "eg_distributed.jupyter_server.adoption" in seen["modules"]
    assert not {"asyncssh", "cryptography"} & set(seen["modules"])
    assert "eg-distributed" not in seen["threads"]
    assert not [*start.runtime.rglob("*eg-distributed*")]


def test_a_first_kernel_on_a_host_is_found_again(site: Site, start: Start) -> None:
    """A kernelspec alone names its host: from the first kernel on the server keeps what its next process needs, and sessions."""
    site.kernelspec("late", config={"remote_hosts": ["node1"]})
    served = start()
    local = served.session("local.ipynb", LOCAL).json()["kernel"]["id"]
    assert not [*start.runtime.rglob("*eg-distributed*")]
    remote = served.session("remote.ipynb", "late").json()["kernel"]["id"]
    expected = {"local.ipynb": local, "remote.ipynb": remote}
    assert sessions(served) == expected
    served.end(signal.SIGKILL)
    again = start()
    assert sessions(again) == {"remote.ipynb": remote}
    block_until("it is idle", lambda: again.rest.get(f"/api/kernels/{remote}").json()["execution_state"] == "idle")


def test_it_may_take_over_kernels(site: Site, start: Start, tmp_path: Path) -> None:
    """Those of a server that had hosts, and was killed: by the command, which finds it though it keeps no records yet."""
    site.kernelspec("late", config={"remote_hosts": ["node1"]})
    taker = start()
    (tmp_path / "dead").mkdir()
    dead = start(tmp_path / "dead", EG_REMOTE_HOSTS="node1")
    kernel = dead.session("some.ipynb", "late").json()["kernel"]["id"]
    dead.end(signal.SIGKILL)
    environment = site.environment(JUPYTER_RUNTIME_DIR=str(start.runtime), EG_REMOTE_HOSTS="")
    command = [sys.executable, "-m", "eg_distributed", "adopt", kernel]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROCESS_SECONDS)
    assert done.stdout.strip() == f"http://localhost:{taker.port}/ has kernel {kernel} now", done
    block_until("it is idle", lambda: taker.rest.get(f"/api/kernels/{kernel}").json()["execution_state"] == "idle")
