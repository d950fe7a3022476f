"""Measure our proxy beside Enterprise Gateway's own in detail, in one run on one lab: `nox -s "bench(gateway)"`.

Each way has a gateway of its own (the stock proxy slows the whole gateway that it was used in), on the same nodes, with the same
kernel. Prints a table, and keeps the figures as JSON and, with --docs, as a page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import this_machine, today
from lab import Gateway, Lab
from lab.drivers.machines import Machine
from tests.integration.client import ChannelsClosed, GatewayClient, GatewayError, Kernel

LOCAL = Path(__file__).with_name("local_kernel.py")
STARTS, AT_ONCE, INTERRUPTS, RESTARTS = 10, 32, 5, 5
ROUNDS, CELLS = 6, 50
"""Cells of the remote kernel and of a local one, in turns, so that what else the machine does falls on both."""
HUNG_SECONDS = 20.0


@dataclass
class Way:
    """One way to run the same kernel: a label, its kernelspec, and one like it with a wrong interpreter."""

    label: str
    kernelspec: str
    broken: str
    complaint: str
    """What the error about the wrong interpreter has to say, for its time to count."""
    figures: dict[str, float | None] = field(default_factory=dict)


WAYS = (
    Way("eg_distributed, plain kernelspec", "python_distributed", "broken_plain", "/nowhere/python"),
    Way("eg_distributed, EG's launcher", "python_distributed_eg", "broken_launcher", "/nowhere/python"),
    Way("EG's own proxy and launcher", "python_distributed_stock", "broken_stock", "Waited too long"),
)
ROWS = (
    ("start", "start → kernel_info_reply, one at a time (ms, median)"),
    ("start_first", "the gateway's first start on a host, login and agent included (ms)"),
    ("start_32_median", "32 starts at once: median of a start (ms)"),
    ("start_32_wall", "32 starts at once: wall time (ms)"),
    ("start_32_cpu_nodes", "32 starts at once: CPU of the nodes (s)"),
    ("start_32_cpu_gateway", "32 starts at once: CPU of the gateway (s)"),
    ("start_32_failed", "32 starts at once: failed"),
    ("cell", "cell `1`, round trip (ms, median)"),
    ("cell_p95", "cell `1`, round trip (ms, 95th percentile)"),
    ("cell_local", "the same of a local kernel of that gateway, no SSH (ms, median)"),
    ("cell_gateway_cpu", "CPU of the gateway's machine for a cell (ms)"),
    ("cell_node_cpu", "CPU of the kernel's node for a cell, the kernel's own included (ms)"),
    ("interrupt", "interrupt → KeyboardInterrupt (ms, median)"),
    ("restart", "restart → kernel_info_reply (ms, median)"),
    ("wrong_interpreter", "wrong interpreter → error (ms)"),
    ("bystander_normal", "bystander's worst cell, all hosts well (ms)"),
    ("bystander_hung", "bystander's worst cell while a start goes to a hung host (ms)"),
    ("connections", "SSH connections opened for 32 starts"),
)


async def timed(action: Callable[[], Awaitable[object]]) -> float:
    """Return the milliseconds that *action* takes."""
    began = time.perf_counter()
    await action()
    return 1e3 * (time.perf_counter() - began)


async def start(client: GatewayClient, kernelspec: str, env: dict[str, str] | None = None) -> Kernel:
    """Start a kernel and wait for its first kernel_info_reply."""
    kernel = await client.start_kernel(kernelspec, env={"KERNEL_USERNAME": "bench", **(env or {})}, timeout=120)
    await kernel.connect()
    return kernel


def processors(machines: Iterable[Machine]) -> float:
    """Return the seconds of processors' time that *machines* have used so far."""
    return sum(machine.usage().cpu_seconds for machine in machines)


async def measure_starts(way: Way, client: GatewayClient, gateway: Gateway, lab: Lab) -> None:
    """One at a time, then many at once, and how many SSH connections those took."""
    # The first on each host pays for login and agent, which is no start's own time.
    first = []
    for _ in lab.nodes:
        began = time.perf_counter()
        await start(client, way.kernelspec)
        first.append(1e3 * (time.perf_counter() - began))
    way.figures["start_first"] = statistics.median(first)
    for kernel in list(client.started.values()):
        await kernel.delete()
    seconds = []
    for _ in range(STARTS):
        kernels: list[Kernel] = []

        async def one(found: list[Kernel] = kernels) -> None:
            found.append(await start(client, way.kernelspec))

        seconds.append(await timed(one))
        await kernels[0].delete()
    way.figures["start"] = statistics.median(seconds)
    before = logins(lab)
    many: list[float] = []

    async def one_of_many() -> None:
        try:
            many.append(await timed(lambda: start(client, way.kernelspec)))
        except (GatewayError, ChannelsClosed, TimeoutError) as error:
            print(f"{way.label}: one of {AT_ONCE} starts failed: {error!r}", file=sys.stderr)

    nodes_before, gateway_before = processors(lab.nodes), processors([gateway])
    way.figures["start_32_wall"] = await timed(lambda: asyncio.gather(*(one_of_many() for _ in range(AT_ONCE))))
    way.figures["start_32_cpu_nodes"] = processors(lab.nodes) - nodes_before
    way.figures["start_32_cpu_gateway"] = processors([gateway]) - gateway_before
    way.figures["start_32_median"] = statistics.median(many)
    way.figures["start_32_failed"] = float(AT_ONCE - len(many))
    way.figures["connections"] = float(logins(lab) - before)
    for kernel in list(client.started.values()):
        await kernel.delete()


async def measure_cells(way: Way, client: GatewayClient, gateway: Gateway, lab: Lab) -> None:
    """Round trips of the cell `1`, with the processors' time that they take, interrupts and restarts of one kernel."""
    node = lab.nodes[0]
    kernel = await start(client, way.kernelspec, {"KERNEL_REMOTE_HOST": node.name})
    local = await start(client, "local")
    cells: list[float] = []
    local_cells: list[float] = []
    cpu = {machine.name: 0.0 for machine in (gateway, node)}
    for each in (kernel, local):
        for _ in range(20):
            await each.execute("1")
    for _ in range(ROUNDS):
        before = {machine.name: processors([machine]) for machine in (gateway, node)}
        cells += [await timed(lambda: kernel.execute("1")) for _ in range(CELLS)]
        for machine in (gateway, node):
            cpu[machine.name] += processors([machine]) - before[machine.name]
        local_cells += [await timed(lambda: local.execute("1")) for _ in range(CELLS)]
    await local.delete()
    cells.sort()
    way.figures["cell"], way.figures["cell_p95"] = statistics.median(cells), cells[int(0.95 * len(cells))]
    way.figures["cell_local"] = statistics.median(local_cells)
    way.figures["cell_gateway_cpu"] = 1e3 * cpu[gateway.name] / len(cells)
    way.figures["cell_node_cpu"] = 1e3 * cpu[node.name] / len(cells)
    interrupts = []
    for _ in range(INTERRUPTS):
        running = await kernel.begin("import time; print('on', flush=True); time.sleep(60)")
        await running.printed("on")

        async def interrupt(execution: Any = running) -> None:
            await kernel.interrupt()
            await execution.reply()

        interrupts.append(await timed(interrupt))
    way.figures["interrupt"] = statistics.median(interrupts)

    async def restart() -> None:
        # As JupyterLab does; the stock proxy's kernels have a new key, which a websocket that stays open never learns.
        await kernel.disconnect()
        await kernel.restart()
        await kernel.connect()

    way.figures["restart"] = statistics.median([await timed(restart) for _ in range(RESTARTS)])
    await kernel.delete()


async def measure_error(way: Way, client: GatewayClient) -> None:
    """How long until the client hears that the interpreter does not exist."""

    began = time.perf_counter()
    try:
        await client.start_kernel(way.broken, env={"KERNEL_USERNAME": "bench"}, timeout=180)
    except GatewayError as error:
        way.figures["wrong_interpreter"] = 1e3 * (time.perf_counter() - began)
        if way.complaint not in error.reason:
            raise SystemExit(f"{way.label}: the wrong interpreter gave another error: {error}") from error
    else:
        raise SystemExit(f"{way.label}: the kernelspec with a wrong interpreter started")


async def measure_bystander(way: Way, client: GatewayClient, lab: Lab) -> None:
    """The worst cell of a kernel on one node, while a start that is pinned to another one meets a host that hangs."""
    here, hung = lab.nodes[0], lab.nodes[-1]
    kernel = await start(client, way.kernelspec, {"KERNEL_REMOTE_HOST": here.name})
    for _ in range(20):
        await kernel.execute("1")

    async def worst(seconds: float) -> float:
        found, until = 0.0, time.monotonic() + seconds
        while time.monotonic() < until:
            found = max(found, await timed(lambda: kernel.execute("1", timeout=180)))
        return found

    way.figures["bystander_normal"] = await worst(5)
    hung.pause()
    try:
        env = {"KERNEL_USERNAME": "bench", "KERNEL_REMOTE_HOST": hung.name}
        async with GatewayClient(client.url) as other:
            doomed = asyncio.create_task(other.start_kernel(way.kernelspec, env=env, timeout=180))
            way.figures["bystander_hung"] = await worst(HUNG_SECONDS)
            hung.unpause()
            await asyncio.wait({doomed})
            doomed.exception()  # that it fails is no figure
    finally:
        if hung.state == "paused":
            hung.unpause()
    await kernel.delete()


def logins(lab: Lab) -> int:
    """Return how many SSH logins the nodes' sshd have logged so far."""
    return sum(len(re.findall(r"^Accepted ", node.read_logs(), re.MULTILINE)) for node in lab.nodes)


def extra_kernelspecs() -> dict[str, dict[str, Any]]:
    """Return a kernelspec without any proxy, and for each way one whose interpreter does not exist."""
    ours = {"process_proxy": {"class_name": "eg_distributed.DistributedProcessProxy"}}
    stock = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
    launcher = ["/nowhere/python", "x.py", "--kernel-id", "{kernel_id}", "--response-address", "{response_address}"]
    launcher += ["--public-key", "{public_key}"]
    base = {"language": "python", "display_name": "broken"}
    plain = ["/opt/kernel/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    return {
        "local": {**base, "argv": plain, "display_name": "local"},
        "broken_plain": {**base, "argv": ["/nowhere/python", "-f", "{connection_file}"], "metadata": ours},
        "broken_launcher": {**base, "argv": launcher, "metadata": ours},
        "broken_stock": {**base, "argv": launcher, "metadata": {"process_proxy": {"class_name": stock}}},
    }


def measure_floor(lab: Lab) -> dict[str, float]:
    """Start and drive the same kernel on a node, without a gateway."""
    node = lab.nodes[0]
    argv = ["/opt/kernel/bin/python", "-c", LOCAL.read_text("utf-8"), str(STARTS), str(ROUNDS * CELLS)]
    found: dict[str, float] = json.loads(node.exec(argv, timeout=120).check().stdout)
    return found


async def measure(way: Way, gateway: Gateway, lab: Lab) -> None:
    """Take all figures of one way."""
    async with GatewayClient(gateway.url) as client:
        for what in (
            measure_starts(way, client, gateway, lab),
            measure_cells(way, client, gateway, lab),
            measure_error(way, client),
            measure_bystander(way, client, lab),
        ):
            await what
            print(f"  {way.label}: {', '.join(way.figures)}", file=sys.stderr, flush=True)


def table(floor: dict[str, float], ways: tuple[Way, ...]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| | " + " | ".join(way.label for way in ways) + " | on the node, no gateway |",
        "|---" * (len(ways) + 2) + "|",
    ]
    for key, label in ROWS:
        cells = [_figure(way.figures.get(key)) for way in ways]
        lines.append(f"| {label} | {' | '.join(cells)} | {_figure(floor.get(key))} |")
    return "\n".join(lines) + "\n"


def expectations(floor: dict[str, float], way: Way) -> str:
    """Return what was expected of *way*, ours with a plain kernelspec, with what was measured, as Markdown."""
    found = {key: value or 0.0 for key, value in way.figures.items()}
    rows = (
        ("a start takes at most 1.5 times the kernel's own", found["start"] / floor["start"], 1.5, "times"),
        ("a cell takes at most 5 ms", found["cell"], 5.0, "ms"),
        ("a wrong interpreter is told within 500 ms", found["wrong_interpreter"], 500.0, "ms"),
        (
            "a hung host costs a bystander's worst cell at most 100 ms",
            found["bystander_hung"] - found["bystander_normal"],
            100.0,
            "ms more",
        ),
        ("32 starts open no SSH connection", found["connections"], 0.0, "connections"),
    )
    lines = ["| expected | measured | |", "|---|---|---|"]
    for text, value, most, unit in rows:
        lines.append(f"| {text} | {value:.2f} {unit} | {'held' if value <= most else '**missed**'} |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    """Run everything; called by `nox -s "bench(gateway)"`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path(".bench/side_by_side.json"), help="where the figures go")
    parser.add_argument("--docs", type=Path, help="a folder for figures-gateway.md as well")
    parser.add_argument("--keep", action="store_true", help="keep the lab afterwards")
    options = parser.parse_args()
    lab = Lab.up(name="bench", nodes=3)
    try:
        floor = measure_floor(lab)
        for number, way in enumerate(WAYS):
            gateway = lab.add_gateway(
                f"bench{number}", env={"EG_KERNEL_LAUNCH_TIMEOUT": "60"}, kernelspecs=extra_kernelspecs()
            )
            try:
                asyncio.run(measure(way, gateway, lab))
            finally:
                gateway.remove()
    finally:
        if not options.keep:
            lab.down()
    machine, when = this_machine(), today()
    result = {"date": when, "machine": machine, "floor": floor, "ways": {way.label: way.figures for way in WAYS}}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    text, expected = table(floor, WAYS), expectations(floor, WAYS[0])
    print(text)
    print(expected)
    if options.docs:
        page = _PAGE.format(table=text, expected=expected, date=when, machine=machine)
        (options.docs / "figures-gateway.md").write_text(page, "utf-8")


_PAGE = """# Figures: beside Enterprise Gateway's own proxy

Measured by `nox -s "bench(gateway)" -- --docs docs` on {date} ({machine}): one run, one lab of three nodes in containers
on one machine, a gateway of its own for each way, so that none pays for another. The kernel (ipykernel) is the same
everywhere; the last column is the floor: the same kernel started and driven on its node by a plain client, without a
gateway. A cell's time runs until its reply and its `idle` status have both arrived.

{table}
## What was expected

Of our proxy with a plain kernelspec:

{expected}
A cell's 5 ms were thought of as the time of the way alone. The kernel's own share (last column of the table above), and what
Enterprise Gateway does with the messages of any kernel, also of one on its own machine (the row of the local kernel), leave
less than that on this machine, or nothing: Enterprise Gateway reads each message twice, once for the client and once to
note the kernel's activity, and sends each to the client by a system call of its own. What is ours is the difference to the
local kernel.

## How to read them

- A host that hangs has no kernels in this run; that five kernels which live there change nothing is shown by a test
  (`tests/integration/test_faults.py`).
- The gateway, the three nodes, all kernels and the client share the cores of one machine. Many starts at once are bound by the
  interpreters that start, whoever starts them.
- A cell's floor is the kernel itself (last column). Enterprise Gateway's own handling of the messages comes on top, also for a
  kernel on its own machine, without SSH and without us (the row below); what is left is the way over SSH and back.
- The stock proxy's cells pay for Nagle's algorithm and for the accept loop that it starts in the gateway. Loading our proxy turns
  the former off for all kernels of a gateway, and reads messages' dates faster (see `patches.py`); that is why local
  kernels are quicker in our gateways' columns.
- Enterprise Gateway's launcher chooses ports by binding and closing; of many at once, two may choose the same, and one
  fails. The run prints the error of each start that failed.
"""

if __name__ == "__main__":
    main()
