"""A lab with a JupyterLab: which machine that is, what it is given, and what it offers."""

from __future__ import annotations

import pytest

from lab.converge.desired import Desired, from_running, from_text, from_topology
from lab.drivers.docker.blueprints import Blueprints
from lab.errors import LabUsageError
from lab.kernelspecs import OURS, for_provisioner, jupyterlab_kernelspecs
from lab.keys import read_or_generate, token_variable
from lab.state import StateFolder
from lab.topology import loads
from lab.topology.specs import GatewaySpec
from tests.unit.lab.drivers.docker.test_blueprints import TAGS

BESIDE = from_topology(loads('version = 1\nwith = ["jupyterlab"]'))
ALONE = from_topology(loads('version = 1\nwith = ["jupyterlab"]\n[gateways]'))
SPEC = GatewaySpec("jupyterlab", ("node1.lab.test",), program="jupyterlab")


def names(desired: Desired) -> list[str]:
    return [gateway.name for gateway in desired.gateways]


def again(desired: Desired, *, gateway: bool = True) -> Desired:
    """Return what `lab up` without a file wants of a lab that is *desired*."""
    return from_running(desired.nodes, desired.gateways, gateway=gateway, services=desired.services)


def test_it_stands_beside_the_gateway_and_has_all_nodes() -> None:
    """`with = ["jupyterlab"]` adds one machine, a gateway of another program, whose hosts follow the lab's."""
    assert names(BESIDE) == ["gateway", "jupyterlab"]
    added = BESIDE.gateways[1]
    assert (added.program, added.hosts) == ("jupyterlab", tuple(node.name for node in BESIDE.nodes))
    assert len(BESIDE.scaled({"node": 5}).gateways[1].hosts) == 5
    assert from_text(BESIDE.text()) == BESIDE


def test_it_stays_until_other_words_are_said() -> None:
    """`lab up` keeps it; `--with` of other words, or `none`, takes it away, and nothing else of the gateways."""
    assert names(again(BESIDE)) == ["gateway", "jupyterlab"]
    assert names(BESIDE.running(["jupyterlab", "spark"])) == ["gateway", "jupyterlab"]
    assert BESIDE.running(["jupyterlab", "spark"]).words == ("spark", "jupyterlab")
    assert names(BESIDE.running(["spark"])) == names(BESIDE.running([])) == ["gateway"]


def test_it_does_not_stand_for_the_gateway_of_a_half_made_lab() -> None:
    """Where the gateway is lacking it is made again; where none was asked for there is only the JupyterLab."""
    assert names(again(Desired(BESIDE.nodes, BESIDE.gateways[1:]))) == ["gateway", "jupyterlab"]
    assert names(ALONE) == names(again(ALONE, gateway=False)) == ["jupyterlab"]


def test_a_file_may_have_it_as_a_gateway_of_its_own() -> None:
    """`program = "jupyterlab"` makes any gateway one, which no `--with` takes away; its name is no other's."""
    found = from_topology(loads('version = 1\n[gateways.notebooks]\nprogram = "jupyterlab"'))
    assert [gateway.program for gateway in found.running([]).gateways] == ["jupyterlab"]
    with pytest.raises(LabUsageError, match="jupyterlab"):
        loads('version = 1\nwith = ["jupyterlab"]\n[gateways.jupyterlab]')
    with pytest.raises(LabUsageError, match="can't run"):
        GatewaySpec("odd", (), program="emacs")


def test_its_environment_has_hosts_and_nothing_of_enterprise_gateway() -> None:
    """Our own variables mean the same in both; those of Enterprise Gateway alone are left out."""
    environment = SPEC.environment("10.213.7.9", {"EG_REMOTE_USER": "lab"})
    assert environment["EG_REMOTE_HOSTS"] == "node1.lab.test"
    assert environment["EG_REMOTE_USER"] == "lab"
    assert "EG_RESPONSE_IP" not in environment


def test_its_token_lasts_as_long_as_the_labs_key() -> None:
    """The same with each `up`, another one in another lab, for another machine, and none for Enterprise Gateway."""
    one, two = StateFolder("one").identity, StateFolder("two").identity
    for identity in (one, two):
        read_or_generate(identity, "me")
    found = token_variable(SPEC, one)
    assert found == token_variable(SPEC, one)
    other = GatewaySpec("other", (), program="jupyterlab")
    assert len({str(each) for each in (found, token_variable(SPEC, two), token_variable(other, one))}) == 3
    assert token_variable(GatewaySpec("gateway", ()), one) == {}


def test_its_container_has_its_own_image_and_the_token() -> None:
    """The token is in the environment, where a topology's `env` wins over it; no label has it."""
    folder = StateFolder("x")
    read_or_generate(folder.identity, "me")
    drawn = Blueprints("x", folder, {**TAGS, "jupyterlab": "eglab/jupyterlab:1"}, "network-id")
    made = drawn.make(SPEC, "10.213.7.9")
    token = made.settings["environment"]["JUPYTER_TOKEN"]
    assert made.image == "eglab/jupyterlab:1"
    assert len(token) == 32
    assert token not in str(made.all_labels())
    chosen = drawn.make(GatewaySpec("jupyterlab", (), {"JUPYTER_TOKEN": "mine"}, program="jupyterlab"), "10.213.7.9")
    assert chosen.settings["environment"]["JUPYTER_TOKEN"] == "mine"


def test_it_offers_kernels_on_any_host_and_on_each() -> None:
    """A kernelspec for all hosts, and one for each node by its name, all for our provisioner."""
    offered = jupyterlab_kernelspecs(["node1.lab.test", "big.other.test"])
    assert list(offered) == ["python_distributed", "python_node1", "python_big"]
    found = for_provisioner(offered["python_big"])
    assert found["display_name"] == "Python 3 on big"
    assert found["metadata"]["kernel_provisioner"] == {
        "provisioner_name": "eg-distributed",
        "config": {"remote_hosts": "big.other.test"},
    }
    assert for_provisioner(found) == found
    other = {"metadata": {"process_proxy": {"class_name": f"not.{OURS}"}}}
    assert for_provisioner(other) == other
    assert for_provisioner({}) == {}
