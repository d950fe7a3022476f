from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lab.converge.desired import from_running, from_text, from_topology, numbered, sshd_lines
from lab.converge.plan import make
from lab.drivers.contract import Driver
from lab.errors import LabUsageError
from lab.names import short_name
from lab.topology import NodeGroup, Topology, loads
from lab.topology.specs import GatewaySpec, NodeSpec, differences, gateway_spec, machine_name, node_spec

FILE = """
version = 1
[users.alice]
shell = "fish"
[nodes.node]
count = 2
[nodes.gpu]
count = 1
domain = "gpu.test"
roles = ["gpu"]
packages = ["less", "file/bookworm-backports", "less"]
[nodes.gpu.limits]
memory = "512m"
[gateways.gateway]
[gateways.other]
hosts = ["@gpu"]
"""


def desired() -> Any:
    return from_topology(loads(FILE))


def driver(machines: Mapping[str, str], reasons: Mapping[str, list[str]] | None = None) -> Driver:
    """Return a stand-in whose machines are in these states; names with a hyphen belong to no group."""
    found = [
        SimpleNamespace(name=name, state=state, group="" if "-" in name else short_name(name).rstrip("0123456789"))
        for name, state in machines.items()
    ]
    nodes = [each for each in found if "." in each.name]
    gateways = [each for each in found if "." not in each.name]
    return cast(
        "Driver",
        SimpleNamespace(
            name="lab",
            kind="docker",
            nodes=lambda: nodes,
            gateways=lambda: gateways,
            services=list,
            reasons=lambda spec: (reasons or {}).get(spec.name, []),
        ),
    )


def test_a_file_becomes_machines() -> None:
    """Groups become numbered nodes with their domains; gateways get the nodes that their patterns mean."""
    found = desired()
    assert [node.name for node in found.nodes] == ["node1.lab.test", "node2.lab.test", "gpu1.gpu.test"]
    assert found.nodes[2].packages == ("file/bookworm-backports", "less")
    assert list(found.nodes[0].users) == ["alice"]
    assert {gateway.name: gateway.hosts for gateway in found.gateways} == {
        "gateway": ("node1.lab.test", "node2.lab.test", "gpu1.gpu.test"),
        "other": ("gpu1.gpu.test",),
    }


def test_a_spec_survives_its_label() -> None:
    """What a label says of a node or a gateway is what it was made as: users, limits and roles too."""
    found = desired()
    for node in found.nodes:
        assert node_spec(node.name, node.definition()) == node
    for gateway in found.gateways:
        assert gateway_spec(gateway.name, gateway.hosts, gateway.definition()) == gateway


def test_a_label_of_another_version_is_no_reason_to_fail() -> None:
    """Machines of an older lab are seen, with their place in the row."""
    assert node_spec("node3.lab.test", "").group == "node"
    assert node_spec("odd.lab.test", '{"colour": "red"}').group == ""
    assert gateway_spec("gateway", ("a",), "nonsense").group == "gateway"


def test_scaling_touches_one_group_and_the_gateways_that_serve_it() -> None:
    """Other groups keep their nodes; a gateway of all nodes gets the new ones, one of a role only its own."""
    found = desired().scaled({"node": 3})
    names = [node.name for node in found.nodes]
    assert names == ["node1.lab.test", "node2.lab.test", "node3.lab.test", "gpu1.gpu.test"]
    assert [len(gateway.hosts) for gateway in found.gateways] == [4, 1]


@pytest.mark.parametrize("counts", [{"nope": 1}, {"node": 0, "gpu": 0}, {"node": 200}])
def test_impossible_scales_are_refused(counts: dict[str, int]) -> None:
    """A group that isn't there, no node at all, and more than a subnet holds are usage errors."""
    with pytest.raises(LabUsageError):
        desired().scaled(counts)


def test_a_group_with_one_name_does_not_grow() -> None:
    """Without `{n}` a second node would have the first one's name."""
    lone = from_topology(Topology(nodes={"db": NodeGroup(count=1, name="db")}))
    with pytest.raises(LabUsageError, match="has no"):
        lone.scaled({"db": 2})


def test_a_running_lab_is_what_it_was_made_to_be() -> None:
    """Nodes that are gone but in a gateway's hosts, and holes in the row, are wanted again; extra machines are not."""
    row, gateway = desired().nodes[0], desired().gateways[0]
    extra = NodeSpec("odd.lab.test")
    found = from_running([row, extra], [gateway])
    assert [node.name for node in found.nodes] == ["node1.lab.test", "node2.lab.test"]
    assert from_running([], [gateway]).nodes[0].group == "node"
    third = NodeSpec("node3.lab.test", group="node", template="node{n}")
    assert len(from_running([third], []).nodes) == 3


def test_a_lab_without_gateways_stays_so() -> None:
    """The default gateway is wanted again only where the topology had one."""
    row = desired().nodes
    assert from_running(row, []).gateways[0].name == "gateway"
    assert from_running(row, [], gateway=False).gateways == ()


def test_the_plan_says_what_happens_and_why() -> None:
    """Each machine is created, made anew with a reason, removed, woken or kept; what is outside of groups stays."""
    there = {
        "node1.lab.test": "running",
        "node2.lab.test": "paused",
        "node3.lab.test": "running",
        "x-tra.lab.test": "stopped",
        "gateway": "running",
    }
    plan = make(driver(there, {"node1.lab.test": ["shell: 'bash' -> 'csh'"]}), desired())
    assert [(step.action, step.machine) for step in plan.steps] == [
        ("remove", "node3.lab.test"),
        ("recreate", "node1.lab.test"),
        ("unpause", "node2.lab.test"),
        ("create", "gpu1.gpu.test"),
        ("keep", "gateway"),
        ("create", "other"),
        ("start", "x-tra.lab.test"),
    ]
    assert "± recreate node node1: shell: 'bash' -> 'csh'" in plan.lines()
    assert len(plan.lines()) == plan.as_dict()["changes"] == 6
    assert plan


def test_what_an_up_makes_can_be_written_down() -> None:
    """The next `up` reads back all machines with all that they shall be; half a file says nothing."""
    wanted = desired().running(["spark"])
    assert from_text(wanted.text()) == wanted
    assert from_text(wanted.text()[:-9]) is None
    assert from_text("[]") is None


def test_nothing_to_do_is_an_empty_plan() -> None:
    """A lab that is right has a plan that is false and has no lines."""
    there = dict.fromkeys(("node1.lab.test", "gateway"), "running")
    plan = make(driver(there), from_topology(numbered(1)))
    assert not plan
    assert plan.lines() == []


def test_differences_are_named() -> None:
    """Two definitions differ in words that a person can read."""
    old, new = NodeSpec("a.lab.test"), NodeSpec("a.lab.test", shell="csh")
    assert differences(old.definition(), new.definition()) == ['shell: "bash" -> "csh"']
    assert differences("", new.definition()) == ["an older lab made it"]


def test_sshd_options_become_lines() -> None:
    """Truths are yes and no, and a list is the keyword several times."""
    options = {"MaxSessions": 4, "AllowTcpForwarding": False, "AcceptEnv": ("LANG", "LC_*")}
    assert sshd_lines(options) == ("MaxSessions 4", "AllowTcpForwarding no", "AcceptEnv LANG", "AcceptEnv LC_*")


def test_a_node_may_have_a_domain_of_its_own() -> None:
    """A full name stays what it is, a short one gets the lab's domain; nonsense in either is refused."""
    assert machine_name("odd") == "odd.lab.test"
    assert machine_name("odd.other.org") == "odd.other.org"
    with pytest.raises(LabUsageError):
        machine_name("odd..org")


def test_a_gateways_patterns_come_back() -> None:
    """Hosts are chosen anew from patterns, so that a gateway follows its lab."""
    gateway = GatewaySpec("g", ("old.lab.test",), patterns=("node*",))
    assert gateway.serving([NodeSpec("node1.lab.test"), NodeSpec("gpu1.lab.test")]).hosts == ("node1.lab.test",)
