"""Spark and YARN without an engine: daemons as this user's processes, and kernels that count on their executors."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from lab import EnvironmentUnfit, Lab, faults
from lab.drivers.local import java, processes
from lab.errors import LabNotFound
from lab.spark.clusters import Cluster, cluster
from lab.state import StateFolder
from tests.integration.client import GatewayClient
from tests.until import block_until

NAME = f"it-sparkl-{os.getpid() % 10000}"
ROLES = ("spark", "yarn")
SPECS = {"spark": "spark_python_standalone", "yarn": "spark_python_yarn_client"}
SECONDS = 120.0
"""For a session and its first job, or a daemon's way back, on a machine of two cores that does other things as well."""

pytestmark = [pytest.mark.timeout(400), pytest.mark.own_lab(NAME, nodes=2, clusters=ROLES)]


def states(on: Cluster) -> dict[str, str]:
    """Return the members' states by the node's name."""
    return {member.node: member.state for member in on.members()}


def daemons(lab: Lab) -> dict[tuple[str, str], str]:
    """Return the pids of all daemons, as each machine counts them."""
    return {
        (node.name, daemon): Path(node.daemon_logs, f"{daemon}.pid").read_text()
        for node in (*lab.nodes, *lab.services)
        for daemon in node.spec.daemons
    }


@pytest.mark.parametrize("role", ROLES)
def test_every_node_is_in(local: Lab, role: str) -> None:
    """Members have their nodes' names; `lab env` has the masters' addresses, and their pages answer there."""
    on = cluster(local, role)
    assert states(on) == dict.fromkeys(("node1.lab.test", "node2.lab.test"), on.alive)
    env = local.environment()
    assert env["spark_master"].startswith("spark://127.")
    assert env["yarn_rm"].startswith("127.")
    assert httpx.get(env[f"{role}_ui"], timeout=10, trust_env=False, follow_redirects=True).status_code == 200


@pytest.mark.parametrize("role", ROLES)
async def test_a_kernel_counts_on_executors(local: Lab, role: str) -> None:
    """The local gateway's Spark kernel has executors on nodes, which run its code, and its end leaves nothing there."""
    on = cluster(local, role)
    async with GatewayClient(local.gateway.url) as client:
        kernel = await client.start_kernel(SPECS[role])
        assert await kernel.evaluate("1 + 1") == 2
        said = await kernel.execute("print(spark.range(1000).count())", SECONDS)
        assert (said.status, said.stdout) == ("ok", "1000\n"), said.errors
        code = "sc.parallelize(range(2), 2).map(lambda x: __import__('os').environ['LAB_NODE']).collect()"
        where = set(await kernel.evaluate(code, SECONDS))
        (application,) = [found for found in on.applications() if found.name == kernel.id]
        assert application.state == "RUNNING"
        assert where <= set(application.nodes) <= {node.name for node in local.nodes}
        await client.close_kernels()
    block_until("its executors are gone", lambda: not any(_begun(node.daemon_files) for node in local.nodes), SECONDS)
    assert [found.state for found in on.applications() if found.name == kernel.id] != ["RUNNING"]


def _begun(folder: str) -> list[int]:
    """Return the processes that workers and NodeManagers have begun: what runs in a folder below theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            place = (entry / "cwd").readlink()
        except OSError:
            continue
        if any(place.is_relative_to(Path(folder, each)) for each in ("spark/work", "yarn/local")):
            found.append(int(entry.name))
    return found


def test_up_again_changes_nothing(local: Lab) -> None:
    """The same processes, the same ports; a plan says so beforehand."""
    before, env = daemons(local), local.environment()
    assert not Lab.plan(NAME, clusters=ROLES)
    again = Lab.up(NAME, clusters=ROLES)
    assert (daemons(again), again.environment()) == (before, env)


def test_a_reset_node_comes_back_with_its_daemons(local: Lab) -> None:
    """Its daemons end with all else and are started again."""
    before = daemons(local)
    local.reset("node1")
    block_until("they are others", lambda: _changed(local, before, "node1.lab.test"), SECONDS)
    for role in ROLES:
        cluster(local, role).wait_ready(SECONDS)
    assert not _changed(local, before, "node2.lab.test")


def _changed(lab: Lab, before: dict[tuple[str, str], str], name: str) -> bool:
    try:
        now = daemons(lab)
    except OSError:
        return False
    return all(now[key] != pid for key, pid in before.items() if key[0] == name)


@pytest.mark.parametrize(
    ("fault", "role", "lost"), [("spark-worker-down", "spark", "DEAD"), ("yarn-nodemanager-down", "yarn", "LOST")]
)
def test_a_lost_member_is_noticed_and_comes_back(local: Lab, fault: str, role: str, lost: str) -> None:
    """The master says that it is gone, and healing brings it back on its ports."""
    on = cluster(local, role)
    with faults.add(local, fault, [local.node("node2")]):
        block_until(f"node2 is {lost}", lambda: states(on).get("node2.lab.test") == lost, SECONDS)
        assert states(on)["node1.lab.test"] == on.alive
    on.wait_ready(SECONDS)


@pytest.mark.parametrize(("fault", "role"), [("spark-master-down", "spark"), ("yarn-resourcemanager-down", "yarn")])
def test_a_master_that_is_gone_comes_back(local: Lab, fault: str, role: str) -> None:
    """Its page refuses until the fault heals; then all nodes are in again, at the address that they knew."""
    on = cluster(local, role)
    with faults.add(local, fault, []), pytest.raises(httpx.ConnectError):
        httpx.get(on.url, timeout=10, trust_env=False)
    on.wait_ready(SECONDS)


def test_labs_share_no_port_and_down_leaves_no_process(local: Lab) -> None:
    """A second lab beside the first is whole; when it is gone nothing of it runs, and the first is as it was."""
    before = daemons(local)
    other = Lab.up(f"{NAME}-b", nodes=1, driver="local", clusters=["spark"])
    machines = other.folder.path / "machines"
    try:
        assert states(cluster(other, "spark")) == {"node1.lab.test": "ALIVE"}
        offered = httpx.get(f"{other.gateway.url}/api/kernelspecs", timeout=10, trust_env=False).json()["kernelspecs"]
        assert "spark_python_standalone" in offered
        assert "spark_python_yarn_client" not in offered
        other = Lab.up(f"{NAME}-b", clusters=[])
        assert other.services == []
        offered = httpx.get(f"{other.gateway.url}/api/kernelspecs", timeout=10, trust_env=False).json()["kernelspecs"]
        assert not [name for name in offered if name.startswith("spark")]
        Lab.up(f"{NAME}-b", clusters=["spark"])
    finally:
        other.down()
    assert processes.belonging(machines) == set()
    assert not machines.parent.exists()
    assert daemons(local) == before


def test_without_java_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the package, and no machine is begun."""
    monkeypatch.setattr(java, "candidates", lambda _: [])
    name = f"{NAME}-j"
    try:
        with pytest.raises(EnvironmentUnfit, match="can't have Spark or YARN") as refused:
            Lab.up(name, 1, driver="local", clusters=["spark"])
        assert "openjdk-17-jre-headless" in refused.value.remedy
        with pytest.raises(LabNotFound):
            Lab.attach(name)
    finally:
        StateFolder(name).remove()
