from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab.drivers.docker.blueprints import Blueprint, Blueprints, limited, unlimited
from lab.errors import EnvironmentUnfit, LabError
from lab.keys import Authority, read_or_generate
from lab.state import StateFolder
from lab.topology import Limits, User
from lab.topology.specs import GatewaySpec, NodeSpec

TAGS = {"node": "eglab/node:1", "node less": "eglab/node-packages:1", "gateway": "eglab/gateway:1"}
ADDRESS = "10.213.7.11"


@pytest.fixture
def drawn() -> Blueprints:
    """Blueprints of a lab whose node1 has a host key."""
    folder = StateFolder("x")
    read_or_generate(folder.host_keys / "node1", "node1")
    return Blueprints("x", folder, TAGS, "network-id")


def container(blueprint: Blueprint, **labels: str) -> Any:
    """Return a stand-in for the container that *blueprint* made, with other *labels*."""
    config = {"Config": {"Image": blueprint.image}}
    return SimpleNamespace(labels={**blueprint.all_labels(), **labels}, attrs=config)


def test_equal_specs_are_equal_containers(drawn: Blueprints) -> None:
    """The fingerprint is the same today and tomorrow, and another for anything that the container would notice."""
    spec = NodeSpec("node1.lab.test", group="node")
    first = drawn.make(spec, ADDRESS)
    assert drawn.make(NodeSpec("node1.lab.test", group="node"), ADDRESS).fingerprint == first.fingerprint
    others = [
        drawn.make(spec, "10.213.7.12"),
        drawn.make(NodeSpec("node1.lab.test", group="node", shell="csh"), ADDRESS),
        drawn.make(NodeSpec("node1.lab.test", group="node", packages=("less",)), ADDRESS),
        drawn.make(NodeSpec("node1.lab.test", group="node", users={"a": User()}), ADDRESS),
        drawn.make(NodeSpec("node1.lab.test", group="node", limits=Limits(pids=99)), ADDRESS),
    ]
    assert len({each.fingerprint for each in (first, *others)}) == 6


def test_limits_of_open_files_are_the_labs_own(drawn: Blueprints) -> None:
    """Whatever the engine's are, nodes and gateways have those of a machine; an engine without root may not set them."""
    for spec in (NodeSpec("node1.lab.test"), GatewaySpec("gateway", ())):
        assert drawn.make(spec, ADDRESS).settings["ulimits"] == [{"Name": "nofile", "Soft": 1024, "Hard": 16384}]
    rootless = Blueprints("x", StateFolder("x"), TAGS, "network-id", sets_limits=False)
    assert "ulimits" not in rootless.make(NodeSpec("node1.lab.test"), ADDRESS).settings


def test_what_differs_is_said_in_words(drawn: Blueprints) -> None:
    """A plan's reasons come from the labels that the container has."""
    old = container(drawn.make(NodeSpec("node1.lab.test"), ADDRESS))
    new = drawn.make(NodeSpec("node1.lab.test", noisy=True), ADDRESS)
    assert new.differences(old) == ["noisy: false -> true"]
    old.attrs["Config"]["Image"] = "eglab/node:0"
    assert "its image has changed" in new.differences(old)
    same = drawn.make(NodeSpec("node1.lab.test"), ADDRESS)
    assert same.differences(container(same)) == ["the lab makes such machines in another way now"]


def test_certificates_are_part_of_the_container(drawn: Blueprints) -> None:
    """Another authority is another container; drawing makes none."""
    spec = NodeSpec("node1.lab.test", auth="certificates")
    folder = StateFolder("x")
    without = drawn.make(spec, ADDRESS)
    assert not folder.authority.exists()
    Authority(folder.authority, "x")
    made = drawn.make(spec, ADDRESS)
    assert made.fingerprint != without.fingerprint
    assert "TrustedUserCAKeys" in made.settings["environment"]["LAB_SSHD_OPTIONS"]
    assert "its certificate is of another authority" in made.differences(container(without))


def test_only_nodes_and_gateways_are_published_on_loopback(drawn: Blueprints) -> None:
    """No fixed ports, and none beyond this machine."""
    node = drawn.make(NodeSpec("node1.lab.test"), ADDRESS)
    gateway = drawn.make(GatewaySpec("gateway", ("node1.lab.test",)), "10.213.7.2")
    assert node.settings["ports"] == {"22/tcp": ("127.0.0.1", None)}
    assert gateway.settings["ports"] == {"8888/tcp": ("127.0.0.1", None)}
    assert "privileged" not in {**node.settings, **gateway.settings}


def test_limits_become_the_engines_settings() -> None:
    """What isn't said is not limited; memory counts swap in."""
    assert limited(Limits()) == {}
    assert limited(Limits(0.5, 512, 99, 1024)) == {
        "nano_cpus": 500_000_000,
        "mem_limit": 512,
        "memswap_limit": 512,
        "pids_limit": 99,
        "storage_opt": {"size": "1024"},
    }


def test_a_limit_that_the_engine_can_not_do_says_so(drawn: Blueprints) -> None:
    """A refused disk limit is about this machine; any other refusal is the engine's own words."""
    limits = Limits(disk=1 << 30)
    small = drawn.make(NodeSpec("node1.lab.test", limits=limits), ADDRESS)
    said = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"
    assert isinstance(unlimited(small, said), EnvironmentUnfit)
    plain = unlimited(drawn.make(NodeSpec("node1.lab.test"), ADDRESS), "no space left on device")
    assert type(plain) is LabError


def test_drawing_leaves_the_folder_alone(tmp_path: Path) -> None:
    """A plan for a lab that isn't there makes no key and no folder."""
    folder = StateFolder("nobody")
    Blueprints("nobody", folder, TAGS, "").make(NodeSpec("node1.lab.test"), ADDRESS)
    assert not folder.path.exists()
    assert not any(tmp_path.glob("state/*"))


def test_gateways_that_share_have_the_volume_of_the_lab(drawn: Blueprints) -> None:
    """They find it where machines with daemons do; others have none, and are other containers."""
    shares, other = (drawn.make(GatewaySpec("second", (), shares=each), ADDRESS) for each in (True, False))
    assert [mount["bind"] for mount in shares.settings["volumes"].values()] == ["/shared"]
    assert "volumes" not in other.settings
    assert shares.fingerprint != other.fingerprint
