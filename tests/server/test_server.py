"""A plain jupyter_server: notebooks over REST and websockets."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.until import block_until

from .served import Served
from .site import NAMES, Site

WHERE = "import os; print(os.environ['NODE'], os.getcwd())"


@pytest.fixture(scope="module")
def root(site: Site) -> Path:
    """The folder of notebooks, which each host has as well."""
    folder = site.work / "notebooks"
    (folder / "deep").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def served(site: Site, root: Path) -> Iterator[Served]:
    """A server for all tests of this module but those that end it."""
    site.kernelspec("lone", config={"remote_hosts": "node1"})
    quick = {"EG_DISTRIBUTED_REQUEST_TIMEOUT": "1", "EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "1"}
    made = Served(site, root, SECRET="s3cr3t", EG_DISTRIBUTED_ORPHAN_TIMEOUT="1", **quick)
    yield made
    made.end()


def test_a_notebook(served: Served, root: Path) -> None:
    """A kernel starts on a host in the notebook's folder, is interrupted and restarted, and ends with its session."""
    with served.notebook("deep/some.ipynb") as notebook:
        node, folder = notebook.run(f"x = 42; {WHERE}").split()
        assert node in NAMES
        assert folder == str(root / "deep")
        cell = notebook.send("print('on', flush=True); import time; time.sleep(60)")
        notebook.output(cell, until="on")
        assert notebook.act("interrupt").status_code == 204
        assert "KeyboardInterrupt" in notebook.output(cell)
        assert notebook.act("restart").status_code == 200
        assert notebook.run("print(x)") == "NameError: name 'x' is not defined"
        assert notebook.run(WHERE).split()[0] == node


def test_the_launcher_has_kernels_on_hosts(served: Served) -> None:
    """Their kernelspecs are among those that JupyterLab offers, beside the local one."""
    offered = served.rest.get("/api/kernelspecs").json()["kernelspecs"]
    assert {"remote", "lone", "python3"} <= offered.keys()
    assert offered["remote"]["spec"]["display_name"] == "Python (remote)"


def test_no_variable_of_the_server_reaches_a_kernel(served: Served) -> None:
    """But the name of the notebook."""
    with served.notebook() as notebook:
        assert notebook.run("import os; print('SECRET' in os.environ, os.environ['JPY_SESSION_NAME'])").startswith(
            "False /"
        )


def test_a_kernel_that_dies_is_started_again(served: Served) -> None:
    """The page is told that it restarts, and goes on over the same websocket."""
    with served.notebook() as notebook:
        notebook.send("import os; os._exit(3)")
        notebook.wait_for("restarting")
        block_until("it answers", lambda: notebook.run("print('again')") == "again")


def test_a_start_that_fails(site: Site, served: Served) -> None:
    """The dialog, and an answer to a script, have host, cause and remedy; nothing is left or listed."""
    name = site.kernelspec(
        "failing", [sys.executable, "-c", "print('no luck'); raise SystemExit(3)", "{connection_file}"]
    )
    words = "The kernel exited with code 3 before it was ready."
    session = served.session("some.ipynb", name)
    assert session.status_code == 500
    assert session.json()["message"].startswith("Host node")
    assert words in session.json()["message"].splitlines()[0]
    assert "\nIts last output:\n  no luck" in session.json()["message"]  # in lines, which JupyterLab's dialog shows
    kernel = served.rest.post("/api/kernels", json={"name": name})
    assert kernel.status_code == 500
    assert words in kernel.json()["message"]
    pinned = served.rest.post("/api/kernels", json={"name": "nothing"})
    assert pinned.status_code >= 400
    assert served.rest.get("/api/kernels").json() == []
    assert not site.left()


def test_a_host_out_of_reach(site: Site, served: Served) -> None:
    """An interrupt is refused, with host, cause and remedy, and does not come later."""
    with served.notebook(kernel="lone") as notebook:
        cell = notebook.send(
            "x = 42\nprint('on', flush=True)\nimport time\nfor i in range(60): time.sleep(.1)\nprint('whole')"
        )
        notebook.output(cell, until="on")
        site.freeze("node1")
        try:
            refused = notebook.act("interrupt")
            assert refused.status_code == 503
            assert refused.json()["message"].startswith("Host node1: It has not answered since")
            assert "the interrupt was not sent; the kernel is kept" in refused.json()["message"]
            model = served.rest.get(f"/api/kernels/{notebook.kernel}").json()
            assert model["execution_state"] == "busy"
        finally:
            site.thaw("node1")
        assert notebook.output(cell) == "whole"
        assert notebook.run("print(x)") == "42"
        assert "restarting" not in notebook.states


def owners(site: Site) -> list[str]:
    """Return by which names nodes know the gateways of their kernels."""
    found = []
    for folder in site.left():
        with contextlib.suppress(FileNotFoundError):  # of one that is being removed
            found.append(json.loads((folder / "record.json").read_text())["owner"])
    return sorted(found)


def test_two_servers_have_two_names(site: Site, root: Path, served: Served) -> None:
    """Of one user and one folder, at once. The kernels of one that is killed end by themselves."""
    with served.notebook():
        (first,) = owners(site)
        second = Served(site, root, EG_DISTRIBUTED_ORPHAN_TIMEOUT="1")
        try:
            assert second.session("other.ipynb").status_code == 201
            assert len(set(owners(site)) - {first}) == 1
        finally:
            second.end(signal.SIGKILL)
        block_until("the killed server's kernel has ended", lambda: owners(site) == [first])
