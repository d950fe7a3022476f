"""Whatever happens to a host, a kernel that lives there is never declared dead, and no line of its output is lost.

Each fault of the lab's catalogue that leaves the kernel alive, alone and with all SSH sessions killed on top of it; those of one
process, for each process that is no kernel; and those that all hosts have at once.

A bystander is a kernel on another host, whose cells the same gateway carries. How late one of them may be is not a matter of the
clock alone: a lab has all its machines on two processors, and what else these do makes any cell late. So a second gateway,
which knows nothing of the faulty host, carries the cells of a control on the bystander's host in the same seconds. What the
machine does meets both alike; what the fault does to others meets the bystander alone, and does so each time that it is
inflicted. In one of TRIES the bystander's slowest cell may be later than the control's by MARGIN, or, where the machine is so
busy that the control's is later than that itself, by as much again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio

from lab import Gateway, Node
from lab.faults import Fault, catalogue
from tests.integration.client import GatewayClient, Kernel, host_of, start_on
from tests.integration.faults import PrintingCell, kill_sessions, never_declared_dead, sessions
from tests.integration.looks import agents
from tests.until import until_in_thread

LEFT = ("connection:SSH from *", "file:/etc/passwd-*", "file:/etc/shadow-*")
"""What a node's sshd keeps of a connection whose end it was not told, and usermod of what it has changed."""
pytestmark = [pytest.mark.timeout(240), pytest.mark.lab(nodes=2, leaks=LEFT)]

Inflict = Callable[..., Fault]
LASTS = 8.0
"""Seconds that each fault lasts for: longer than it takes to lose a connection and to try to come back."""
BACK = 60.0
"""Seconds for the cell's output to go on once the fault is healed."""
MARGIN = 0.1
"""Seconds that a bystander's slowest cell may be later than the control's."""
PACE = 0.05
"""Seconds from one such cell to the next: whatever holds a gateway up for MARGIN meets one, and cells alone are no load."""
TRIES = 3

LEFT_OUT = {
    "kill": "ends all processes",
    "reboot": "ends all processes",
    "process-stopped": "is one of processes: see ONE_PROCESS",
    "process-killed": "is one of processes: see ONE_PROCESS",
    "clock-jump": "is one of processes: see ONE_PROCESS",
    "out-of-memory": "may end the kernel",
    "penalties": "needs an OpenSSH that the lab's nodes do not have",
}
"""Faults of which the catalogue alone makes no row, and why."""
NO_CUT = ("pause", "out-of-pids", "sessions-killed", "process-stopped: a session")
"""Rows on top of which no session can be killed from inside, or that are the same."""
OPTIONS: dict[str, dict[str, Any]] = {
    "max-sessions": {"sessions": 0},
    "loss": {"percent": 30.0},
    "delay": {"milliseconds": 300.0, "jitter": 200.0},
    "bandwidth": {"kbit": 200.0},
    "force-command": {"mode": "refuse"},
}
QUICK = ("folder-removed and a cut", "hung-mount and a cut")
"""Rows of `nox -s integration`, which no other test there is like; `nox -s matrix` has all."""


# -- rows --------------------------------------------------------------------------------------------------------------


def of_agent(node: Node) -> str:
    """Return the pid of the agent on *node*."""
    (pid,) = agents(node)
    return str(pid)


def of_sshd(node: Node, shown: str) -> str:
    """Return the pid of the newest sshd on *node* that has *shown* in what it shows as its command line."""
    lines = node.exec(["ps", "-eo", "pid=,args=", "--sort=start_time"], user="root").check().stdout.splitlines()
    return [pid for pid, args in (line.split(None, 1) for line in lines) if "sshd" in args and shown in args][-1]


@dataclass(frozen=True)
class Row:
    """A fault, its options, the process that it is of, and whether the gateway's machine has it.

    *told*: lines may be missing where the notebook says so in these words.
    """

    fault: str
    options: Mapping[str, Any] = field(default_factory=dict)
    process: Callable[[Node], str] | None = None
    at_gateway: bool = False
    told: str = ""


def listener(node: Node) -> str:
    """Return the pid of the sshd that listens."""
    return of_sshd(node, "[listener]")


def session(node: Node) -> str:
    """Return the pid of a session's sshd, of the half that carries its channels."""
    return of_sshd(node, "@notty")


ONE_PROCESS = {
    "process-stopped: the agent": Row("process-stopped", process=of_agent),
    "process-stopped: a session": Row("process-stopped", process=session),
    "process-killed: the agent": Row("process-killed", process=of_agent, told="Output may be missing here"),
    "process-killed: sshd": Row("process-killed", process=listener),
    "clock-jump: the agent, ahead": Row("clock-jump", {"seconds": 90_000}, of_agent),
    "clock-jump: the agent, behind": Row("clock-jump", {"seconds": -90_000}, of_agent),
}
"""Faults of one process; 90,000 s are more than any deadline that an agent knows."""
OTHERS = {
    "disk-full: tmp": Row("disk-full", {"path": "tmp"}),
    "sshd-out-of-fds: sessions": Row("sshd-out-of-fds", {"of": "sessions"}),
    "slow-dns: no answer": Row("slow-dns", {"milliseconds": 60_000}),
    "slow-dns: no answer to the gateway": Row("slow-dns", {"milliseconds": 60_000}, at_gateway=True),
}
"""Faults with options that make others of them."""
PLAIN = {
    kind.name: Row(kind.name, OPTIONS.get(kind.name, {}))
    for kind in catalogue()
    if kind.group != "spark" and kind.name not in LEFT_OUT
}
MATRIX = [
    pytest.param(row, cut, id=name, marks=() if name in QUICK else pytest.mark.long)
    for known, row in sorted({**PLAIN, **ONE_PROCESS, **OTHERS}.items())
    for cut in (False, True)
    if not (cut and known in NO_CUT)
    for name in [f"{known}{' and a cut' if cut else ''}"]
]


# -- gateways ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(gateway_with: Callable[..., Gateway]) -> Gateway:
    """A gateway that notices a lost connection within seconds."""
    return gateway_with(env={"EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "2", "EG_DISTRIBUTED_KEEPALIVE_COUNT": "2"})


@pytest_asyncio.fixture
async def client(faulty: Gateway) -> AsyncIterator[GatewayClient]:
    async with GatewayClient(faulty.url) as opened:
        yield opened


@pytest_asyncio.fixture
async def control(gateway: Gateway, nodes: Sequence[Node]) -> AsyncIterator[Kernel]:
    """A kernel on the bystander's host, by a gateway that is connected to no other."""
    async with GatewayClient(gateway.url) as opened:
        found = await start_on(opened, nodes[0])
        await found.evaluate("1")
        yield found


# -- the matrix --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_network")
@pytest.mark.parametrize(("row", "cut"), MATRIX)
async def test_a_live_kernel_outlives_it(
    client: GatewayClient, faulty: Gateway, control: Kernel, nodes: Sequence[Node], fault: Inflict, row: Row, cut: bool
) -> None:
    """A printing cell prints on, each line comes once and in order, newcomers get in, and other hosts' cells aren't late."""
    node = nodes[1]
    kernel, bystander = await start_on(client, node), await start_on(client, nodes[0])
    pid = await kernel.evaluate("__import__('os').getpid()")
    await bystander.evaluate("1")
    late: list[tuple[float, float]] = []
    coming: list[asyncio.Task[None]] = []
    async with never_declared_dead(client, kernel):
        cell = await PrintingCell.begin(kernel, node)
        while not late or (not any(map(is_in_time, late)) and len(late) < TRIES):
            options = {**row.options, **({"process": row.process(node)} if row.process else {})}
            with fault(row.fault, faulty if row.at_gateway else node, **options):
                if cut:
                    await until_in_thread(f"there is a session on {node.name}", lambda: sessions(node))
                    await asyncio.to_thread(kill_sessions, node)
                coming.append(asyncio.create_task(comes(kernel)))
                worst, calm = await asyncio.gather(worst_cell(bystander, LASTS), worst_cell(control, LASTS))
            print(f"a bystander's worst cell: {worst:.3f} s, the control's: {calm:.3f} s")
            late.append((worst, calm))
            began = time.monotonic()
            await cell.progress(BACK)
            print(f"its output went on {time.monotonic() - began:.1f} s after it was healed")
        assert await cell.complete(BACK, told=row.told) > 100
        assert await kernel.evaluate("__import__('os').getpid()") == pid
        await asyncio.gather(*coming)
    # What starts from now on has what the newest login has, and that may be one under the fault.
    if await asyncio.to_thread(sessions, node):
        await asyncio.to_thread(kill_sessions, node)
    assert any(map(is_in_time, late)), late


async def comes(kernel: Kernel) -> None:
    """Connect to *kernel* as another client, and wait for its answer, which comes when no cell runs there any more."""
    newcomer = Kernel(kernel.client, kernel.id, kernel.kernelspec)
    try:
        await newcomer.connect(TRIES * (LASTS + BACK) + BACK)
    finally:
        await newcomer.disconnect()


def is_in_time(slowest: tuple[float, float]) -> bool:
    """Return True if the bystander's slowest cell was not late, beside the control's."""
    worst, calm = slowest
    return worst - calm <= max(MARGIN, calm)


async def worst_cell(kernel: Kernel, seconds: float) -> float:
    """Run a small cell each PACE for *seconds*; return how long the slowest one took."""
    worst, deadline = 0.0, time.monotonic() + seconds
    while (began := time.monotonic()) < deadline:
        assert (await kernel.execute("1")).status == "ok"
        worst = max(worst, time.monotonic() - began)
        await asyncio.sleep(max(0.0, began + PACE - time.monotonic()))
    return worst


# -- all hosts at once -------------------------------------------------------------------------------------------------

GIVEN_UP = 10.0
"""Seconds after which a host's kernels are given up while another host is reached: more than hosts come back apart."""
OUTAGE = 15.0
"""Seconds without any host: more than that."""
SITE = [
    pytest.param("partition", False, id="the uplink"),
    pytest.param("pause", False, id="all hang", marks=pytest.mark.long),
    pytest.param("sshd-stopped", True, id="no sshd and a cut", marks=pytest.mark.long),
]


@pytest.mark.usefixtures("own_network")
@pytest.mark.parametrize(("name", "cut"), SITE)
async def test_kernels_outlive_what_all_hosts_have(
    gateway_with: Callable[..., Gateway], nodes: Sequence[Node], fault: Inflict, name: str, cut: bool
) -> None:
    """No host is reached for longer than one may be away: no kernel is given up, each goes on on its host, no line is lost."""
    keepalive = {"EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "2", "EG_DISTRIBUTED_KEEPALIVE_COUNT": "2"}
    lost = {"EG_DISTRIBUTED_HOST_LOST_POLICY": "restart-elsewhere", "EG_DISTRIBUTED_HOST_LOST_AFTER": f"{GIVEN_UP:g}"}
    gateway = gateway_with(env={**keepalive, **lost})
    async with GatewayClient(gateway.url) as client:
        kernels = await client.start_kernels(4)
        hosts = [await host_of(kernel) for kernel in kernels]
        assert set(hosts) == {node.name for node in nodes}
        at = {node.name: node for node in nodes}
        cells = [await PrintingCell.begin(kernel, at[host]) for kernel, host in zip(kernels, hosts, strict=True)]
        with fault(name, *nodes, **({"peers": gateway.name} if name == "partition" else {})):
            if cut:
                for node in nodes:
                    await asyncio.to_thread(kill_sessions, node)
            slowest, deadline = 0.0, time.monotonic() + OUTAGE
            while (began := time.monotonic()) < deadline:
                assert {model["id"] for model in await client.list_kernels()} == {kernel.id for kernel in kernels}
                slowest = max(slowest, time.monotonic() - began)
                await asyncio.sleep(max(0.0, began + PACE - time.monotonic()))
        print(f"the gateway's slowest answer meanwhile: {slowest:.3f} s")
        for cell in cells:
            await cell.progress(BACK)
            assert await cell.complete(BACK) > 100
        assert [await host_of(kernel) for kernel in kernels] == hosts
        assert not {"restarting", "autorestarting", "dead"} & {state for kernel in kernels for state in kernel.states}
