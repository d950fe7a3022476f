"""The lab without an engine: nodes and gateway as this user's processes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import EnvironmentUnfit, Lab, LabConflict
from lab.local import processes

NAME = f"it-local-{os.getpid() % 10000}"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def local() -> Iterator[Lab]:
    """A local lab of two nodes, taken away even when making it fails."""
    try:
        lab = Lab.up(NAME, nodes=2, driver="local")
    except EnvironmentUnfit as error:
        pytest.skip(str(error))
    try:
        yield lab
    finally:
        lab.down()


def test_kernels_run_without_an_engine(local: Lab) -> None:
    """`up` ends with a kernel on each of the nodes that are processes."""
    assert local.driver == "local"
    assert [landing.hostname for landing in local.landings] == ["node1.lab.test", "node2.lab.test"]


def test_a_local_lab_stays_local(local: Lab) -> None:
    """`up` again keeps the processes, even where an engine answers; asking for docker by name is refused."""
    before = processes.main_process(local.folder.path / "machines" / "gateway")
    assert Lab.up(NAME).driver == "local"
    assert processes.main_process(local.folder.path / "machines" / "gateway") == before
    with pytest.raises(LabConflict):
        Lab.up(NAME, driver="docker")


def test_nodes_are_told_apart_by_name_and_key(local: Lab) -> None:
    """The ssh_config leads each name to its own server and home, with strict host keys."""
    if shutil.which("ssh") is None:
        pytest.skip("no ssh client on this machine")
    homes = set()
    for node in ("node1", "node2.lab.test"):
        argv = ["ssh", "-F", str(local.folder.ssh_config), "-o", "BatchMode=yes", node, 'echo "$LAB_NODE $HOME"']
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True)
        name, home = done.stdout.split()
        assert name.partition(".")[0] == node.partition(".")[0]
        homes.add(home)
    assert len(homes) == 2


def test_machines_pause_crash_and_come_back(local: Lab) -> None:
    """A node can hang and go on, a gateway can crash and start again on the same port."""
    node, gateway = local.node("node1"), local.gateway
    node.pause()
    assert node.state == "paused"
    node.unpause()
    node.wait_ready()
    url = gateway.url
    gateway.kill()
    assert gateway.state == "stopped"
    gateway.start()
    assert (gateway.state, gateway.url) == ("running", url)


def test_what_needs_a_machine_of_its_own_is_refused(local: Lab) -> None:
    """Variants that a process can't have are an error with a remedy, not a silent difference."""
    with pytest.raises(EnvironmentUnfit, match="container engine"):
        local.add_node("odd", noisy=True)


def test_down_leaves_no_process_and_no_file() -> None:
    """After `down`, no process has the lab's mark and its folder is gone."""
    try:
        lab = Lab.up(f"{NAME}-x", nodes=1, driver="local")
    except EnvironmentUnfit as error:
        pytest.skip(str(error))
    machines = lab.folder.path / "machines"
    run = Path(lab.gateway.facts["run"])  # type: ignore[attr-defined]
    seen = processes.belonging(machines) | {processes.main_process(folder) for folder in machines.iterdir()}
    assert len(seen) >= 2
    lab.down()
    assert [process for process in seen if process.status] == []
    assert processes.belonging(machines) == set()
    assert not lab.folder.path.exists()
    assert not run.parent.exists()
