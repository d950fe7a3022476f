"""A host that does not answer: notebooks and `/api/kernels` say so, an interrupt is refused, and its kernels are not culled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import pytest_asyncio

from lab import Gateway, Node
from lab.faults import Fault
from tests.integration.client import GatewayClient, GatewayError, Kernel, start_on
from tests.until import until

pytestmark = [pytest.mark.timeout(180), pytest.mark.lab(nodes=2)]

Inflict = Callable[..., Fault]
TOLD_WITHIN = 5.0
"""Seconds until people are told that a host does not answer."""
LATE = 3.0
"""Seconds that the machine of the tests may take beyond that."""
IDLE, CULL_INTERVAL = 15, 1


@pytest.fixture
def culling(gateway_with: Callable[..., Gateway]) -> Gateway:
    """A gateway that ends kernels which nobody uses."""
    culler = "--RemoteMappingKernelManager"
    return gateway_with(
        options=(
            f"{culler}.cull_idle_timeout={IDLE}",
            f"{culler}.cull_interval={CULL_INTERVAL}",
            f"{culler}.cull_connected=True",
        ),
        env={"EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "2"},
    )


@pytest_asyncio.fixture
async def client(culling: Gateway) -> AsyncIterator[GatewayClient]:
    async with GatewayClient(culling.url) as opened:
        yield opened


async def test_a_host_that_does_not_answer_is_told_to_people(
    client: GatewayClient, nodes: Sequence[Node], fault: Inflict
) -> None:
    """The running cell and one that is sent meanwhile say so within seconds, and later that the host is back; both end well."""
    node = nodes[1]
    kernel = await start_on(client, node)
    running = await kernel.begin("import time\nprint('on', flush=True)\ntime.sleep(20)\n'over'")
    await running.printed("on")
    with fault("pause", node):
        await running.shows(f"{node.name} has not answered since ", timeout=TOLD_WITHIN + LATE)
        said = (await model(client, kernel))["distributed"]
        assert (said["host"], said["state"]) == (node.name, "unknown")
        assert said["since"]
        with pytest.raises(
            GatewayError, match=f"{node.name} has not answered since .* so the interrupt was not sent"
        ) as refused:
            await kernel.interrupt()
        assert refused.value.status == 503
        sent = await kernel.begin("'then'")
        await sent.shows("This cell runs once the host is back")
        assert len(running.partial.shown) == len(sent.partial.shown) == 1
    for cell, value in ((running, "'over'"), (sent, "'then'")):
        await cell.shows(" It is back, with your kernel.")
        assert (await cell.result()).text == value
        assert len(cell.partial.shown) == 1
    assert (await model(client, kernel))["distributed"] == {"host": node.name, "state": "alive"}


async def test_a_kernel_whose_host_does_not_answer_is_not_culled(
    client: GatewayClient, nodes: Sequence[Node], fault: Inflict
) -> None:
    """An idle kernel stays for as long as its host is silent, and gets its whole idle time anew when that is back."""
    node = nodes[1]
    kernel, beside = await start_on(client, node), await start_on(client, nodes[0])

    async def listed() -> set[str]:
        return {each["id"] for each in await client.list_kernels()}

    async def is_unknown() -> bool:
        return (await model(client, kernel))["distributed"]["state"] == "unknown"

    async def beside_is_culled() -> bool:
        return beside.id not in await listed()

    async def is_culled() -> bool:
        return kernel.id not in await listed()

    with fault("pause", node):
        await until("the host's silence is noticed", is_unknown)
        await until("the kernel beside it is culled", beside_is_culled)
        assert kernel.id in await listed()
    await until("the kernel is culled", is_culled)


async def model(client: GatewayClient, kernel: Kernel) -> dict[str, dict[str, str]]:
    """Return what `/api/kernels` says of *kernel*."""
    (found,) = [each for each in await client.list_kernels() if each["id"] == kernel.id]
    return found


JUST_STARTED = """
from types import SimpleNamespace
import eg_distributed.enterprise_gateway.proxy
from enterprise_gateway.services.kernels.remotemanager import RemoteMappingKernelManager

manager = RemoteMappingKernelManager.__new__(RemoteMappingKernelManager)
manager._kernels, manager._kernel_connections = {"1": SimpleNamespace(kernel_name="python")}, {}
print(manager.kernel_model("1")["execution_state"])
"""


def test_a_kernel_that_has_just_started_does_not_break_the_list(gateway: Gateway) -> None:
    """Between its entry in the list and its start's end Enterprise Gateway marks no activity; who asks then has no 500."""
    assert gateway.exec([gateway.python, "-c", JUST_STARTED]).check().stdout.split() == ["starting"]
