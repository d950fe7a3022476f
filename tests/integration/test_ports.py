"""Ports: nodes listen on 22 and gateways on their HTTP port, whatever kernels do; and what a deleted kernel leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence

import pytest

from lab import Gateway, Node
from lab.drivers.machines import Machine
from tests.integration.client import GatewayClient, host_of
from tests.integration.conftest import NODES
from tests.integration.faults import cut_ssh, reconnected
from tests.integration.looks import count_kernels, kernel_files, kernel_sockets, listening, processes, zombies
from tests.until import until_in_thread

pytestmark = [pytest.mark.timeout(180), pytest.mark.lab(nodes=NODES)]

Nodes = Sequence[Node]

HTTP = 8888
SSH = 22
RESPONSE_PORT = 8877
"""Where Enterprise Gateway's own proxies have every kernel of every node report to."""


class Seen:
    """The ports towards the network that were seen on each machine, over a while."""

    def __init__(self, machines: list[Machine]) -> None:
        self.ports: dict[str, set[int]] = {machine.name: set() for machine in machines}
        self.loopback: dict[str, set[int]] = {machine.name: set() for machine in machines}  # and on its loopback
        self.looks = 0
        self._machines = machines

    def look(self) -> None:
        """Look once at every machine."""
        for machine in self._machines:
            self.ports[machine.name] |= listening(machine)
            self.loopback[machine.name] |= listening(machine, loopback=True)
        self.looks += 1


@contextlib.asynccontextmanager
async def looking(*machines: Machine) -> AsyncIterator[Seen]:
    """Look at the machines' ports again and again, until the block ends and once more then."""
    seen = Seen(list(machines))

    async def look() -> None:
        while True:
            await asyncio.to_thread(seen.look)

    task = asyncio.create_task(look())
    try:
        yield seen
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await asyncio.to_thread(seen.look)


@pytest.mark.usefixtures("own_network")
async def test_nothing_listens_but_ssh_on_nodes_and_http_at_the_gateway(
    gateway: Gateway, client: GatewayClient, nodes: Nodes
) -> None:
    """While plain kernels start, run, ask, lose their connection, restart and end, no machine listens on another port.

    On its loopback the gateway listens on none at all, and a node on one for each ipykernel: what its cells' subprocesses print.
    """
    async with looking(gateway, *nodes) as seen:
        before = {node.name: listening(node, loopback=True) for node in nodes}
        kernels = await client.start_kernels(6)
        for kernel in kernels:
            assert await kernel.evaluate("6 * 7") == 42
        for node in nodes:
            assert len(listening(node, loopback=True) - before[node.name]) <= 2
        answering = await kernels[0].begin("print(input('who? ') * 100_000)", stdin=["ada"])
        host = await host_of(kernels[0])
        node = next(node for node in nodes if node.name == host)
        earlier = await asyncio.to_thread(cut_ssh, node, gateway)
        await reconnected(node, gateway, earlier)
        assert len((await answering.result(60)).stdout) == 300_001
        await asyncio.gather(*(kernel.restart() for kernel in kernels[:3]))
        for kernel in kernels:
            assert await kernel.evaluate("6 * 7") == 42
        await asyncio.gather(*(kernel.delete() for kernel in kernels))
        await until_in_thread("the kernels have ended", lambda: not sum(count_kernels(nodes).values()))
    assert seen.looks >= 3
    assert seen.ports == {gateway.name: {HTTP}, **{node.name: {SSH} for node in nodes}}
    assert seen.loopback[gateway.name] == set(), "channels are UNIX sockets, there is nothing to listen for"


async def test_a_plain_kernel_offers_its_channels_on_no_port_not_even_on_loopback(
    client: GatewayClient, nodes: Nodes
) -> None:
    """A Python kernel's channels are UNIX sockets in a folder of its user alone; its connection file is private as well."""
    node = nodes[0]
    kernel = await client.start_kernel(env={"KERNEL_REMOTE_HOST": node.name})
    path = await kernel.evaluate("__import__('ipykernel.connect').connect.get_connection_file()")
    info = json.loads(node.exec(["cat", path]).check().stdout)
    assert info["transport"] == "ipc"
    modes = node.exec(["stat", "-c", "%a", path, path.rpartition("/")[0]]).check().stdout.split()
    assert modes == ["600", "700"]


@pytest.mark.parametrize("spec", ["python_distributed", "python_distributed_eg"])
async def test_nothing_is_left_after_shutdown(gateway: Gateway, client: GatewayClient, nodes: Nodes, spec: str) -> None:
    """After a kernel is deleted no process, zombie, file, socket and count of it is left, at the gateway or on its node."""
    files = {node.name: temporary_files(node) for node in (*nodes, gateway)}
    undead = {node.name: zombies(node) for node in nodes}
    kernels = await client.start_kernels(6, spec)
    for kernel in kernels:
        await kernel.execute("import subprocess; children = [subprocess.Popen(['sleep', '1000']) for _ in range(2)]")
    assert sum(count_kernels(nodes).values()) == 6
    for kernel in kernels:
        await kernel.delete()

    def left() -> list[str]:
        found = [f"{gateway.name}: {path}" for path in kernel_sockets(gateway)]
        for node in nodes:
            found += [f"{node.name}: {line}" for line in (*processes(node).values(), *kernel_files(node))]
        for machine in (*nodes, gateway):
            found += [f"{machine.name}: {path}" for path in temporary_files(machine) - files[machine.name]]
        return found

    await until_in_thread("nothing is left", lambda: not left())
    await until_in_thread("no zombie is left", lambda: all(zombies(node) <= undead[node.name] for node in nodes))
    # Of its own nodes alone: on the others, another worker's kernels run.
    hosts = ",".join(node.name for node in nodes)
    argv = [gateway.python, "-m", "eg_distributed", "kernels", "--json", "--hosts", hosts]
    assert json.loads(gateway.exec(argv).check().stdout)["kernels"] == [], "what balancing counts"
    assert await client.list_kernels() == []


def temporary_files(machine: Machine) -> set[str]:
    """Return the files in the places where kernels and their launchers put some."""
    script = "find /tmp /run/user /dev/shm ~/.local/share/jupyter ~/.ipython -type f -o -type s 2>/dev/null; true"
    found = machine.exec(["sh", "-c", script]).stdout.splitlines()
    # IPython's own history and start-up files outlive kernels on purpose.
    return {path for path in found if "/.ipython/" not in path}


@pytest.mark.usefixtures("own_network")
async def test_a_launcher_of_enterprise_gateway_opens_ports_of_its_own_but_the_gateway_none(
    gateway: Gateway, client: GatewayClient, nodes: Nodes
) -> None:
    """EG's own launcher, run unchanged, binds its channels and its signal port on all addresses of its node.

    That is the launcher's doing and the reason to prefer plain kernelspecs. What we add is nothing: the gateway opens no
    port for the launcher's answer, which the launcher gives to the agent on its own node.
    """
    node = nodes[2]
    async with looking(gateway, node) as seen:
        kernel = await client.start_kernel("python_distributed_eg", {"KERNEL_REMOTE_HOST": node.name})
        assert await kernel.evaluate("6 * 7") == 42
        opened = listening(node) - {SSH}
        await kernel.delete()
        await until_in_thread("the kernel has ended", lambda: not processes(node))
    assert seen.ports[gateway.name] == {HTTP}
    assert RESPONSE_PORT not in seen.ports[gateway.name] | seen.loopback[gateway.name]
    assert len(opened) in {5, 6}, f"five channels, and the signal port unless the agent has closed it, not {opened}"
    assert listening(node) == {SSH}
