"""Whatever happens to a host, a kernel that lives there is never declared dead, and no line of its output is lost.

Each fault of the lab's catalogue that leaves processes alive, alone and with all SSH sessions killed on top of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import pytest_asyncio

from lab import Gateway, Node
from lab.faults import Fault, catalogue
from tests.integration.client import GatewayClient, Kernel, start_on
from tests.integration.faults import PrintingCell, kill_sessions, never_declared_dead

LEFT = ("connection:SSH from *", "file:/etc/passwd-*", "file:/etc/shadow-*")
"""What a node's sshd keeps of a connection whose end it was not told, and usermod of what it has changed."""
pytestmark = [pytest.mark.timeout(240), pytest.mark.lab(nodes=2, leaks=LEFT)]

Inflict = Callable[..., Fault]
LASTS = 8.0
"""Seconds that each fault lasts for: longer than it takes to lose a connection and to try to come back."""
BACK = 60.0
"""Seconds for the cell's output to go on once the fault is healed."""
BYSTANDER = 1.0
"""Seconds that a cell on another host may take meanwhile, on a machine whose two processors have all of the lab."""
ENDS_PROCESSES = {
    "kill": "ends all processes",
    "reboot": "ends all processes",
    "process-stopped": "is one of processes, by name: see test_faults",
    "process-killed": "is one of processes, by name: see test_faults",
    "clock-jump": "is one of processes, by name",
    "out-of-memory": "may end the kernel",
    "penalties": "needs an OpenSSH that the lab's nodes do not have",
}
"""Faults that are left out, and why."""
NO_CUT = ("pause", "out-of-pids", "sessions-killed")
"""Faults on top of which no session can be killed from inside, or that are the same."""
OPTIONS: dict[str, dict[str, Any]] = {
    "max-sessions": {"sessions": 0},
    "loss": {"percent": 30.0},
    "delay": {"milliseconds": 300.0, "jitter": 200.0},
    "bandwidth": {"kbit": 200.0},
    "force-command": {"mode": "refuse"},
    "python-old": {},
}
MATRIX = [
    pytest.param(name, cut, id=f"{name}{' and a cut' if cut else ''}")
    for name in sorted(kind.name for kind in catalogue() if kind.group != "spark")
    if name not in ENDS_PROCESSES
    for cut in (False, True)
    if not (cut and name in NO_CUT)
]


@pytest.fixture
def faulty(gateway_with: Callable[..., Gateway]) -> Gateway:
    """A gateway that notices a lost connection within seconds."""
    return gateway_with(env={"EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "2", "EG_DISTRIBUTED_KEEPALIVE_COUNT": "2"})


@pytest_asyncio.fixture
async def client(faulty: Gateway) -> AsyncIterator[GatewayClient]:
    async with GatewayClient(faulty.url) as opened:
        yield opened


@pytest.mark.usefixtures("own_network")
@pytest.mark.parametrize(("name", "cut"), MATRIX)
async def test_a_live_kernel_outlives_it(
    client: GatewayClient, nodes: Sequence[Node], fault: Inflict, name: str, cut: bool
) -> None:
    """A printing cell prints on, each line comes once and in order, and a kernel on another host answers all the while."""
    node = nodes[1]
    kernel, bystander = await start_on(client, node), await start_on(client, nodes[0])
    pid = await kernel.evaluate("__import__('os').getpid()")
    await bystander.evaluate("1")
    async with never_declared_dead(client, kernel):
        cell = await PrintingCell.begin(kernel, node)
        with fault(name, node, **OPTIONS.get(name, {})):
            if cut:
                await asyncio.to_thread(kill_sessions, node)
            worst = await worst_cell(bystander, LASTS)
        await cell.progress(BACK)
        assert await cell.complete(BACK) > 100
        assert await kernel.evaluate("__import__('os').getpid()") == pid
    print(f"a bystander's worst cell: {worst:.3f} s")
    assert worst < BYSTANDER


async def worst_cell(kernel: Kernel, seconds: float) -> float:
    """Run small cells for *seconds*; return how long the slowest one took."""
    worst, deadline = 0.0, time.monotonic() + seconds
    while (began := time.monotonic()) < deadline:
        assert (await kernel.execute("1")).status == "ok"
        worst = max(worst, time.monotonic() - began)
    return worst
