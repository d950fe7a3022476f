"""The operator's commands where a gateway runs, on OpenSSH's own servers: `logs`, `doctor`; and logins that get in the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lab import Gateway, Node
from lab.drivers.machines import ExecResult
from lab.faults import Fault
from tests.integration.client import GatewayClient, GatewayError, Kernel, host_of, start_on
from tests.integration.conftest import ClientOf, MakeGateway, MakeNode
from tests.integration.kernelspecs import plain, script

pytestmark = [pytest.mark.timeout(180), pytest.mark.lab(nodes=2)]

Nodes = Sequence[Node]
Inflict = Callable[..., Fault]


def command(gateway: Gateway, *argv: str) -> ExecResult:
    """Run an operator's command where the gateway runs."""
    return gateway.exec([gateway.python, "-m", "eg_distributed", *argv], timeout=90)


async def printed(kernel: Kernel, text: str) -> None:
    """Have *kernel* print to its log, past ipykernel."""
    await kernel.execute(f"import os\nos.write(2, {text.encode()!r})")


# -- logs ------------------------------------------------------------------------------------------------------------


async def test_a_log_is_printed_by_the_kernels_id_before_and_after_its_end(
    gateway: Gateway, client: GatewayClient, nodes: Nodes
) -> None:
    """No host has to be named; after a restart the log of the start before is there, and after the end the last one."""
    kernel = await start_on(client, nodes[1])
    await printed(kernel, "the first words\n")
    found = await asyncio.to_thread(command, gateway, "logs", kernel.id[:8])
    assert "the first words" in found.check().stdout
    await kernel.restart()
    await printed(kernel, "the second words\n")
    previous = await asyncio.to_thread(command, gateway, "logs", "--previous", kernel.id)
    assert "the first words" in previous.check().stdout
    await kernel.delete()
    last = (await asyncio.to_thread(command, gateway, "logs", kernel.id)).check()
    assert "the second words" in last.stdout
    assert f"kernel {kernel.id} on {nodes[1].name} " in last.stderr


async def test_following_a_log_ends_with_the_kernel(gateway: Gateway, client: GatewayClient, nodes: Nodes) -> None:
    """`--follow` prints what comes until the kernel is deleted."""
    kernel = await start_on(client, nodes[0])
    following = asyncio.ensure_future(asyncio.to_thread(command, gateway, "logs", "--follow", kernel.id))
    await printed(kernel, "while it is followed\n")
    await kernel.delete()
    found = (await asyncio.wait_for(following, 60)).check()
    assert "while it is followed" in found.stdout


async def test_a_start_that_failed_names_the_command_for_its_log(
    extra_gateway: MakeGateway, client_of: ClientOf, names: tuple[str, ...]
) -> None:
    """The gateway's answer has the command, and the command prints all that the kernel said."""
    gateway = extra_gateway("failing")
    spec = {**plain(gateway), "argv": script("seq 1 2000; echo no licence >&2; exit 3")}
    gateway.add_kernelspec("failing", spec)
    with pytest.raises(GatewayError, match="exited with code 3") as failed:
        await client_of(gateway).start_kernel("failing")
    named = failed.value.reason.split("`")[1].split()
    assert named[:3] == ["jupyter", "distributed", "logs"]
    found = (await asyncio.to_thread(command, gateway, *named[2:])).check()
    assert found.stdout.splitlines()[0] == "1"
    assert found.stdout.splitlines()[-1] == "no licence"
    assert "exited with code 3" in found.stderr


# -- doctor ----------------------------------------------------------------------------------------------------------


def examined(gateway: Gateway, *hosts: str) -> dict[str, dict[str, Any]]:
    """Return what the doctor found, by host."""
    found = json.loads(command(gateway, "doctor", "--json", *hosts).stdout)["hosts"]
    return {host["host"]: host for host in found}


def test_hosts_that_are_well_pass_every_step(gateway: Gateway, names: tuple[str, ...]) -> None:
    """All of the gateway's hosts are examined where none is named; nothing is to be mended."""
    found = examined(gateway)
    assert set(names) <= set(found)
    for name in names:
        assert (found[name]["usable"], found[name]["mend"]) == (True, ""), found[name]
        said = {step["name"]: step["said"] for step in found[name]["steps"]}
        assert said["banner"].startswith("SSH-2.0-OpenSSH")
        assert said["key"].startswith("trusted: ssh-ed25519 SHA256:")
        assert said["kernel"] == "one was started and ended"


@pytest.mark.parametrize(
    ("kind", "options", "step"),
    [
        ("refuse", {}, "tcp"),
        ("key-removed", {}, "login"),
        ("python-old", {"version": "2.7"}, "shell"),
        ("force-command", {"mode": "refuse"}, "shell"),
    ],
)
def test_the_step_that_fails_is_the_faults_own(
    gateway: Gateway, nodes: Nodes, fault: Inflict, kind: str, options: dict[str, Any], step: str
) -> None:
    """What is well before the fault is said to be well, and the first thing to mend is the fault."""
    with fault(kind, nodes[0], **options):
        found = examined(gateway, nodes[0].name)[nodes[0].name]
    assert not found["usable"]
    assert found["steps"][-1]["name"] == step, found
    assert found["mend"].startswith(f"{step}: ")


# -- start-up files --------------------------------------------------------------------------------------------------


def start_up(node: Node, text: str) -> None:
    """Make *text* all that bash reads at a login of *node*."""
    code = f"import pathlib; pathlib.Path.home().joinpath('.bashrc').write_text({text!r})"
    node.exec(["python3", "-c", code]).check()


async def test_start_up_files_that_get_in_the_way(
    extra_node: MakeNode, extra_gateway: MakeGateway, client_of: ClientOf
) -> None:
    """A question or a megabyte of noise costs nothing; what replaces the command or ends in silence is said."""
    node = extra_node("startup")
    asking, noisy = (extra_gateway(name, hosts=[node.name]) for name in ("asking", "noisy"))
    for text, said in (
        ("exec cat\n", "start-up files replace the command by another program"),
        ("exec bash\n", "start-up files replace the command by another program"),
        ('[ -z "$PS1" ] && exit 1\n', "the login ended with code 1 without a word"),
    ):
        await asyncio.to_thread(start_up, node, text)
        with pytest.raises(GatewayError, match=said):
            await client_of(asking).start_kernel()
    for gateway, text in (
        (asking, "read -p 'name? ' name\nread password\n"),
        (noisy, "head -c 1000000 /dev/urandom\n"),
    ):
        await asyncio.to_thread(start_up, node, text)
        assert await host_of(await client_of(gateway).start_kernel()) == node.name
