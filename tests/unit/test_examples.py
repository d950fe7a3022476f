"""What is in examples/ is what this release takes: each is loaded by the program that it is for, or by its own reader."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from eg_distributed.balancing import GROUP, HostView, LoadBalancer, load_balancer
from eg_distributed.settings import Distributed
from lab.drivers import choice
from lab.faults import kind
from lab.topology import Topology, load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HOSTS = ("node1", "node2", "node3")


def topology(name: str) -> Topology:
    """Return the topology of the example *name*, as `lab up` reads it."""
    return load(EXAMPLES / name, drivers=choice.names())


def test_each_example_is_in_the_list() -> None:
    """examples/README.md has a link to each file."""
    files = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.*") if "__pycache__" not in path.parts}
    linked = set(re.findall(r"\]\(([^.][^)]*)\)", (EXAMPLES / "README.md").read_text("utf-8")))

    assert linked == files - {"README.md"}


@pytest.fixture
def balancer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadBalancer:
    """The example's balancer, found by its entry point as an installed package has it."""
    project = tomllib.loads((EXAMPLES / "balancer" / "pyproject.toml").read_text("utf-8"))["project"]
    (name, target), *others = project["entry-points"][GROUP].items()
    assert not others
    metadata = tmp_path / "fill_up-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES / "balancer"))
    monkeypatch.delitem(sys.modules, "fill_up", raising=False)
    return load_balancer("fill-up")(HOSTS)


@pytest.mark.parametrize(
    ("kernels", "picked"),
    [
        ((0, 0, 0), "node1"),
        ((9, 0, 0), "node1"),
        ((10, 0, 0), "node2"),
        ((10, 10, 3), "node3"),
        ((12, 11, 15), "node2"),
    ],
)
def test_the_balancer_fills_one_host_before_the_next(
    balancer: LoadBalancer, kernels: tuple[int, ...], picked: str
) -> None:
    """A host takes ten kernels before the next one is used; where all are full, the one with the fewest takes the kernel."""
    views = [HostView(name, count) for name, count in zip(HOSTS, kernels, strict=True)]

    assert balancer.pick(views).name == picked


def test_the_balancer_leaves_an_unknown_host_for_last(balancer: LoadBalancer) -> None:
    """A host that has never answered seems to be empty, and is taken only where no other is left."""
    unknown = HostView("node1", 0, healthy=False, known=False)

    assert balancer.pick([unknown, HostView("node2", 4)]).name == "node2"
    assert balancer.pick([unknown]).name == "node1"


def test_the_topology_has_two_groups_and_a_gateway_for_each() -> None:
    """`lab up examples/two-groups.toml` makes two hosts of each kind, of which one gateway has those with the role `gpu`."""
    read = topology("two-groups.toml")

    assert {name: group.count for name, group in read.nodes.items()} == {"cpu": 2, "gpu": 2}
    assert {name: list(group.hosts or ()) for name, group in read.gateways.items()} == {"all": [], "gpu": ["@gpu"]}


def test_the_fault_plan_names_faults_and_hosts_that_there_are() -> None:
    """Each line's fault is in the catalogue with those options, and its hosts are in the file."""
    read = topology("faults.toml")

    assert [(step.fault, list(step.nodes or ())) for step in read.faults] == [
        ("pause", ["node1"]),
        ("sessions-killed", ["node2"]),
        ("kill", ["node3"]),
    ]
    for step in read.faults:
        kind(step.fault).parse(dict(step.options or {}))


def test_the_units_variables_are_settings() -> None:
    """Each variable of the systemd unit that begins as ours do is one of a setting."""
    text = (EXAMPLES / "jupyter-enterprise-gateway.service").read_text("utf-8")
    ours = set(re.findall(r"^Environment=(EG_DISTRIBUTED_\w+)=", text, re.MULTILINE))
    known = {trait.metadata["env"] for trait in Distributed.class_traits().values() if "env" in trait.metadata}

    assert ours
    assert ours <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """systemd finds no unknown key, no wrong value and no missing program, where the gateway is installed."""
    text = (EXAMPLES / "jupyter-enterprise-gateway.service").read_text("utf-8")
    unit = tmp_path / "jupyter-enterprise-gateway.service"
    unit.write_text(text.replace("/opt/gateway/bin/jupyter", sys.executable).replace("User=gateway", "User=root"))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def hub() -> Config:
    """The example's configuration of JupyterHub, as JupyterHub loads it."""
    loaded: Config = PyFileConfigLoader("jupyterhub_config.py", path=str(EXAMPLES)).load_config()
    return loaded


class Spawner:
    """What JupyterHub gives a callable of the environment, as far as the example uses it."""

    def __init__(self, **options: Any) -> None:
        self.user_options = options


def test_a_profile_of_the_hub_decides_about_the_hosts(hub: Config) -> None:
    """The hosts of the chosen profile are in the server's environment; without a choice those of the first one."""
    chosen = hub.Spawner.options_from_form({"profile": ["With a GPU"]})
    hosts = hub.Spawner.environment["EG_REMOTE_HOSTS"]

    assert hosts(Spawner(**chosen)) == "gpu1.example.org"
    assert hosts(Spawner()) == "node1.example.org,node2.example.org"


def test_a_profile_that_is_not_on_the_list_is_refused(hub: Config) -> None:
    """A form that was not made by the hub cannot name hosts of its own."""
    with pytest.raises(ValueError, match="no profile"):
        hub.Spawner.options_from_form({"profile": ["node9,node10"]})
    assert hub.Spawner.environment["EG_REMOTE_HOSTS"](Spawner(profile="node9")) == "node1.example.org,node2.example.org"
