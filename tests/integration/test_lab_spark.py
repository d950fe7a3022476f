"""The lab's Spark master and ResourceManager: whole, asked, broken and healed, and seen to run jobs on their nodes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lab import Lab, faults
from lab.drivers.machines import Node
from lab.drivers.spark_kernelspecs import ENV, SITE
from lab.errors import FaultUnavailable, LabConflict, LabUsageError
from lab.spark import logs
from lab.spark.clusters import Application, Cluster, cluster
from tests.integration.spark_lab import SESSION_SECONDS, STAGING, applications, running
from tests.until import block_until

pytestmark = [pytest.mark.timeout(400), pytest.mark.long]

ROLES = ("spark", "yarn")
JOB_SECONDS = 120.0
"""For a driver, a session and a first job on a machine of two cores that does other things as well."""
NOTICED_SECONDS = 60.0
"""For a master to call a member lost: 20 s without a word, and looks between."""
RIG_BYTES = 2.5 * (1 << 30)
SUBMIT = {
    "spark": ["--master", "spark://spark-master.lab.test:7077"],
    "yarn": ["--master", "yarn", "--deploy-mode", "client"],
}
JOB = """
import os, socket, sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
where = spark.sparkContext.parallelize(range(2), 2).map(lambda _: socket.gethostname()).collect()
os.mkfifo(sys.argv[1])
print(spark.range(1000).count(), *where, flush=True)
open(sys.argv[1]).close()
spark.stop()
"""


def said(*arguments: str, expect: int = 0) -> str:
    """Call `lab ARGUMENTS` as a user does; it has to end with the exit code *expect*. Return its stdout."""
    argv = [sys.executable, "-c", "from lab.cli import main; main()", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == expect, done
    return done.stdout


def told(verb: str, lab: Lab, expect: int = 0) -> Any:
    """Return what `lab VERB --json` says of *lab*."""
    return json.loads(said(verb, "--name", lab.name, "--json", expect=expect))


def fifo(name: str) -> str:
    """Return what a job waits for on its node."""
    return f"/tmp/{name}.fifo"


_NUMBERS = itertools.count(os.getpid())


class Driver:
    """A job's driver on a node, started over SSH as a user would; it goes on until `finish`."""

    def __init__(self, node: Node, process: subprocess.Popen[str], name: str, log: Path) -> None:
        self.node, self.process, self.name, self.log = node, process, name, log

    def line(self) -> str:
        """Return the next line that it prints; fails with its last words if there is none in time."""
        assert self.process.stdout is not None
        with futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self.process.stdout.readline)
            try:
                line = reading.result(JOB_SECONDS)
            except futures.TimeoutError:
                self.process.kill()  # ends the reading as well
                line = ""
        assert line, self.log.read_text()[-3000:]
        return line.strip()

    def finish(self) -> int:
        """Let it end; return its exit code."""
        # Spark hands no stdin on to a script.
        self.node.exec(["sh", "-c", f": > {fifo(self.name)}"]).check()
        return self.process.wait(JOB_SECONDS)


@contextmanager
def job(lab: Lab, role: str, code: str = JOB) -> Iterator[Driver]:
    """Run *code* on node1 as the driver of an application on the cluster of *role*."""
    name = f"job-{role}-{next(_NUMBERS)}"
    environment = [
        f"SPARK_HOME={SITE.spark_home}",
        f"HADOOP_CONF_DIR={SITE.hadoop_conf_dir}",
        f"JAVA_HOME={ENV['JAVA_HOME']}",
        f"PYSPARK_PYTHON={SITE.python}",
    ]
    node = lab.node("node1")
    submit = [f"{SITE.spark_home}/bin/spark-submit", "--name", name, *SUBMIT[role]]
    submit += ["--conf", f"spark.driver.host={node.name}", f"{name}.py", fifo(name)]
    put = ["ssh", "-F", str(lab.ssh_config), node.name, f"cat > {name}.py"]
    subprocess.run(put, input=code, text=True, check=True, timeout=30)
    # One word for a login shell: nothing in it is anybody else's.
    command = ["ssh", "-F", str(lab.ssh_config), node.name, " ".join(["env", *environment, *submit])]
    pipe = subprocess.PIPE
    with (
        # Not a pipe: Spark says more than one holds, and nobody reads it.
        tempfile.NamedTemporaryFile("w", suffix=".log") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=log, text=True) as process,
    ):
        try:
            yield Driver(node, process, name, Path(log.name))
        finally:
            if process.poll() is None:
                node.exec(["pkill", "-KILL", "-f", f"{name}.py"])
                process.wait(JOB_SECONDS)
                bury(cluster(lab, role), name)
            node.exec(["rm", "-f", fifo(name), f"/home/lab/{name}.py"])


def bury(on: Cluster, name: str) -> None:
    """End the applications of a driver that was killed, and take away what it had staged.

    A plain spark-submit's YARN application sees to that itself if its application master still lives; otherwise nobody does.
    """
    if on.kind == "yarn":
        for app in running(on, name):
            path = f"{on.url}/ws/v1/cluster/apps/{app.id}/state?user.name={app.user}"
            httpx.put(path, json={"state": "KILLED"}, timeout=10, trust_env=False).raise_for_status()
    block_until(f"the application of {name} has ended", lambda: not running(on, name), SESSION_SECONDS)
    for app in applications(on, name):
        staged = f"{STAGING.replace('*', app.user)}/{app.id}"
        on.nodes[0].exec(["rm", "-rf", staged], user="root").check()


def application(on: Cluster, name: str) -> Application:
    """Return the latest application of that name."""
    return applications(on, name)[-1]


def pid(node: Node, daemon: str) -> str:
    """Return the process id of a node's daemon, empty while it is down."""
    return node.exec(["cat", f"/run/lab/{daemon}.pid"], user="root").stdout.strip()


def states(on: Cluster) -> dict[str, str]:
    """Return the members' states by short name."""
    return {member.node.partition(".")[0]: member.state for member in on.members()}


@pytest.mark.parametrize("role", ROLES)
def test_every_node_is_in(spark_lab: Lab, role: str) -> None:
    """When `up` has ended each node's worker or NodeManager is in, and `lab env` says where the master and its pages are."""
    on = cluster(spark_lab, role)
    assert states(on) == dict.fromkeys(("node1", "node2"), on.alive)
    env = told("env", spark_lab)
    assert env["spark_master"] == "spark://spark-master.lab.test:7077"
    assert env["yarn_rm"] == "yarn-rm.lab.test:8032"
    assert httpx.get(env[f"{role}_ui"], timeout=10, trust_env=False, follow_redirects=True).status_code == 200


@pytest.mark.parametrize("role", ROLES)
def test_a_job_runs_on_the_nodes(spark_lab: Lab, role: str) -> None:
    """Executors on the nodes count and run a closure; the master names them; all of it takes less than 2.5 GiB."""
    on = cluster(spark_lab, role)
    with job(spark_lab, role) as driver:
        number, *where = driver.line().split()
        assert number == "1000"
        assert set(where) <= {node.name for node in on.nodes}
        found = application(on, driver.name)
        assert (found.state, found.user) == ("RUNNING", "lab")
        assert set(where) <= set(found.nodes)
        assert found.containers == (2 if role == "yarn" else 0)  # the application master's and the executor's
        apps = {each["kind"]: each["applications"] for each in told("status", spark_lab)["clusters"]}[role]
        assert driver.name in [app["name"] for app in apps if app["state"] == "RUNNING"]
        assert resident(spark_lab) < RIG_BYTES
        assert driver.finish() == 0
    block_until("the application has ended", lambda: application(on, driver.name).state == "FINISHED")
    block_until("its executors are gone", lambda: not any(logs.executors(node) for node in on.nodes))


def resident(lab: Lab) -> int:
    """Return the resident memory of all processes of the lab's nodes and services, in bytes."""
    machines = [*lab.nodes, *lab.services]
    rows = [machine.exec(["ps", "-eo", "rss="], user="root").check().stdout.split() for machine in machines]
    return sum(int(each) << 10 for row in rows for each in row)


@pytest.mark.parametrize(
    ("fault", "role", "lost"), [("spark-worker-down", "spark", "DEAD"), ("yarn-nodemanager-down", "yarn", "LOST")]
)
def test_a_lost_member_is_noticed_and_comes_back(spark_lab: Lab, fault: str, role: str, lost: str) -> None:
    """The master says that it is gone, `status` that the lab is not whole; healing starts it again."""
    on = cluster(spark_lab, role)
    with faults.add(spark_lab, fault, [spark_lab.node("node2")]):
        block_until(f"node2 is {lost}", lambda: states(on).get("node2") == lost, NOTICED_SECONDS)
        assert states(on)["node1"] == on.alive
        assert "missing: node2" in said("status", "--name", spark_lab.name, expect=1)
    on.wait_ready()
    said("status", "--name", spark_lab.name)


@pytest.mark.parametrize(("fault", "role"), [("spark-master-down", "spark"), ("yarn-resourcemanager-down", "yarn")])
def test_a_master_that_is_gone_says_so_and_comes_back(spark_lab: Lab, fault: str, role: str) -> None:
    """No machine has to be named: there is one. `status` names the cause; after healing all nodes are in again."""
    on = cluster(spark_lab, role)
    identity = said("fault", "add", fault, "--name", spark_lab.name).strip()
    try:
        errors = {each["kind"]: each.get("error", "") for each in told("status", spark_lab, expect=1)["clusters"]}
        assert "GET http" in errors[role]
        assert on.machine.state == "running"
    finally:
        said("fault", "heal", identity, "--name", spark_lab.name)
    on.wait_ready()


def test_a_worker_takes_its_executors_along(spark_lab: Lab) -> None:
    """A killed worker's executors end with it, and the application gets one on the other node."""
    on = cluster(spark_lab, "spark")
    with job(spark_lab, "spark") as driver:
        driver.line()
        (name,) = application(on, driver.name).nodes
        node = spark_lab.node(name)
        other = next(each for each in on.nodes if each.name != name)
        with faults.add(spark_lab, "spark-worker-down", [node]):
            block_until("its executor is gone", lambda: not logs.executors(node))
            block_until(
                "another one is there", lambda: application(on, driver.name).nodes == (other.name,), NOTICED_SECONDS
            )
        assert driver.finish() == 0
    on.wait_ready()


def test_containers_may_stay_when_their_node_manager_dies(spark_lab: Lab) -> None:
    """By option the containers live on as orphans, as they do where nothing but the NodeManager is killed."""
    on = cluster(spark_lab, "yarn")

    def containers(node: Node) -> list[str]:
        # In brackets: the words of this very command must not match.
        return node.exec(["pgrep", "-f", "[/]var/lib/yarn/local/usercache"]).stdout.split()

    with job(spark_lab, "yarn") as driver:
        driver.line()
        node = spark_lab.node(application(on, driver.name).nodes[0])
        before = pid(node, "yarn-nodemanager")
        with faults.add(spark_lab, "yarn-nodemanager-down", [node], containers="stay"):
            assert containers(node)
        block_until(
            "a new NodeManager runs", lambda: pid(node, "yarn-nodemanager") not in ("", before), NOTICED_SECONDS
        )
    block_until("the orphans have ended with their driver", lambda: not containers(node), NOTICED_SECONDS)
    on.wait_ready()
    with job(spark_lab, "yarn") as driver:
        driver.line()
        node = spark_lab.node(application(on, driver.name).nodes[0])
        with faults.add(spark_lab, "yarn-nodemanager-down", [node]):
            block_until("they end with it", lambda: not containers(node))
    on.wait_ready()


def test_a_fault_is_refused_where_its_daemon_is_not(spark_lab: Lab) -> None:
    """A master's fault on a node says what that machine lacks; a worker's fault wants a node; a second one is a conflict."""
    node = spark_lab.node("node1")
    with pytest.raises(FaultUnavailable, match="made without a spark-master"):
        faults.add(spark_lab, "spark-master-down", [node])
    with pytest.raises(LabUsageError, match="needs a node"):
        faults.add(spark_lab, "spark-worker-down", [])
    with faults.add(spark_lab, "spark-worker-down", [node]), pytest.raises(LabConflict):
        faults.add(spark_lab, "spark-worker-down", [node])
    cluster(spark_lab, "spark").wait_ready()


def test_a_reset_node_comes_back_with_its_daemons(spark_lab: Lab) -> None:
    """Reset ends all that a user runs, daemons among it; they are in again without anybody's help."""
    node = spark_lab.node("node1")
    before = {daemon: pid(node, daemon) for daemon in node.spec.daemons}
    assert all(before.values())
    spark_lab.reset("node1")

    def others() -> bool:
        return all(pid(node, daemon) not in ("", old) for daemon, old in before.items())

    block_until(
        "other daemons run", others
    )  # the ResourceManager calls a NodeManager RUNNING for 20 s after its last word
    for role in ROLES:
        cluster(spark_lab, role).wait_ready()


def test_an_export_has_the_daemons_logs(spark_lab: Lab, tmp_path: Path) -> None:
    """Each daemon's log is beside its machine's, and what the masters tell is there as well."""
    said("export", str(tmp_path / "all.tar.gz"), "--name", spark_lab.name)
    with tarfile.open(tmp_path / "all.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        file = archive.extractfile(next(name for name in archive.getnames() if name.endswith("/clusters.json")))
        assert file is not None
        assert {each["kind"] for each in json.load(file)} == set(ROLES)
    assert {
        "nodes/node1.lab.test/spark-worker.log",
        "nodes/node2.lab.test/yarn-nodemanager.log",
        "services/spark-master.lab.test/spark-master.log",
        "services/yarn-rm.lab.test/yarn-resourcemanager.log",
    } <= names


def test_the_plan_says_what_other_clusters_would_change(spark_lab: Lab) -> None:
    """Without YARN its machine would go and the nodes be made anew; the same clusters again change nothing."""
    plan = Lab.plan(spark_lab.name, clusters=["spark"])
    steps = {step.machine.partition(".")[0]: step for step in plan.steps}
    assert (steps["yarn-rm"].action, steps["spark-master"].action, steps["node1"].action) == (
        "remove",
        "keep",
        "recreate",
    )
    assert any("daemons" in reason for reason in steps["node1"].reasons)
    assert not Lab.plan(spark_lab.name, clusters=["yarn", "spark"])
    assert not Lab.plan(spark_lab.name)


def test_a_plain_lab_gains_a_cluster_and_loses_it(spark_lab: Lab) -> None:
    """`--with spark` on a lab that runs makes it one with a master; `--with none` leaves plain nodes on the plain image."""
    name = f"{spark_lab.name[:20]}-plain"
    try:
        lab = Lab.up(name, 1, driver="docker")
        plain = lab.node("node1").inspect()["image"]
        assert plain.startswith("eglab/node:")
        assert lab.services == []
        lab = Lab.up(name, clusters=["spark"])
        assert lab.node("node1").inspect()["image"].startswith("eglab/spark:")
        assert states(cluster(lab, "spark")) == {"node1": "ALIVE"}
        offered = httpx.get(f"{lab.gateway.url}/api/kernelspecs", timeout=10, trust_env=False).json()["kernelspecs"]
        assert "spark_python_standalone" in offered
        assert "spark_python_yarn_client" not in offered
        lab = Lab.up(name, clusters=[])
        assert lab.node("node1").inspect()["image"] == plain
        assert lab.services == []
    finally:
        removed = Lab.attach(name).down()
    assert f"volume eglab-{name}-shared" in removed
