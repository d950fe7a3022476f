"""The kernelspecs of hosts in the launcher of a plain jupyter_server: three hosts, of which one is silent at first."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.until import PROCESS_SECONDS, block_until

from .served import Served
from .site import NAMES, Site

EVENT = "https://events.jupyter.org/eg_distributed/kernelspecs/v1"


def environment(prefix: Path, *names: str) -> Path:
    """Make a virtual environment with ipykernel as pip leaves it: its kernelspecs say `python`. Returns *prefix*."""
    venv.create(prefix, symlinks=True)
    (packages,) = prefix.glob("lib/python3*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))
    own = Path(sys.prefix) / "share" / "jupyter" / "kernels" / "python3"
    for name in names:
        folder = prefix / "share" / "jupyter" / "kernels" / name
        shutil.copytree(own, folder)
        spec = json.loads((own / "kernel.json").read_text())
        assert spec["argv"][0] in ("python", "python3", sys.executable)
        (folder / "kernel.json").write_text(json.dumps({**spec, "argv": ["python", *spec["argv"][1:]]}))
    return prefix


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    """Hosts with an environment like conda's that all have, one of its own on node2, and kernelspecs of the login on node1."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="egk"))
    made = Site(folder)
    made.env |= {
        "EG_DISTRIBUTED_KERNELSPEC_ENVIRONMENTS": f"{folder}/opt/*,~/envs/*",
        "EG_DISTRIBUTED_KERNELSPEC_REFRESH": "1",
        "EG_DISTRIBUTED_REQUEST_TIMEOUT": "1",
        "EG_DISTRIBUTED_CONNECT_TIMEOUT": "1",
    }
    (environment(folder / "opt" / "shared", "python3") / "conda-meta").mkdir()
    environment(folder / "node2" / "envs" / "own", "python3")
    data = folder / "node1" / ".local" / "share" / "jupyter" / "kernels"
    specs: dict[str, dict[str, Any]] = {
        "mine": {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]},
        "gone": {"argv": ["/no/such/python", "-f", "{connection_file}"]},
        "elsewhere": {
            "argv": [sys.executable, "-f", "{connection_file}"],
            "metadata": {"kernel_provisioner": {"provisioner_name": "eg-distributed"}},
        },
    }
    for name, spec in specs.items():
        (data / name).mkdir(parents=True)
        (data / name / "kernel.json").write_text(json.dumps({"display_name": name, "language": "python", **spec}))
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def served(place: Site) -> Iterator[Served]:
    """A server that has never seen its hosts; node3 does not answer."""
    place.freeze("node3")
    (place.home / "config" / "jupyter_server_config.json").write_text('{"ServerApp": {"log_level": "DEBUG"}}')
    made = Served(place, place.work)
    yield made
    place.thaw("node3")
    made.end()


def offered(served: Served) -> dict[str, Any]:
    """Return what the server offers, by name."""
    answer = served.rest.get("/api/kernelspecs")
    assert answer.status_code == 200
    specs: dict[str, Any] = answer.json()["kernelspecs"]
    return specs


def hosts(spec: dict[str, Any]) -> list[str]:
    """Return for which hosts a kernelspec is, if it is one of hosts at all."""
    found: list[str] = spec["spec"]["metadata"].get("eg_distributed", {}).get("hosts", [])
    return found


def test_hosts_kernelspecs_are_offered_without_any_kernel_json(place: Site, served: Served) -> None:
    """Beside the local ones, which are there at once: one for each host that answers, and one for any host that has the same."""
    assert {"remote", "python3"} <= offered(served).keys()
    block_until(
        "node1 and node2 are there", lambda: {"python3-shared.any", "python3-own.node2"} <= offered(served).keys()
    )
    specs = offered(served)
    assert hosts(specs["python3-shared.any"]) == ["node1", "node2"]
    assert specs["python3-shared.any"]["spec"]["display_name"] == "Python 3 (ipykernel) [shared] · any host"
    assert hosts(specs["python3-shared.node1"]) == ["node1"]
    assert specs["python3-own.node2"]["spec"]["display_name"] == "Python 3 (ipykernel) [own] · node2"
    assert hosts(specs["mine.node1"]) == ["node1"]
    assert not {"gone.node1", "elsewhere.node1", "python3-shared.node3", "python3-own.node1"} & specs.keys()


def test_a_kernel_runs_with_the_interpreter_of_its_environment(place: Site, served: Served) -> None:
    """Though its kernelspec on the host says `python`, and after a restart as well; what activation would set is set."""
    block_until("the kernelspecs are there", lambda: "python3-own.node2" in offered(served))
    prefix = place.folder / "node2" / "envs" / "own"
    code = (
        "import os, sys; env = os.environ; print(env['NODE'], sys.prefix, env.get('CONDA_PREFIX') or env['VIRTUAL_ENV'], "
        "env['PATH'].split(':')[0])"
    )
    with served.notebook(kernel="python3-own.node2") as notebook:
        for _ in range(2):
            assert notebook.run(code).split() == ["node2", str(prefix), str(prefix), f"{prefix}/bin"]
            assert notebook.act("restart").status_code == 200
    with served.notebook(kernel="python3-shared.any") as notebook:
        node, *rest = notebook.run(code).split()
        assert node in ("node1", "node2")
        prefix = place.folder / "opt" / "shared"
        assert rest == [str(prefix), str(prefix), f"{prefix}/bin"]
    with served.notebook(kernel="mine.node1") as notebook:
        assert notebook.run("import os; print(os.environ['NODE'])") == "node1"


def test_the_servers_log_says_what_is_left_out(place: Site, served: Served) -> None:
    """And why, for who starts it with --debug; how many are offered, for everybody."""
    block_until("the kernelspecs are there", lambda: "mine.node1" in offered(served))
    # What another server has left is offered before a host has answered this one.
    for line in (
        "/gone: /no/such/python cannot be executed",
        "/elsewhere: its kernels run elsewhere, by a kernel provisioner",
        "kernelspecs of hosts are offered",
    ):
        block_until(f"the log says {line}", functools.partial(says, served, line))


def says(served: Served, line: str) -> bool:
    """Return True if the server's log has *line*."""
    return line in served.log.read_text()


def test_programs_that_are_no_server_may_have_them(place: Site, served: Served) -> None:
    """By one more folder in JUPYTER_PATH, which is the same for all servers."""
    block_until("the kernelspecs are there", lambda: "mine.node1" in offered(served))
    env = place.environment(JUPYTER_PATH=str(place.home / "data" / "eg-distributed" / "current"))
    (place.work / "some.py").write_text("import os; print('on', os.environ['NODE'])")
    command = [sys.executable, "-m", "jupyter", "run", "--kernel=mine.node1", "some.py"]
    done = subprocess.run(command, cwd=place.work, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert "on node1" in done.stdout, done.stderr


def test_logos_are_served_and_run_nothing(served: Served) -> None:
    """The launcher has the host's own pictures; one that is opened by its address is confined."""
    block_until("the kernelspecs are there", lambda: "python3-shared.any" in offered(served))
    resources = offered(served)["python3-shared.any"]["resources"]
    svg = served.rest.get(resources["logo-svg"])
    assert svg.status_code == 200
    assert b"<svg" in svg.content
    assert "sandbox" in svg.headers["Content-Security-Policy"].split("; ")
    assert svg.headers["X-Content-Type-Options"] == "nosniff"
    folder = resources["logo-svg"].rpartition("/")[0]
    for file in ("logo-svg.svg", "%6Cogo-svg.svg", "./logo-svg.svg", ".%2Flogo-svg.svg", "x/../logo-svg.svg"):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)) as connection:
            connection.request("GET", f"{folder}/{file}")  # as it is: httpx would make the address a plain one
            answer = connection.getresponse()
            policy = answer.headers["Content-Security-Policy"].split("; ")
            assert answer.status != 200 or "sandbox" in policy, file
    assert served.rest.get(resources["logo-64x64"]).content.startswith(b"\x89PNG")


def test_a_host_that_is_back_is_offered_and_clients_are_told(place: Site, served: Served) -> None:
    """A client that listens to the server's events hears of it, and the kernelspec for any host has one host more."""
    with connect(f"ws{served.url.removeprefix('http')}/api/events/subscribe") as events:
        place.thaw("node3")
        block_until("node3 is there", lambda: hosts(offered(served)["python3-shared.any"]) == [*NAMES])
        said = json.loads(events.recv(timeout=PROCESS_SECONDS))
        while said["schema_id"] != EVENT:
            said = json.loads(events.recv(timeout=PROCESS_SECONDS))
        assert said["count"] >= 5
    assert hosts(offered(served)["python3-shared.node3"]) == ["node3"]


def test_an_environment_that_is_made_meanwhile_is_found(place: Site, served: Served) -> None:
    """And one that is removed is not offered any more."""
    block_until("the kernelspecs are there", lambda: "python3-own.node2" in offered(served))
    prefix = environment(place.folder / "node1" / "envs" / "late", "python3")
    block_until("it is there", lambda: "python3-late.node1" in offered(served))
    shutil.rmtree(prefix)
    block_until("it is gone", lambda: "python3-late.node1" not in offered(served))


OWN_CLASS = """
from jupyter_client.kernelspec import KernelSpecManager

class Own(KernelSpecManager):
    def find_kernel_specs(self):
        return {**super().find_kernel_specs(), "own": self._own}

    def get_kernel_spec(self, name):
        return self.kernel_spec_class.from_resource_dir(self._own) if name == "own" else super().get_kernel_spec(name)

    _own = %r

c.ServerApp.kernel_spec_manager_class = Own
"""


def test_the_next_server_has_them_before_any_host_answers(place: Site, served: Served) -> None:
    """Whatever class its user has chosen for kernelspecs: what that finds is there as well. The files are the user's alone."""
    block_until("the kernelspecs are there", lambda: "python3-shared.any" in offered(served))
    known = offered(served).keys()
    own = place.home / "data" / "kernels" / "remote"
    (place.home / "config" / "jupyter_server_config.py").write_text(OWN_CLASS % str(own))
    for name in NAMES:
        place.freeze(name)
    try:
        second = Served(place, place.work)
        try:
            assert offered(second).keys() == known | {"own"}
        finally:
            second.end()
    finally:
        for name in NAMES:
            place.thaw(name)
        (place.home / "config" / "jupyter_server_config.py").unlink()
    kept = [*(place.home / "data" / "eg-distributed").rglob("*")]
    assert kept
    modes = {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_file()}
    assert modes == {0o600}
