"""A suite that needs SSH hosts, with SSHCluster: `uv run pytest examples/test_deploy.py`.

The program under test is the function `deploy`, which writes a file on a host by `ssh`. Put your own in its place.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from lab.faults import add
from lab.testcontainers import SSHCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[SSHCluster]:
    """Two SSH hosts. They are removed after the last test of this file, also if pytest is killed."""
    with SSHCluster(nodes=2) as started:
        yield started


def deploy(cluster: SSHCluster, host: str, text: str, seconds: float = 20) -> None:
    """Write *text* to the file `deployed` on *host*; raise CalledProcessError or TimeoutExpired if that fails."""
    command = ["ssh", "-F", str(cluster.get_ssh_config()), host, "cat > deployed"]
    subprocess.run(command, input=text, text=True, check=True, timeout=seconds)


def test_a_file_arrives_on_each_host(cluster: SSHCluster) -> None:
    """What was deployed can be read on each host."""
    for node in cluster.nodes:
        deploy(cluster, node.name, "version 2")
        read = subprocess.run(
            ["ssh", "-F", str(cluster.get_ssh_config()), node.name, "cat deployed"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        assert read.stdout == "version 2"


def test_a_host_that_hangs_is_an_error_and_not_a_wait(cluster: SSHCluster) -> None:
    """A deployment gives up on a host that has stopped answering, and works again when the host is back."""
    node = cluster.nodes[0]
    with add(cluster.lab, "pause", [node]), pytest.raises(subprocess.TimeoutExpired):
        deploy(cluster, node.name, "version 3", seconds=3)

    deploy(cluster, node.name, "version 3")


def test_a_changed_host_key_is_refused(cluster: SSHCluster) -> None:
    """A host that shows another key than the one on file gets nothing."""
    node = cluster.nodes[1]
    with add(cluster.lab, "host-key-changed", [node]), pytest.raises(subprocess.CalledProcessError):
        deploy(cluster, node.name, "secret")
