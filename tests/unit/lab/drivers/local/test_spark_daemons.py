"""What local machines with daemons are told: addresses, ports that stay, and the images' configuration with both in it."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from lab.drivers.local import java, spark_daemons
from lab.topology.specs import NodeSpec

MASTER = NodeSpec("yarn-rm.lab.test", daemons=("yarn-resourcemanager",))
NODE = NodeSpec("node1.lab.test", daemons=("spark-worker", "yarn-nodemanager"))


@pytest.fixture(autouse=True)
def java_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "find", lambda: Path("/java"))


def made(machines: Path, spec: NodeSpec, port: int, kept: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the facts of a machine, written as its machine.json."""
    folder = machines / spec.name.partition(".")[0]
    machine = {"port": port, "env": {"HOME": "/h"}, "isolation": "none"}
    found = spark_daemons.facts(spec, folder, machine, kept or {})
    folder.mkdir(exist_ok=True)
    (folder / "machine.json").write_text(json.dumps({**machine, **found}))
    return found


def test_a_plain_node_has_nothing_of_it(tmp_path: Path) -> None:
    """No facts, no supervisor: such a machine stays what it was."""
    assert made(tmp_path, NodeSpec("node1.lab.test"), 40000) == {}
    assert spark_daemons.supervised({}, tmp_path) == []
    assert spark_daemons.kernels(tmp_path, []) == {}


def test_ports_stay_and_addresses_are_the_machines_own(tmp_path: Path) -> None:
    """An address is as unique as the SSH port that it is made of; kept ports are taken again, others are all unlike."""
    first = made(tmp_path, NODE, 40001)
    assert first["host"] == "127.156.65.1"
    assert first["env"] == {"HOME": "/h", "SPARK_LOCAL_IP": "127.156.65.1"}
    assert sorted(first["ports"]) == ["7078", "8040", "8041", "8042", "8081"]
    assert len(set(first["ports"].values())) == 5
    assert made(tmp_path, NODE, 40001, first) == first
    assert made(tmp_path, NODE, 40002)["host"] != first["host"]


def test_workers_know_their_masters(tmp_path: Path) -> None:
    """A node's daemons wait for the masters' ports, and the site of its kernels names them."""
    master = made(tmp_path, MASTER, 40000)
    node = made(tmp_path, NODE, 40001)
    daemons = json.loads(node["cluster_files"][str(tmp_path / "node1" / "daemons" / "daemons.json")])
    assert daemons["yarn-nodemanager"]["after"] == [master["host"], master["ports"]["8031"]]
    assert f"yarn.nodemanager.address={node['host']}:{node['ports']['8041']}" in daemons["yarn-nodemanager"]["argv"]
    site = spark_daemons.sites(tmp_path, ["yarn"])["yarn"]
    assert site.hadoop_conf_dir == str(tmp_path / "yarn-rm" / "hadoop-conf")
    assert (site.env or {})["JAVA_HOME"] == "/java"


def test_the_images_configuration_is_the_local_one_too(tmp_path: Path) -> None:
    """Values that are a place become this machine's, all others stay, and nothing names the images' folders."""
    master = made(tmp_path, MASTER, 40000)
    files = {Path(path).name: text for path, text in master["cluster_files"].items()}
    site = {each.findtext("name"): each.findtext("value") for each in ET.fromstring(files["yarn-site.xml"])}
    assert site["yarn.resourcemanager.address"] == f"{master['host']}:{master['ports']['8032']}"
    assert site["yarn.scheduler.maximum-allocation-mb"] == "2048"
    assert "closed" in files["capacity-scheduler.xml"]
    defaults = files["spark-defaults.conf"]
    assert f"file://{tmp_path}/yarn-rm/staging" in defaults
    assert f"file://{tmp_path}/yarn-rm/warehouse" in defaults
    assert not [text for text in (defaults, files["core-site.xml"]) if "/opt/" in text or "/var/lib" in text]
