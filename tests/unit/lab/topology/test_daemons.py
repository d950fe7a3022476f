"""Which daemons and machines the clusters of a lab are, in specs, files and plans."""

from typing import Any

import pytest

from eg_distributed.kernelspecs import Site
from lab.converge.desired import Desired, from_running, from_topology
from lab.drivers.spark_kernelspecs import offered
from lab.errors import LabUsageError
from lab.topology import daemons as kinds
from lab.topology import loads
from lab.topology.specs import NodeSpec, gateway_spec, node_spec

FILE = 'version = 1\nwith = ["yarn", "spark"]\n[nodes.node]\ncount = 2\n'


def desired(text: str = FILE) -> Desired:
    return from_topology(loads(text))


def test_each_node_gets_a_worker_and_each_master_a_machine() -> None:
    """`with` gives all nodes their daemons, in one order, and adds services, which are no nodes."""
    found = desired()
    assert [(node.name, node.daemons) for node in found.nodes] == [
        ("node1.lab.test", ("spark-worker", "yarn-nodemanager")),
        ("node2.lab.test", ("spark-worker", "yarn-nodemanager")),
    ]
    assert [(service.name, service.daemons) for service in found.services] == [
        ("spark-master.lab.test", ("spark-master",)),
        ("yarn-rm.lab.test", ("yarn-resourcemanager",)),
    ]
    assert all(service.is_service for service in found.services)
    assert not any(node.is_service for node in found.nodes)
    (gateway,) = found.gateways
    assert gateway.hosts == ("node1.lab.test", "node2.lab.test")
    assert gateway.clusters == ("spark", "yarn")


def test_a_machine_has_the_smallest_image_with_its_daemons() -> None:
    """Plain nodes have neither Java nor Hadoop, and a Spark node has no Hadoop."""
    found = {service.name: service.image for service in desired().services}
    assert found == {"spark-master.lab.test": "spark", "yarn-rm.lab.test": "yarn"}
    assert NodeSpec("node1.lab.test").image == "node"
    assert NodeSpec("node1.lab.test", daemons=("spark-worker",)).image == "spark"
    assert {node.image for node in desired().nodes} == {"yarn"}


def test_a_lab_stays_what_it_is_until_it_is_told_otherwise() -> None:
    """What runs says which clusters there are, also when nodes, or all of them, are gone; other words replace them."""
    made = desired()
    again = from_running(made.nodes, made.gateways, services=made.services)
    assert again == made
    half = from_running(made.nodes[:1], made.gateways, services=made.services[:1])
    assert [node.name for node in half.nodes] == ["node1.lab.test", "node2.lab.test"]
    assert [service.name for service in half.services] == ["spark-master.lab.test", "yarn-rm.lab.test"]
    assert made.running(["spark"]).nodes[0].daemons == ("spark-worker",)
    assert made.running([]) == desired("version = 1\n[nodes.node]\ncount = 2\n")
    assert [node.daemons for node in made.scaled({"node": 3}).nodes] == [made.nodes[0].daemons] * 3


def test_a_spec_with_daemons_survives_its_label() -> None:
    """What a container's label says is what it was made as."""
    made = desired()
    for machine in (*made.nodes, *made.services):
        assert node_spec(machine.name, machine.definition()) == machine
    (gateway,) = made.gateways
    assert gateway_spec(gateway.name, gateway.hosts, gateway.definition()) == gateway


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('version = 1\nwith = ["hive"]\n', "'hive' is none of spark, yarn"),
        ('version = 1\nwith = ["yarn"]\n[nodes.own]\ncount = 1\nname = "yarn-rm"\n', "'yarn-rm' is a name of"),
    ],
)
def test_a_file_that_can_t_be_is_refused(text: str, why: str) -> None:
    """An unknown cluster, and a node with a master's name."""
    with pytest.raises(LabUsageError, match=why):
        loads(text)


def test_a_fault_plan_may_name_a_master() -> None:
    """A master is no node, but a plan's line may be for it, if the lab has it."""
    line = '[[faults]]\nfault = "spark-master-down"\nnodes = ["spark-master"]\nfor = "5s"\n'
    assert loads(f'version = 1\nwith = ["spark"]\n{line}').faults[0].nodes == ("spark-master",)
    with pytest.raises(LabUsageError, match="is no node of this lab"):
        loads(f"version = 1\n{line}")


def test_unknown_clusters_are_refused_in_python_too() -> None:
    """The error names what there is."""
    with pytest.raises(LabUsageError, match="spark, yarn"):
        kinds.check(["spark", "flink"])


def test_gateways_offer_what_their_clusters_can_run() -> None:
    """The product's samples, with the lab's paths and master in them; none in a plain lab."""

    def env(name: str, spec: dict[str, Any]) -> dict[str, str]:
        return dict(spec[name]["env"])

    assert offered([]) == {}
    spark, both = offered(["spark"]), offered(["spark", "yarn"])
    assert not [name for name in spark if "yarn" in name]
    assert "--master spark://spark-master.lab.test:7077" in env("spark_python_standalone", spark)["SPARK_OPTS"]
    yarn = env("spark_python_yarn_client", both)
    assert (yarn["SPARK_HOME"], yarn["HADOOP_CONF_DIR"]) == ("/opt/spark", "/etc/hadoop")
    assert yarn["PYSPARK_PYTHON"] == "/opt/kernel/bin/python"


def test_a_local_lab_offers_its_own_places() -> None:
    """Each cluster's kernelspecs have its site, and only languages that the machine has are offered."""
    sites = {"spark": Site(spark_home="/s", master="spark://127.1.2.1:4"), "yarn": Site(spark_home="/y")}
    found = offered(["spark", "yarn"], sites, ("python",))  # type: ignore[arg-type]
    assert sorted(found) == ["spark_python_standalone", "spark_python_yarn_client"]
    assert "--master spark://127.1.2.1:4 " in found["spark_python_standalone"]["env"]["SPARK_OPTS"]
    assert found["spark_python_yarn_client"]["env"]["SPARK_HOME"] == "/y"
