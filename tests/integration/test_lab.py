"""The lab itself, on a real engine: converges, tells what others need, and leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import pytest

from lab import Lab, LabNotFound
from lab.names import LABEL, resource_name
from lab.state import StateFolder
from tests.integration.fixtures import down

NAME = f"it-lab-{os.getpid() % 10000}"

pytestmark = [pytest.mark.timeout(600), pytest.mark.own_lab(NAME, nodes=2)]


def cli(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command `lab` as a user does, with nothing on stdin."""
    argv = [sys.executable, "-c", "from lab.cli import main; main()", *arguments]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)


def ids(engine: Any, name: str = NAME) -> dict[str, str]:
    """Return the lab's containers, networks and volumes: name to engine's id."""
    label = {"label": f"{LABEL}={name}"}
    kinds = (engine.containers.list(all=True, filters=label), engine.networks.list(filters=label))
    return {each.name: each.id for found in (*kinds, engine.volumes.list(filters=label)) for each in found}


def test_up_ends_with_a_kernel_on_every_node(own: Lab) -> None:
    """When `up` returns, a kernel has answered from each node, in its own words, and how long that took is known."""
    assert [landing.hostname for landing in own.landings] == ["node1.lab.test", "node2.lab.test"]
    assert all(0 < landing.seconds < 60 for landing in own.landings)


def test_a_second_up_changes_nothing(own: Lab, engine: Any) -> None:
    """`up` on a whole lab keeps every container and network."""
    before = ids(engine)
    result = cli("up", "--name", NAME)
    assert result.returncode == 0, result.stderr
    assert ids(engine) == before
    assert "node2.lab.test: a kernel" in result.stdout
    assert own.gateway.url in result.stdout


def test_up_heals_a_half_made_lab(own: Lab, engine: Any) -> None:
    """A removed node, a paused one and a killed gateway are made whole again; what was right is kept."""
    before = ids(engine)
    own.node("node1").pause()
    own.node("node2").remove()
    own.gateway.kill()
    Lab.up(NAME)
    after = ids(engine)
    node2 = resource_name(NAME, "node2")
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {node2}
    assert [machine.state for machine in (*own.nodes, own.gateway)] == ["running"] * 3


def test_up_heals_a_lost_folder(own: Lab) -> None:
    """The folder on this machine is a cache: without it, new keys reach the machines that are there."""
    shutil.rmtree(own.folder.path)
    Lab.up(NAME)
    assert own.node("node1").exec(["true"]).exit_code == 0
    assert ssh(own, "node1", "hostname").stdout == "node1.lab.test\n"


def ssh(lab: Lab, node: str, *command: str) -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-F", str(lab.environment()["ssh_config"]), "-o", "BatchMode=yes", node, *command]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def test_the_ssh_config_works_with_strict_host_keys(own: Lab) -> None:
    """Plain `ssh -F` reaches a node by either name, and refuses one whose host key is another."""
    if shutil.which("ssh") is None:
        pytest.skip("no ssh client on this machine")
    assert ssh(own, "node1", "hostname").stdout == "node1.lab.test\n"
    assert ssh(own, "node2.lab.test", "whoami").stdout == "lab\n"
    lines = own.folder.known_hosts.read_text().splitlines()
    first, second = (line.split(" ", 1) for line in lines[:2])
    own.folder.known_hosts.write_text(f"{first[0]} {second[1]}\n{second[0]} {first[1]}\n")
    swapped = ssh_without_refresh(own)
    own.refresh()
    assert swapped.returncode == 255
    assert "host key" in swapped.stderr.lower()


def ssh_without_refresh(lab: Lab) -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-F", str(lab.folder.ssh_config), "-o", "BatchMode=yes", "node1", "true"]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def test_env_says_what_other_programs_need(own: Lab) -> None:
    """`env --json` is one document with the gateway, the nodes and the ssh_config."""
    found = json.loads(cli("env", "--json", "--name", NAME).stdout)
    assert found["name"] == NAME
    assert found["driver"] == "docker"
    assert found["gateway_url"] == own.gateway.url
    assert [node["name"] for node in found["nodes"]] == ["node1.lab.test", "node2.lab.test"]
    assert Path(found["ssh_config"]).is_file()


def test_nothing_is_published_beyond_loopback(own: Lab, engine: Any) -> None:
    """Ports of the lab are bound on 127.0.0.1 alone."""
    for container in engine.containers.list(filters={"label": f"{LABEL}={NAME}"}):
        bindings = [each for found in container.ports.values() for each in found or []]
        assert bindings
        assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}


def test_ssh_passes_the_command_and_its_exit_code(own: Lab) -> None:
    """`lab ssh NODE -- CMD` prints what the command prints and ends as it ends."""
    result = cli("ssh", "--name", NAME, "node1", "--", "hostname; exit 7")
    assert (result.returncode, result.stdout) == (7, "node1.lab.test\n")
    assert cli("ssh", "--name", NAME, "node9").returncode == 3


def test_an_odd_node_is_what_it_was_asked_to_be(own: Lab) -> None:
    """A noisy csh login with an old python3 and no forwarding answers to SSH, and is not made twice."""
    options = {"sshd_options": ["AllowTcpForwarding no"], "shell": "csh", "noisy": True, "python": "none"}
    odd = own.add_node("odd", **options)  # type: ignore[arg-type]
    try:
        assert own.add_node("odd", **options).port == odd.port  # type: ignore[arg-type]
        said = ssh(own, "odd", "echo $shell")
        assert "noisy" in said.stdout
        assert said.stdout.endswith("/bin/tcsh\n")
        assert odd.exec(["sh", "-c", "command -v python3"]).exit_code != 0
        assert odd.exec(["/opt/kernel/bin/python", "-c", "import ipykernel"]).exit_code == 0
        assert "odd.lab.test" in own.gateway.exec(["cat", "/home/gateway/.ssh/known_hosts"]).stdout
    finally:
        odd.remove()
    assert "odd.lab.test" not in own.gateway.exec(["cat", "/home/gateway/.ssh/known_hosts"]).stdout


def test_an_untrusted_node_is_unknown_to_the_gateways(own: Lab) -> None:
    """A node whose host key the gateways must refuse is still known to the host side."""
    stranger = own.add_node("stranger", trusted=False)
    try:
        assert "stranger" not in own.gateway.exec(["cat", "/home/gateway/.ssh/known_hosts"]).stdout
        assert ssh(own, "stranger", "hostname").stdout == "stranger.lab.test\n"
    finally:
        stranger.remove()


READ_KEYS = """
import pathlib, sys
path = pathlib.Path("/home/gateway/.ssh/known_hosts")
expected = path.read_text()
print("reading", flush=True)
while not pathlib.Path("/tmp/enough").exists():
    if path.read_text() != expected:
        sys.exit("it was torn")
"""


def test_who_reads_a_gateways_keys_while_machines_come_and_go_sees_them_whole(own: Lab) -> None:
    """Known hosts are written anew for each machine that comes or goes, and there is no moment without them."""
    gateway = own.gateway
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(gateway.exec, ["timeout", "60", gateway.python, "-c", READ_KEYS], timeout=70)
        try:
            for _ in range(20):
                own.refresh()
        finally:
            gateway.exec(["touch", "/tmp/enough"]).check()
        assert reader.result(70).check().stdout == "reading\n"
    gateway.exec(["rm", "/tmp/enough"]).check()


def test_a_killed_gateway_comes_back_with_its_disk(own: Lab) -> None:
    """SIGKILL and start is a crash and a restart: files survive, HTTP answers when `start` returns."""
    gateway = own.add_gateway("second", env={"EG_MAX_KERNELS_PER_USER": "3"})
    try:
        gateway.exec(["touch", "/home/gateway/kept"]).check()
        gateway.kill()
        assert gateway.state == "stopped"
        gateway.start()
        gateway.exec(["test", "-e", "/home/gateway/kept"]).check()
        assert gateway.exec(["printenv", "EG_MAX_KERNELS_PER_USER"]).stdout == "3\n"
    finally:
        gateway.remove()


def test_down_leaves_nothing_and_touches_nothing_else(own: Lab, engine: Any) -> None:
    """`down` works from labels alone, spares a stranger's container, and is fine a second time."""
    name = f"{NAME}-x"
    foreign = engine.networks.create(f"{resource_name(name)}-foreign", labels={"owner": "somebody"})
    try:
        engine.networks.create(resource_name(name), labels={LABEL: name})
        image = engine.containers.get(resource_name(NAME, "node1")).image.id
        engine.containers.create(image, name=resource_name(name, "node1"), labels={LABEL: name})
        down(name)
        assert ids(engine, name) == {}
        assert not StateFolder(name).path.exists()
        with pytest.raises(LabNotFound):
            Lab.attach(name)
        down(name)
        foreign.reload()
        assert ids(engine), "another lab lost something"
    finally:
        try:
            foreign.remove()
        except docker.errors.NotFound:
            pytest.fail("a network that was not the lab's is gone")
