"""Gateways that end, by SIGKILL or in order: their kernels are found again, or found and ended, or end by themselves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lab import Gateway, Node
from lab.drivers.machines import ExecResult
from tests.integration.client import GatewayClient, Kernel, host_of, start_on
from tests.integration.conftest import NODES, MakeGateway
from tests.integration.looks import kernel_files, kernel_sockets, no_kernels_left, processes
from tests.until import MACHINE_SECONDS, until, until_in_thread

pytestmark = [pytest.mark.timeout(180), pytest.mark.lab(nodes=NODES)]

Nodes = Sequence[Node]

PERSISTENCE = (
    "--FileKernelSessionManager.enable_persistence=True",
    "--EnterpriseGatewayApp.availability_mode=standalone",
)
ClientOf = Callable[[Gateway], GatewayClient]


async def pid_of(kernel: Kernel) -> int:
    return int(await kernel.evaluate("__import__('os').getpid()"))


async def killed_and_started(gateway: Gateway) -> None:
    """SIGKILL the gateway, as the kernel does when memory is short, and start it again on the same disk."""
    await asyncio.to_thread(gateway.kill)
    await asyncio.to_thread(gateway.start)


def command(gateway: Gateway, *argv: str) -> ExecResult:
    """Run an operator's command where the gateway runs."""
    return gateway.exec([gateway.python, "-m", "eg_distributed", *argv])


def listed(gateway: Gateway, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command(gateway, "kernels", "--json", *options).check().stdout)["kernels"]
    return found


def left(nodes: Nodes) -> list[str]:
    """What kernels have left on the nodes: processes and files."""
    return [line for node in nodes for line in (*processes(node).values(), *kernel_files(node))]


# -- with Enterprise Gateway's persistence ---------------------------------------------------------------------------


async def test_a_gateway_does_not_wait_for_the_sockets_of_found_kernels(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Nodes
) -> None:
    """They are made once HTTP is served: a kernel whose folder can't be made at the gateway's start is found all the same."""
    gateway = extra_gateway("persistent", options=PERSISTENCE, env={"EG_DISTRIBUTED_ENDPOINTS": "ipc"})
    kernel = await start_on(GatewayClient(gateway.url), nodes[0])
    await kernel.disconnect()
    (folder,) = (path.rstrip("/") for path in kernel_sockets(gateway))
    gateway.exec(["sh", "-c", f"rm -r {folder} && touch {folder}"], user="root").check()
    await killed_and_started(gateway)
    client = client_of(gateway)
    assert [model["id"] for model in await client.list_kernels()] == [kernel.id]
    gateway.exec(["rm", folder], user="root").check()
    assert await client.attach(kernel.id, "python_distributed").evaluate("1") == 1


@pytest.mark.parametrize(
    ("kernelspec", "endpoints"),
    [("python_distributed", "ipc"), ("python_distributed_eg", "ipc"), ("python_distributed", "tcp")],
)
async def test_a_killed_gateway_finds_its_kernels_again(
    kernelspec: str, endpoints: str, extra_gateway: MakeGateway, client_of: ClientOf, nodes: Nodes
) -> None:
    """After SIGKILL and a start with persistence on, kernels answer with their variables; then all that is done to them works.

    However the gateway listens for them: on UNIX sockets or on loopback ports.
    """
    gateway = extra_gateway("persistent", options=PERSISTENCE, env={"EG_DISTRIBUTED_ENDPOINTS": endpoints})
    before = GatewayClient(gateway.url)
    started = [await start_on(before, node, kernelspec) for node in nodes[:2]]
    pids = []
    for number, kernel in enumerate(started):
        await kernel.execute(f"kept = {number}")
        pids.append(await pid_of(kernel))
        await kernel.disconnect()
    assert len(kernel_sockets(gateway)) == (2 if endpoints == "ipc" else 0)

    await killed_and_started(gateway)

    after = client_of(gateway)
    assert {model["id"] for model in await after.list_kernels()} == {kernel.id for kernel in started}
    found = [after.attach(kernel.id, kernelspec) for kernel in started]
    for number, kernel in enumerate(found):
        assert await kernel.evaluate("kept") == number
        assert await pid_of(kernel) == pids[number]

    first, second = found
    busy = await first.begin("print('on', flush=True)\nimport time\nwhile True: time.sleep(0.1)")
    await busy.printed("on")
    await first.interrupt()
    assert (await busy.result(20)).error == "KeyboardInterrupt"
    assert await first.evaluate("kept") == 0
    await second.restart()
    assert await host_of(second) == nodes[1].name
    assert await second.evaluate("'kept' in globals()") is False
    for kernel in found:
        await kernel.delete()
    await until_in_thread("nothing is left on the nodes", lambda: not left(nodes), seconds=10)


async def test_a_kernel_that_ended_while_its_gateway_was_down_is_not_taken_for_alive(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Nodes
) -> None:
    """A kernel that died meanwhile is forgotten (EG restarts only what a client is connected to), with all that it left."""
    node = nodes[0]
    gateway = extra_gateway("persistent", options=PERSISTENCE)
    before = GatewayClient(gateway.url)
    kernel = await start_on(before, node)
    pid = await pid_of(kernel)
    await kernel.disconnect()
    await asyncio.to_thread(gateway.kill)
    node.exec(["kill", "-KILL", str(pid)]).check()
    await until_in_thread("the kernel has ended", lambda: pid not in processes(node))
    await asyncio.to_thread(gateway.start)
    after = client_of(gateway)

    async def forgotten() -> bool:
        return await after.list_kernels() == []

    await until("the kernel is forgotten", forgotten, MACHINE_SECONDS, pause=0.1)
    await until_in_thread("nothing is left on the node", lambda: not left(nodes))


# -- without -----------------------------------------------------------------------------------------------------------


async def test_what_a_killed_gateway_leaves_is_listed_and_ended_by_command(
    extra_gateway: MakeGateway, client_of: ClientOf, nodes: Nodes
) -> None:
    """Without persistence the kernels of a killed gateway run on; `kernels --orphans` lists them and `end` ends them."""
    gateway = extra_gateway("forgetful")
    before = GatewayClient(gateway.url)
    orphans = [await start_on(before, node) for node in nodes[:2]]
    for kernel in orphans:
        await kernel.evaluate("1")
        await kernel.disconnect()
    assert listed(gateway, "--orphans") == []

    await killed_and_started(gateway)

    assert await client_of(gateway).list_kernels() == []
    alive = await start_on(client_of(gateway), nodes[0])
    await until_in_thread("both are orphans", lambda: len(listed(gateway, "--orphans")) == 2)
    found = {kernel["kernel"]: kernel for kernel in listed(gateway)}
    assert found.keys() == {alive.id, *(kernel.id for kernel in orphans)}
    assert found[alive.id]["claimed"]
    for kernel, node in zip(orphans, nodes, strict=False):
        assert found[kernel.id]["host"] == node.name
        assert found[kernel.id]["owner"].startswith(gateway.exec(["hostname"]).check().stdout.strip())
        assert kernel.id in command(gateway, "kernels").check().stdout
        command(gateway, "end", node.name, kernel.id).check()
    assert [kernel["kernel"] for kernel in listed(gateway)] == [alive.id]
    assert await alive.evaluate("1") == 1

    refused = command(gateway, "end", nodes[0].name, alive.id)
    assert refused.exit_code == 1
    assert "answers for" in refused.stderr
    await alive.delete()
    await until_in_thread("nothing is left on the nodes", lambda: not left(nodes), seconds=10)


async def test_orphans_end_by_themselves_when_their_owner_stays_away(extra_gateway: MakeGateway, nodes: Nodes) -> None:
    """A kernel whose gateway was killed runs on until the owner deadline, then ends and leaves nothing."""
    gateway = extra_gateway("brief", env={"EG_DISTRIBUTED_ORPHAN_TIMEOUT": "8"})
    node = nodes[1]
    client = GatewayClient(gateway.url)
    kernel = await start_on(client, node)
    pid = await pid_of(kernel)
    await kernel.disconnect()
    began = time.monotonic()  # before its end: the agent sees that while the engine still waits for the container's
    await asyncio.to_thread(gateway.kill)
    assert pid in processes(node)
    await no_kernels_left(node, 30)
    assert time.monotonic() - began >= 8
    await asyncio.to_thread(gateway.start)


# -- in order ------------------------------------------------------------------------------------------------------------


async def test_a_gateway_that_is_stopped_takes_its_kernels_along(extra_gateway: MakeGateway, nodes: Nodes) -> None:
    """A gateway that gets SIGTERM shuts its kernels down, busy ones too, and leaves nothing on the nodes."""
    gateway = extra_gateway("orderly")
    client = GatewayClient(gateway.url)
    kernels = [await start_on(client, node) for node in nodes[:3]]
    busy = await kernels[0].begin("print('on', flush=True)\nimport time\nwhile True: time.sleep(0.1)")
    await busy.printed("on")
    for kernel in kernels:
        await kernel.disconnect()
    await asyncio.to_thread(gateway.stop)
    if "exit_code" in gateway.inspect():  # a container's; the local driver's stop waits without killing
        assert gateway.inspect()["exit_code"] != 137, "it had to be killed"
    await until_in_thread("nothing is left on the nodes", lambda: not left(nodes), seconds=10)
    await asyncio.to_thread(gateway.start)
