"""Masters asked by REST: what they say of members and applications, and what is said when they don't answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from lab.drivers.machines import ExecResult, Node
from lab.errors import LabError, LabNotFound, LabNotReady
from lab.spark.clusters import Application, Member, ResourceManager, SparkMaster, cluster, environment, report
from lab.topology.specs import NodeSpec
from tests.unit.lab.fake_lab import fake_lab

WORKERS = [
    {"host": "node1.lab.test", "state": "DEAD"},
    {"host": "node1.lab.test", "state": "ALIVE"},
    {"host": "node2.lab.test", "state": "DEAD"},
]
NODES = [{"nodeHostName": "node1.lab.test", "state": "LOST"}, {"nodeHostName": "node2.lab.test", "state": "RUNNING"}]
APP = {"id": "application_1_0001", "name": "kernel", "state": "RUNNING", "user": "lab"}
ATTEMPTS = f"/ws/v1/cluster/apps/{APP['id']}/appattempts"


class Machine:
    """A machine of a cluster: its master's page is a server of the test, its processes are what *told* says."""

    daemon_logs, daemon_files = Node.daemon_logs, Node.daemon_files

    def __init__(self, name: str, daemon: str, url: str = "", told: str = "", host: str = "") -> None:
        self.host = host or name
        self.name, self.short_name, self.url, self.told = name, name.partition(".")[0], url, told
        self.spec = NodeSpec(name, daemons=(daemon,))

    def published(self, port: int) -> str:
        return self.url

    def exec(self, argv: Sequence[str], user: str | None = None, timeout: float = 30) -> ExecResult:
        return ExecResult(tuple(argv), 0, self.told, "")


class Master:
    """A server that answers with JSON, by path."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = outer.answers.get(self.path)
                self.send_response(404 if found is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def master() -> Iterator[Master]:
    found = Master()
    yield found
    found.server.shutdown()
    found.server.server_close()


def spark(url: str, told: Mapping[str, str] | None = None) -> SparkMaster:
    nodes = [Machine(f"node{n}.lab.test", "spark-worker", told=(told or {}).get(f"node{n}", "")) for n in (1, 2)]
    return SparkMaster(cast("Node", Machine("spark-master.lab.test", "spark-master", url)), cast("list[Node]", nodes))


def yarn(url: str) -> ResourceManager:
    nodes = [Machine(f"node{n}.lab.test", "yarn-nodemanager") for n in (1, 2)]
    return ResourceManager(
        cast("Node", Machine("yarn-rm.lab.test", "yarn-resourcemanager", url)), cast("list[Node]", nodes)
    )


def test_a_worker_that_came_back_is_alive(master: Master) -> None:
    """The master lists the dead one beside the living; each node counts once, as it is now."""
    master.answers["/json/"] = {"workers": WORKERS, "activeapps": [], "completedapps": []}
    assert spark(master.url).members() == [Member("node1.lab.test", "ALIVE"), Member("node2.lab.test", "DEAD")]


def test_a_member_is_its_node_whatever_the_master_calls_it(master: Master) -> None:
    """Where clusters know nodes by addresses, members and containers have the nodes' names; a stranger keeps its own."""
    known = [{"nodeHostName": "127.1.2.1", "state": "RUNNING"}, {"nodeHostName": "127.9.9.1", "state": "LOST"}]
    master.answers["/ws/v1/cluster/nodes"] = {"nodes": {"node": known}}
    node = cast("Node", Machine("node1.lab.test", "yarn-nodemanager", host="127.1.2.1"))
    on = ResourceManager(cast("Node", Machine("yarn-rm.lab.test", "yarn-resourcemanager", master.url)), [node])
    assert on.members() == [Member("127.9.9.1", "LOST"), Member("node1.lab.test", "RUNNING")]
    master.answers["/ws/v1/cluster/apps"] = {"apps": {"app": [APP]}}
    master.answers[ATTEMPTS] = {"appAttempts": {"appAttempt": [{"appAttemptId": "a1"}]}}
    master.answers[f"{ATTEMPTS}/a1/containers"] = {"container": [{"assignedNodeId": "127.1.2.1:41234"}]}
    assert on.applications()[0].nodes == ("node1.lab.test",)


def test_applications_tell_where_their_executors_are(master: Master) -> None:
    """The standalone master doesn't say it in JSON, so the nodes do; a completed application has none."""
    running, done = {**APP, "id": "app-1"}, {**APP, "id": "app-0", "state": "FINISHED"}
    master.answers["/json/"] = {"workers": WORKERS, "activeapps": [running], "completedapps": [done]}
    assert spark(master.url, {"node2": "/home/lab\n/var/lib/spark/work/app-1/0\n"}).applications() == [
        Application("app-1", "kernel", "RUNNING", "lab", ("node2.lab.test",)),
        Application("app-0", "kernel", "FINISHED", "lab"),
    ]


def test_yarn_tells_of_containers(master: Master) -> None:
    """An application that runs has the nodes and the number of its containers, a cluster without any application none."""
    master.answers["/ws/v1/cluster/nodes"] = {"nodes": {"node": NODES}}
    master.answers["/ws/v1/cluster/apps"] = {"apps": None}
    assert yarn(master.url).members() == [Member("node1.lab.test", "LOST"), Member("node2.lab.test", "RUNNING")]
    assert yarn(master.url).applications() == []
    master.answers["/ws/v1/cluster/apps"] = {"apps": {"app": [APP]}}
    master.answers[ATTEMPTS] = {"appAttempts": {"appAttempt": [{"appAttemptId": "a1"}]}}
    containers = [{"assignedNodeId": "node2.lab.test:8041"}, {"assignedNodeId": "node2.lab.test:8041"}]
    master.answers[f"{ATTEMPTS}/a1/containers"] = {"container": containers}
    (application,) = yarn(master.url).applications()
    assert application == Application(APP["id"], "kernel", "RUNNING", "lab", ("node2.lab.test",), containers=2)


def test_who_is_not_in_is_named_with_its_last_lines(master: Master) -> None:
    """The error of the wait has the probe, the nodes that are missing, and what their daemons said last."""
    master.answers["/json/"] = {"workers": WORKERS}
    with pytest.raises(LabNotReady) as late:
        spark(master.url, {"node1": "fine", "node2": "no memory"}).wait_ready(seconds=0.2)
    assert f"GET {master.url}/json/: not ALIVE: node2.lab.test" in late.value.cause
    assert "node2.lab.test, spark-worker:\nno memory" in late.value.logs
    assert "fine" not in late.value.logs
    master.answers["/json/"]["workers"] = [{**worker, "state": "ALIVE"} for worker in WORKERS]
    spark(master.url).wait_ready(seconds=5)


def test_a_master_that_does_not_answer_is_named(master: Master) -> None:
    """Status goes on: the cluster's line has the cause, all its nodes are missing."""
    service = Machine("yarn-rm.lab.test", "yarn-resourcemanager", master.url)
    lab = fake_lab([Machine("node1.lab.test", "yarn-nodemanager")], services=[service])
    (told,) = report(lab)
    assert "404" in told["error"]
    assert (told["kind"], told["machine"], told["missing"]) == ("yarn", "yarn-rm", ["node1.lab.test"])
    with pytest.raises(LabError, match="the ResourceManager on yarn-rm"):
        cluster(lab, "yarn").members()


def test_a_cluster_that_is_not_there_says_how_to_have_it() -> None:
    """A plain lab has none, and its environment says so with empty words."""
    with pytest.raises(LabNotFound, match="--with spark"):
        cluster(fake_lab(), "spark")
    assert environment([]) == {"spark_master": "", "spark_ui": "", "yarn_rm": "", "yarn_ui": ""}
