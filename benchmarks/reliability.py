"""Measure what faults cost, in one run: silent hosts, clients that take nothing, a killed gateway, a cut uplink.

`nox -s "bench(reliability)"`. Prints a table, and keeps the figures as JSON and, with --docs, as a page.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import adoption, this_machine, today
from lab import Gateway, Lab, Node
from lab.drivers.checkout import build_wheel, requirements, run_uv
from lab.drivers.machines import Machine
from lab.errors import LabNotFound
from tests.integration.client import GatewayClient, Kernel, start_on
from tests.integration.looks import agents, gateway_memory
from tests.integration.test_output_kept import LINES, PRINTING
from tests.integration.test_persistence import PERSISTENCE
from tests.sessions import Session, Tab

SILENCES, CALM_SECONDS = 5, 10.0
CLIENTS = 100
FLOOD_MEGABYTES = 100
FLOOD_SECONDS = 300.0
FLOODED = "/tmp/flooded"  # noqa: S108 -- on a node
FLOOD = f"""
import time
for number in range({FLOOD_MEGABYTES * 16}):
    print("x" * 65536, flush=True)
    time.sleep(0.02)
open({FLOODED!r}, "w").close()
"""
END = "/tmp/end"  # noqa: S108 -- on a node, for the cell below
WAITING = f"""
import os, time
print("on", flush=True)
while not os.path.exists({END!r}): time.sleep(0.1)
"""
KERNELS, KERNEL_HOSTS, BLIP_HOSTS = 1000, 60, 500

Figures = dict[str, float]
ROWS = (
    ("told", "a host falls silent → the notebook of its kernel says so (s, median of 5)", 5.0),
    ("bystander_calm", "worst cell on another host in 10 s, all hosts well (ms)", None),
    ("bystander", "worst cell on another host meanwhile, in 10 s or more (ms)", None),
    ("agent_before", "memory of the agent, one kernel (MiB)", None),
    ("agent", f"the most it has while {CLIENTS} clients take nothing of {FLOOD_MEGABYTES} MB (MiB)", None),
    ("gateway_before", "memory of the gateway (MiB)", None),
    ("gateway", f"the most it has while {CLIENTS} clients take nothing of {FLOOD_MEGABYTES} MB (MiB)", None),
    ("lost", f"lines of {LINES:,} that a cell printed over SIGKILL of the gateway, lost", 0.0),
    ("again", "the same, lines that came twice", None),
    ("http", f"start of a gateway with {KERNELS:,} kernels on {KERNEL_HOSTS} hosts → HTTP (s)", 5.0),
    ("http_cpu", "processor time of that gateway until then (s)", None),
    ("adopted", "the same → all kernels found on their hosts (s)", None),
    ("back", f"{BLIP_HOSTS} hosts come back after 5 s without the gateway's uplink (s)", 20.0),
    ("twice", "of these, hosts that were connected to more than once", 0.0),
)
"""Each figure, what it says, and what it may be at most."""


async def measure_silence(gateway: Gateway, nodes: tuple[Node, ...]) -> Figures:
    """How long until a cell is told that its host does not answer, and what that costs a kernel on another host."""
    node, other = nodes
    async with GatewayClient(gateway.url) as client:
        kernel, bystander = await start_on(client, node), await start_on(client, other)
        calm, meanwhile, told = await worst_cell(bystander, CALM_SECONDS), 0.0, []
        for _ in range(SILENCES):
            cell = await kernel.begin(WAITING)
            await cell.printed("on")
            node.pause()
            began = time.monotonic()
            try:
                watched = asyncio.create_task(cell.shows(f"{node.name} has not answered since ", timeout=60))
                while not watched.done():
                    meanwhile = max(meanwhile, await worst_cell(bystander, 0.1))
                await watched
                told.append(time.monotonic() - began)
            finally:
                node.unpause()
            node.exec(["touch", END]).check()
            await cell.shows(" It is back, with your kernel.", timeout=60)
            await cell.result()
            node.exec(["rm", END]).check()
    return {"told": statistics.median(told), "bystander_calm": 1e3 * calm, "bystander": 1e3 * meanwhile}


async def worst_cell(kernel: Kernel, seconds: float) -> float:
    """Run small cells for *seconds*, one at least; return how long the slowest one took."""
    worst, deadline = 0.0, time.monotonic() + seconds
    while True:
        began = time.monotonic()
        await kernel.execute("1")
        worst = max(worst, time.monotonic() - began)
        if time.monotonic() > deadline:
            return worst


def resident(machine: Machine, pids: list[int]) -> float:
    """Return the MiB that processes of *machine* have."""
    sizes = machine.exec(["ps", "-o", "rss=", "-p", ",".join(map(str, pids))], user="root").stdout.split()
    return sum(map(int, sizes)) / 1024


async def measure_stalled_clients(gateway: Gateway, node: Node) -> Figures:
    """What agent and gateway have in memory while many clients of one kernel take nothing of what it prints."""
    async with GatewayClient(gateway.url) as client:
        kernel = await start_on(client, node)
        await kernel.execute("1")
        before = {
            "agent_before": resident(node, agents(node)),
            "gateway_before": gateway_memory(gateway),
        }
        sockets = [await Session(gateway, kernel).dropped(opened=True) for _ in range(CLIENTS)]
        most = {"agent": 0.0, "gateway": 0.0}
        await kernel.begin(FLOOD)
        flooded, deadline = ["rm", FLOODED], time.monotonic() + FLOOD_SECONDS
        try:
            while (await asyncio.to_thread(node.exec, flooded)).exit_code:
                if time.monotonic() > deadline:
                    raise SystemExit(f"the kernel has not printed {FLOOD_MEGABYTES} MB within {FLOOD_SECONDS:g} s")
                most["agent"] = max(most["agent"], await asyncio.to_thread(resident, node, agents(node)))
                most["gateway"] = max(most["gateway"], await asyncio.to_thread(gateway_memory, gateway))
        finally:
            for each in sockets:
                each.close()
    return {**before, **most}


async def measure_killed_gateway(gateway: Gateway, node: Node) -> Figures:
    """What a client misses of a cell that prints while the gateway is killed and started again."""
    kernel = await start_on(GatewayClient(gateway.url), node)
    tab = Tab(gateway, kernel)
    await tab.connect(gateway)
    cell = await tab.run(PRINTING)
    await cell.reached(1000)
    await asyncio.to_thread(gateway.kill)
    await asyncio.to_thread(gateway.start)
    await tab.lost_connection()
    async with GatewayClient(gateway.url) as client:
        client.attach(kernel.id)
        await tab.connect(gateway)
        await cell.ended()
        await tab.close()
    return {"lost": float(LINES - len(set(cell.numbers))), "again": float(len(cell.numbers) - len(set(cell.numbers)))}


def gateway_python(folder: Path) -> Path:
    """Make an environment with Enterprise Gateway and us, as a gateway's machine has it; return its interpreter."""
    python, locked = folder / "venv" / "bin" / "python", folder / "requirements.txt"
    run_uv("venv", "--quiet", "--python", ">=3.10,<3.12", str(folder / "venv"))
    locked.write_bytes(requirements("gateway"))
    name, content = build_wheel()
    (folder / name).write_bytes(content)
    # Compiled, as pip installs it: where Python may write no bytecode, a gateway would compile all of it at each start.
    install = ("pip", "install", "--quiet", "--compile-bytecode", "--python", str(python))
    run_uv(*install, "--require-hashes", "-r", str(locked))
    run_uv(*install, str(folder / name), "setuptools<81")
    return python


def measure_many(python: Path, kernels: int, hosts: int) -> adoption.Found:
    """Return what a gateway takes that finds so many kernels again, and to whose hosts the uplink is cut then; see `adoption`.

    In a process of its own, which counts in variables of its class.
    """
    argv = [sys.executable, "-m", "benchmarks.reliability", "--many", str(python), str(kernels), str(hosts)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"{argv} ended with {done.returncode}: {done.stderr}")
    return adoption.Found(**json.loads(done.stdout.splitlines()[-1]))


def table(figures: Figures) -> str:
    """Return the figures as a Markdown table, each with what it may be at most."""
    lines = ["| | measured | at most | |", "|---|---|---|---|"]
    for key, label, most in ROWS:
        value = figures[key]
        held = "" if most is None else "held" if value <= most else "**missed**"
        shown = f"{value:,.{0 if value >= 100 or value == int(value) else 1}f}"
        lines.append(f"| {label} | {shown} | {'' if most is None else f'{most:g}'} | {held} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything; called by `nox -s "bench(reliability)"`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path(".bench/reliability.json"), help="where the figures go")
    parser.add_argument("--docs", type=Path, help="a folder for figures-reliability.md as well")
    parser.add_argument("--many", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.many:
        python, kernels, hosts = options.many
        with tempfile.TemporaryDirectory(prefix="ega") as folder:
            found = asyncio.run(adoption.measure(python, int(kernels), int(hosts), Path(folder)))
        print(json.dumps(dataclasses.asdict(found)))
        return
    load = os.getloadavg()[0]
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="gateway") as made:
        python = gateway_python(Path(made))
        many = measure_many(python, KERNELS, KERNEL_HOSTS)
        figures.update(http=many.http, http_cpu=many.computed, adopted=many.adopted)
        many = measure_many(python, BLIP_HOSTS, BLIP_HOSTS)
        figures.update(back=many.back, twice=float(many.twice))
    print(figures, file=sys.stderr)
    with contextlib.suppress(LabNotFound):  # of a run that was ended
        Lab.attach("bench").down()
    lab = Lab.up(name="bench", nodes=2)
    try:
        gateway = lab.add_gateway("reliability", options=PERSISTENCE)
        nodes = tuple(lab.nodes)
        figures.update(asyncio.run(measure_silence(gateway, nodes)))
        figures.update(asyncio.run(measure_stalled_clients(gateway, nodes[0])))
        figures.update(asyncio.run(measure_killed_gateway(gateway, nodes[1])))
    finally:
        lab.down()
    machine, when = this_machine(), today()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"date": when, "machine": machine, "figures": figures}, indent=2) + "\n", "utf-8"
    )
    text = table(figures)
    print(text)
    if options.docs:
        page = _PAGE.format(table=text, date=when, machine=machine, load=load)
        (options.docs / "figures-reliability.md").write_text(page, "utf-8")


_PAGE = """# Figures: what faults cost

Measured by `nox -s "bench(reliability)" -- --docs docs` on {date} ({machine}, load average {load:.1f} before it): one run, a lab
of two nodes in containers on one machine, and for the hosts that are many one SSH server that stands for all of them.

{table}
## How to read them

- The node is paused, so that nothing tells the gateway of it: its silence has to be noticed.
- Clients that take nothing are websockets that are opened and never read. What the agent keeps of all streams together has one
  budget, and so has what the gateway keeps for all clients: their number does not matter.
- The kernel prints while the gateway's process is away. Lines that a client had not confirmed in the moment of SIGKILL come
  again.
- The gateway that finds kernels again is a real one, with its logins and its messages, and shares two cores with the server that
  plays its hosts.
"""

if __name__ == "__main__":
    main()
