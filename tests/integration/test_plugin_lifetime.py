"""Whose a test session's lab is: made once, kept on demand, and gone when its owner is, however that ends."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, lease
from lab.errors import LabNotFound, LabNotReady
from lab.lifetime import holding
from lab.names import LABEL
from lab.state import StateFolder
from lab.testcontainers import SSHCluster
from tests.until import block_until

pytestmark = pytest.mark.timeout(600)

LEASE_SECONDS = 20.0


@pytest.fixture
def name() -> Iterator[str]:
    """A lab's name that nobody else has; whatever has it at the end is removed."""
    chosen = f"it-life-{time.monotonic_ns() % 10**8}"
    yield chosen
    try:
        Lab.attach(chosen).down()
    except LabNotFound:
        StateFolder(chosen).remove()


def things(engine: Any, name: str) -> list[str]:
    """Return the names of all containers and networks of a lab."""
    label = {"label": f"{LABEL}={name}"}
    found = [
        *engine.containers.list(all=True, filters=label, ignore_removed=True),
        *engine.networks.list(filters=label),
    ]
    return [each.name for each in found]


def run(folder: Path, code: str, name: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start pytest on a suite of one file; the lab has one node and a short lease."""
    (folder / "test_it.py").write_text(textwrap.dedent(code))
    (folder / "pytest.ini").write_text(f"[pytest]\nlab_lease_seconds = {LEASE_SECONDS}\n")
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        *([f"--lab={name}"] if name else []),
        "--lab-nodes=1",
        "--lab-driver=docker",
    ]
    return subprocess.Popen(
        [*argv, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**{key: text for key, text in os.environ.items() if key != "LAB_NAME"}, **environment},
    )


SUITE = """
    def test_passes(lab):
        assert len(lab.nodes) == 1

    def test_fails(lab):
        assert not lab.nodes
"""


@pytest.mark.parametrize(
    ("keep", "tests", "kept"),
    [("never", "", False), ("failed", "", True), ("failed", "passes", False), ("always", "passes", True)],
)
def test_a_lab_is_kept_on_demand(engine: Any, name: str, tmp_path: Path, keep: str, tests: str, *, kept: bool) -> None:
    """`--lab-keep` leaves the lab, if a test failed or always, and says how to go on with it; else nothing is left."""
    output = run(tmp_path, SUITE, name, f"--lab-keep={keep}", "-k", tests).communicate(timeout=300)[0]
    assert "1 passed" in output, output
    assert (f"`pytest --lab {name}`" in output) is kept
    assert bool(things(engine, name)) is kept
    assert StateFolder(name).path.exists() is kept
    if kept:
        # It has no owner any more, so nothing ends it: a second session uses it and leaves it.
        again = run(tmp_path, SUITE, name, "-k", "passes").communicate(timeout=300)[0]
        assert "1 passed" in again, again
        assert things(engine, name)


def test_workers_make_one_lab_and_the_controller_removes_it(engine: Any, name: str, tmp_path: Path) -> None:
    """Under xdist the workers' first tests make one lab among them, and it is gone when the last worker is."""
    code = """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        @pytest.mark.lab
        def test_it(nodes, number):
            assert nodes[0].state == "running"
    """
    output = run(tmp_path, code, name, "-n2").communicate(timeout=300)[0]
    assert "4 passed" in output, output
    assert things(engine, name) == []
    assert not StateFolder(name).path.exists()


LOCAL = """
    import pytest
    from lab import EnvironmentUnfit

    @pytest.mark.lab(nodes=2)
    def test_has_what_it_asks_for(nodes, lab):
        assert lab.driver == "local"
        assert len(nodes) == 2
        assert len(lab.nodes) == NODES
        assert nodes[0].exec(["sh", "-c", "echo $LAB_NODE"]).stdout.strip() == nodes[0].name

    @pytest.mark.lab
    def test_asks_for_another_shell(lab):
        lab.add_node("odd", shell="csh")

    @pytest.fixture
    def odd(lab):
        return lab.add_node("odd", python="3.9")

    @pytest.mark.lab
    def test_has_a_fixture_that_asks(odd):
        raise AssertionError

    @pytest.mark.lab
    def test_fails_by_itself(lab):
        raise EnvironmentError("no matter of the lab's")
"""


@pytest.mark.parametrize(("workers", "nodes"), [((), 3), (("-n2",), 4)])
def test_what_a_local_lab_can_t_have_is_skipped(
    name: str, tmp_path: Path, workers: tuple[str, ...], nodes: int
) -> None:
    """`--lab-driver local` needs no engine; a test that asks for what only containers have is skipped with the reason.

    The lab has what the most demanding test asks for, for each worker.
    """
    code = LOCAL.replace("NODES", str(nodes))
    options = ("--lab-driver=local", "--lab-nodes=0", "-rs", *workers)
    output = run(tmp_path, code, name, *options, DOCKER_HOST="unix:///nowhere").communicate(timeout=300)[0]
    assert "1 failed, 1 passed, 2 skipped" in output, output
    # Its name is odd: the others were not refused by the look for leaks.
    assert output.count("a local lab can't have a machine like odd") >= 2, output
    assert not StateFolder(name).path.exists()


def test_roles_are_what_the_topology_says(name: str, tmp_path: Path) -> None:
    """A test with `roles=` gets nodes that have all of them, of a lab that is made from `--lab-file`."""
    topology = tmp_path / "lab.toml"
    topology.write_text("""
version = 1
gateways = {}
[nodes.node]
count = 1
[nodes.db]
count = 2
roles = ["database", "big"]
[nodes.worker]
count = 1
roles = ["big"]
""")
    code = """
        import pytest

        @pytest.mark.lab(nodes=2, roles="database")
        def test_two(nodes):
            assert {node.short_name for node in nodes} == {"db1", "db2"}

        @pytest.mark.lab(nodes=3, roles=["big"], alone=True)
        def test_alone(nodes):
            assert {node.short_name for node in nodes} == {"db1", "db2", "worker1"}

        @pytest.mark.lab(nodes=2, roles=["database", "missing"])
        def test_none(nodes):
            pass
    """
    options = (f"--lab-file={topology}", "--lab-driver=local")
    output = run(tmp_path, code, name, *options).communicate(timeout=300)[0]
    assert "2 passed, 1 error" in output, output
    assert "the lab " + name + " has 0 that fit" in output


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("1", "1 error")])
def test_an_engine_that_is_required_is_no_reason_to_skip(tmp_path: Path, required: str, outcome: str) -> None:
    """Without an engine, tests that want containers are skipped with the reason; with LAB_REQUIRE_DOCKER=1 they fail."""
    code = "def test_it(lab): pass"
    environment = {"DOCKER_HOST": "unix:///nowhere", "LAB_REQUIRE_DOCKER": required}
    process = run(tmp_path, code, "", "--lab-driver=docker", "-rsE", **environment)
    output = process.communicate(timeout=60)[0]
    assert outcome in output, output
    assert "`lab up --driver local`" in output, "the lab says what to do"


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_a_killed_owner_s_lab_is_gone_within_its_lease(
    engine: Any, name: str, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    """pytest (or xdist's controller) is killed with SIGKILL amid a test: containers, network, folder and keeper go away."""
    code = """
        import pathlib, time

        def test_hangs(lab):
            pathlib.Path("started").touch()
            time.sleep(600)
    """
    process = run(tmp_path, code, name, *workers)
    try:
        block_until("the test runs", (tmp_path / "started").exists, 300)
        assert things(engine, name)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        block_until("the machines are gone", lambda: not things(engine, name), LEASE_SECONDS + 20)
        block_until("the folder is gone", lambda: not StateFolder(name).path.exists(), 10)
    finally:
        # Workers that sleep on are ours to end.
        os.killpg(process.pid, signal.SIGKILL) if group_exists(process.pid) else None


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_keeper_leaves_machines_that_end_themselves(engine: Any, name: str, tmp_path: Path) -> None:
    """Owner and keeper are killed together: the machines end by their own clock when the lease is over."""
    from lab.processes import Process

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        holding.hold(name, pid=owner.pid, seconds=15)
        made = Lab.up(name, nodes=1, driver="docker")
        keeper = Process(*lease.stored(name)["keeper"])
        keeper.signal(signal.SIGKILL)
        owner.kill()
    assert made.nodes[0].state == "running"
    machines = (*made.nodes, *made.gateways)
    block_until("the machines have ended", lambda: {machine.state for machine in machines} == {"stopped"}, 15 + 10)


# -- testcontainers ----------------------------------------------------------------------------------------------------


def test_a_cluster_in_three_lines(engine: Any) -> None:
    """A cluster answers to SSH where it says, tells its logs as testcontainers does, and is gone at its end."""
    with SSHCluster(nodes=2, driver="docker") as cluster:
        with socket.create_connection(
            (cluster.get_container_host_ip(), cluster.get_exposed_port(22, "node2")), 5
        ) as there:
            assert there.recv(8) == b"SSH-2.0-"
        assert cluster.exec("node2", ["hostname"]).stdout == "node2.lab.test\n"
        assert re.fullmatch(r"ssh://lab@127\.0\.0\.1:\d+", cluster.get_connection_url())
        stdout, stderr = cluster.get_logs("node1")
        assert (b"Server listening" in stdout, stderr) == (True, b"")
        name = cluster.name
        assert things(engine, name)
    assert things(engine, name) == []


def test_a_shared_cluster_is_left_alone(engine: Any, name: str) -> None:
    """A cluster by the name of a lab that is there uses it, waits by testcontainers' strategies, and leaves it."""
    strategies = pytest.importorskip("testcontainers.core.wait_strategies")
    asked: list[str] = []

    def ready(cluster: SSHCluster) -> bool:
        asked.append(cluster.name)
        return len(asked) > 1

    with SSHCluster(nodes=1, name=name, driver="docker"):
        before = things(engine, name)
        shared = SSHCluster().with_name(name).waiting_for(strategies.LogMessageWaitStrategy("Server listening"))
        with shared.waiting_for(ready, seconds=20) as second:
            assert second.get_node("node1").status == "running"
            assert len(second.nodes) == 1
        assert things(engine, name) == before
        assert asked == [name, name]
    # What Ryuk looks for is on none of it.
    assert not any("org.testcontainers" in label for label in _labels(engine))


SHARED_CLUSTER = """
import sys
from lab.testcontainers import SSHCluster

with SSHCluster(nodes=1, name=sys.argv[1], driver="local"):
    print("up", flush=True)
    sys.stdin.read()
"""


def test_a_shared_cluster_is_made_once_and_goes_with_its_last_user(name: str) -> None:
    """Of two processes that start at once one makes the lab and the other waits; the maker's end takes it from nobody."""
    argv = [sys.executable, "-c", SHARED_CLUSTER, name]
    with contextlib.ExitStack() as stack:
        users = {}
        for _ in range(2):
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.kill)
            users[process.pid] = process
        for process in users.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
        held = lease.read(name)
        assert held is not None
        users.pop(held.pid).communicate(timeout=60)
        [last] = users.values()
        assert [node.state for node in Lab.attach(name).nodes] == ["running"]
        handed = lease.read(name)
        assert (handed is not None and handed.pid) == last.pid
        last.communicate(timeout=60)
    assert not StateFolder(name).path.exists()


def test_two_sessions_share_a_lab_until_the_last_one_ends(name: str, tmp_path: Path) -> None:
    """The session that made the lab of a name leaves it to the other, which removes it."""
    code = """
        import pathlib, time
        import pytest

        @pytest.mark.lab(nodes=1)
        def test_waits(nodes):
            pathlib.Path("started").touch()
            deadline = time.monotonic() + 120
            while not pathlib.Path("go").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert nodes[0].state == "running"
    """
    folders = [tmp_path / "first", tmp_path / "second"]
    with contextlib.ExitStack() as stack:
        sessions = []
        for folder in folders:
            folder.mkdir()
            sessions.append(run(folder, code, name, "--lab-driver=local", "--lab-nodes=2"))
            stack.callback(sessions[-1].kill)
            block_until("its test runs", (folder / "started").exists, 120)
        for folder, session in zip(folders, sessions, strict=True):
            (folder / "go").touch()
            output = session.communicate(timeout=120)[0]
            assert "1 passed" in output, output
            assert StateFolder(name).path.exists() is (folder is folders[0])


def test_a_node_that_is_not_what_is_waited_for_shows_its_last_lines(engine: Any, name: str) -> None:
    """A strategy's time-out names the node and has its log; nothing is left of the cluster."""

    class Never:
        def wait_until_ready(self, container: Any) -> None:
            raise TimeoutError("nothing came")

    cluster = SSHCluster(nodes=1, name=name, driver="docker").waiting_for(Never())
    with pytest.raises(LabNotReady, match=r"node1.*Never waits for: nothing came") as caught, cluster:
        pass
    assert "Server listening" in caught.value.logs
    assert not StateFolder(name).path.exists()


def _labels(engine: Any) -> set[str]:
    found = engine.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
    return {label for container in found for label in container.labels}
