"""Three gateways on one host set that share their sessions: the one that is asked for a kernel has it, and no other one."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

import pytest
import pytest_asyncio

from lab import Gateway, Lab, Node
from tests.integration.client import GatewayClient, Kernel, start_on
from tests.integration.conftest import NODES, ClientOf, MakeGateway
from tests.integration.test_output_kept import MISSING
from tests.integration.test_persistence import listed, pid_of
from tests.sessions import Cell, Tab
from tests.until import MACHINE_SECONDS, until, until_in_thread

pytestmark = [pytest.mark.timeout(240), pytest.mark.lab(nodes=NODES)]

REPLICATION = (
    "--FileKernelSessionManager.enable_persistence=True",
    "--EnterpriseGatewayApp.availability_mode=replication",
)
ORPHANS_END_AFTER = 12
FAILOVER_SECONDS = 5.0
DELETE_SESSION = """
import os, sys
from enterprise_gateway.services.sessions.kernelsessionmanager import FileKernelSessionManager
from eg_distributed.enterprise_gateway import proxy, taken
taken.identity = "replica1.lab.test:8888"
sessions = FileKernelSessionManager(None, enable_persistence=True, persistence_root=sys.argv[1])
sessions.delete_session(sys.argv[2])
print(os.path.exists(f"{sys.argv[1]}/kernel_sessions/{sys.argv[2]}.json"))
"""
PRINTING = """
import time
for number in range(1_000_000):
    print(number, flush=True)
    time.sleep(0.01)
"""


@pytest_asyncio.fixture
async def gateways(lab: Lab, extra_gateway: MakeGateway) -> list[Gateway]:
    """Three gateways that share a folder with their sessions."""
    if lab.driver == "local":
        pytest.skip("gateways of a local lab have no folder in common")
    env = {
        "EG_PERSISTENCE_ROOT": f"/shared/{uuid.uuid4().hex}",
        "EG_DISTRIBUTED_ORPHAN_TIMEOUT": str(ORPHANS_END_AFTER),
    }
    made = await asyncio.gather(
        *(
            asyncio.to_thread(extra_gateway, f"replica{number}", options=REPLICATION, env=env, shares=True)
            for number in range(3)
        )
    )

    async def use(gateway: Gateway) -> None:
        client = GatewayClient(gateway.url)
        await client.start_kernel()
        await client.close()

    await asyncio.gather(*map(use, made))  # one that has served nobody yet has half of itself still to import
    return made


async def begun(gateway: Gateway, kernel: Kernel) -> tuple[Tab, Cell]:
    """Return a client of *gateway* whose cell prints and prints."""
    tab = Tab(gateway, kernel)
    await tab.connect(gateway)
    cell = await tab.run(PRINTING)
    await cell.reached(50)
    return tab, cell


async def gone_on(tab: Tab, cell: Cell, gateway: Gateway) -> float:
    """Have *tab* come back by *gateway* once it has lost its connection; return when its cell's next line was there."""
    await tab.lost_connection()
    came = len(cell.numbers)
    await tab.connect(gateway)
    await until("the cell's output goes on", lambda: len(cell.numbers) > came, MACHINE_SECONDS)
    return time.monotonic()


async def had_by(*gateways: Gateway) -> dict[str, list[str]]:
    """Return by which of *gateways* each kernel is listed."""
    found: dict[str, list[str]] = {}
    for gateway in gateways:
        client = GatewayClient(gateway.url)
        for model in await client.list_kernels():
            found.setdefault(model["id"], []).append(gateway.name)
        await client.close()
    return found


def assert_whole(tab: Tab, cell: Cell) -> None:
    """Assert that no line of *cell* is lost: lines that could not be confirmed before a hand-over may come again after it."""
    assert sorted(set(cell.numbers)) == list(range(max(cell.numbers) + 1))
    back = [before - after for before, after in zip(cell.numbers, cell.numbers[1:], strict=False) if after <= before]
    assert len(back) <= 8
    assert MISSING not in tab.told


async def test_kernels_of_a_killed_gateway_go_on_through_the_others(
    gateways: Sequence[Gateway], client_of: ClientOf, nodes: Sequence[Node]
) -> None:
    """SIGKILL under load: each kernel that is asked for goes on by another gateway within seconds, without a line lost; the one
    that is not ends by its deadline. Each is one gateway's at any time: who comes back, or stood still, is told who has it."""
    one, two, three = gateways
    client = GatewayClient(one.url)
    kernels = [await start_on(client, node) for node in nodes]
    unasked = await start_on(client, nodes[0])
    pids = [await pid_of(kernel) for kernel in kernels]
    for kernel in kernels:
        await kernel.disconnect()
    tabs = [await begun(one, kernel) for kernel in kernels]
    began = time.monotonic()
    killing = asyncio.ensure_future(asyncio.to_thread(one.kill))
    came = await asyncio.gather(*(gone_on(*tab, gateway) for tab, gateway in zip(tabs, (two, three, two), strict=True)))
    await killing
    print("seconds until each went on:", [round(each - began, 2) for each in came])
    assert max(came) - began < FAILOVER_SECONDS
    ours = {kernel.id for kernel in kernels}
    owners = {kernel.id: [name.name] for kernel, name in zip(kernels, (two, three, two), strict=True)}
    assert await had_by(two, three) == owners
    counted = {each["kernel"]: each["claimed"] for each in listed(two)}
    assert counted == {**dict.fromkeys(ours, True), unasked.id: False}

    # One comes back as another process, and is asked for what the second has: that one lets go, and says so.
    await asyncio.to_thread(one.start)
    assert await had_by(one) == {}
    first = client_of(one).attach(kernels[0].id)
    assert await first.model()
    await gone_on(*tabs[0], one)
    assert await had_by(one, two, three) == {**owners, kernels[0].id: [one.name]}
    assert f"This kernel is at gateway {one.name}" in tabs[0][0].told
    assert f"kernel {kernels[0].id}: it is at gateway {one.name}" in two.logs()

    # One that stood still while its kernel was taken over hears of it as soon as it goes on.
    await asyncio.to_thread(two.pause)
    last = client_of(three).attach(kernels[2].id)
    assert await last.model()
    await asyncio.to_thread(two.resume)
    await gone_on(*tabs[2], three)
    assert await had_by(one, two, three) == {**owners, kernels[0].id: [one.name], kernels[2].id: [three.name]}

    # Two clients that want the same kernel at two gateways take it from each other.
    rival = Tab(one, kernels[1])
    for _ in range(4):
        await rival.connect(one)
        await gone_on(*tabs[1], three)
        await rival.lost_connection()
    assert await had_by(one, two, three) == {
        kernels[0].id: [one.name],
        kernels[1].id: [three.name],
        kernels[2].id: [three.name],
    }

    # One that is stopped before it has heard of it would delete the session of a kernel that another one has.
    root = two.spec.env["EG_PERSISTENCE_ROOT"]
    deleting = two.exec([two.python, "-c", DELETE_SESSION, root, kernels[2].id])
    assert (deleting.exit_code, deleting.stdout) == (0, "True\n"), deleting.stderr

    await until_in_thread(
        "the kernel that nobody asked for has ended", lambda: {each["kernel"] for each in listed(three)} == ours, 30
    )
    found = [first, client_of(three).attach(kernels[1].id), last]
    for kernel, pid, (tab, cell) in zip(found, pids, tabs, strict=True):
        await kernel.interrupt()
        await cell.ended()
        assert_whole(tab, cell)
        assert await pid_of(kernel) == pid
        await tab.close()
