"""What kernels cost that do nothing, and what many of them cost; `nox -s scale`.

Stand-in kernels, which listen on five sockets and sleep, on the nodes of a lab; each with one client's connections, as a notebook
has them: four channels and the heartbeat. Measured are the cluster's thread and memory here, and each node's agent: idle, asked
for all its kernels, and cut off and connected again. Prints a table, and writes docs/scale.md with --docs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import os
import shlex
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import node_processes, this_machine, today
from benchmarks.node_processes import used
from eg_distributed.cluster import Cluster
from eg_distributed.errors import DistributedError
from eg_distributed.kernel import RemoteKernel
from eg_distributed.link.links import ENOUGH, SSHLink
from eg_distributed.protocol import CHANNELS, Ping
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed
from eg_distributed.streams import Relay

SLEEPER = """
import json, signal, socket, sys
info = json.load(open(sys.argv[1]))
listening = []
for channel in ("shell", "iopub", "stdin", "hb", "control"):
    listening.append(socket.socket(socket.AF_UNIX))
    listening[-1].bind("%s-%d" % (info["ip"], info[channel + "_port"]))
    listening[-1].listen(50)
while True:
    signal.pause()
"""
HOLDER = """
import socket, sys
held = []
for line in sys.stdin:
    for path in line.split():
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].connect(path)
    print(len(held), flush=True)
"""
SECONDS = 20.0
"""For which idle kernels are watched."""
AT_ONCE = 16


class Site:
    """A cluster with stand-in kernels on *hosts*."""

    def __init__(self, ssh_config: Path, hosts: Sequence[str], python: str) -> None:
        self.hosts = hosts
        self.python = python
        self.settings = Distributed()
        self.settings.ssh_config = str(ssh_config)
        self.folder = tempfile.TemporaryDirectory(dir="/tmp")  # short enough for UNIX sockets below it
        self.settings.runtime_dir = self.folder.name
        self.cluster = Cluster(self.settings, f"scale-{os.getpid()}")
        self.kernels: list[RemoteKernel] = []
        self.pids: dict[str, int] = {}
        self._holder: asyncio.subprocess.Process | None = None

    async def grow(self, count: int) -> None:
        """Have *count* kernels in all, each with its client's connections."""
        turn = asyncio.Semaphore(AT_ONCE)
        before = len(self.kernels)

        async def start(number: int) -> None:
            argv = [self.python, "-ISc", SLEEPER, "{connection_file}"]
            name = self.hosts[number % len(self.hosts)]
            request = StartRequest(
                kernel_id=str(uuid.uuid4()), hosts=tuple(self.hosts), pin=name, argv=argv, spec_argv=("sleeper",), key="k",
                transport="ipc", launch_timeout=120.0,
            )  # fmt: skip
            async with turn:
                self.kernels.append(await self.cluster.run(self.cluster.start(request)))

        await asyncio.gather(*(start(number) for number in range(before, count)))
        for name in self.hosts:
            self.pids[name] = (await self.cluster.run(self.cluster.host(name).node.request(Ping()))).pid
        await self._hold(self.kernels[before:])
        await self._until_open(len(CHANNELS) * count)

    async def _hold(self, kernels: Sequence[RemoteKernel]) -> None:
        """Connect to *kernels* as clients do, from another process, whose memory is none of the gateway's."""
        if self._holder is None:
            self._holder = await asyncio.create_subprocess_exec(
                sys.executable, "-c", HOLDER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        for kernel in kernels:
            info = kernel.connection_info
            paths = [f"{info['ip']}-{info[f'{channel}_port']}" for channel in CHANNELS]
            self._holder.stdin.write(f"{' '.join(paths)}\n".encode())
            await self._holder.stdout.readline()

    def _relays(self) -> list[Relay]:
        return [relay for kernel in self.kernels for relay in list(kernel.endpoints._relays)]

    async def _until_open(self, streams: int) -> None:
        """Wait until the agents have so many streams."""

        def count() -> int:
            return sum(relay.linked for relay in self._relays())

        began = time.monotonic()
        while count() < streams:
            if time.monotonic() - began > 120:
                raise SystemExit(f"{count()} streams of {streams} are open after two minutes")
            await asyncio.sleep(0.01)

    async def look(self) -> dict[str, Any]:
        """Return what each agent, and this process, have used so far."""
        found = {}
        words = ["python3", "-c", Path(node_processes.__file__).read_text("utf-8")]
        for name in self.hosts:
            link = self.cluster.host(name).node._link
            assert isinstance(link, SSHLink)
            command = shlex.join([*words, f"agent={self.pids[name]}"])
            found[name] = json.loads(str((await self.cluster.run(link._connection.run(command, check=True))).stdout))
        found["gateway"] = used(os.getpid())
        return found

    async def idle(self) -> tuple[float, float]:
        """Return the shares of a processor that the cluster's thread, and the busiest agent, use while nothing happens."""
        await asyncio.sleep(2 * SECONDS / 10)  # what the connections have left to be done
        thread = str(self.cluster._thread.native_id)
        before, began = await self.look(), time.monotonic()
        await asyncio.sleep(SECONDS)
        after, seconds = await self.look(), time.monotonic() - began

        def spent(of: dict[str, Any], name: str) -> float:
            if name == "gateway":
                return float(of[name]["threads"][thread][0])
            return float(sum(each[0] for each in of[name]["agent"]["threads"].values()))

        shares = {name: (spent(after, name) - spent(before, name)) / 1e6 / seconds for name in after}
        return shares["gateway"], max(shares[name] for name in self.hosts)

    async def memory(self) -> tuple[float, float]:
        """Return the megabytes of this process, and of the largest agent, that are resident."""
        found = await self.look()
        return found["gateway"]["Rss"] / 1e6, max(found[name]["agent"]["Rss"] for name in self.hosts) / 1e6

    async def list_all(self) -> float:
        """Return the milliseconds that a list of all kernels takes."""
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            await self.cluster.run(self.cluster.list_kernels(",".join(self.hosts)))
            seconds.append(time.perf_counter() - began)
        return 1e3 * statistics.median(seconds)

    async def reconnect(self) -> float:
        """Cut all connections; return the seconds until every stream is carried again."""
        nodes = [self.cluster.host(name).node for name in self.hosts]
        made = sum(node.connections for node in nodes)
        links = [relay._link for relay in self._relays()]  # kept, since a later one may have the id of one that is gone
        began = time.perf_counter()

        def cut() -> None:
            for node in nodes:
                assert node._link is not None
                node._link.close()

        self.cluster.call_soon(cut)
        while sum(node.connections for node in nodes) < made + len(nodes):
            await asyncio.sleep(0.01)
        while any(relay._link is not None and relay._link in links for relay in self._relays()):
            await asyncio.sleep(0.01)
        await self._until_open(len(CHANNELS) * len(self.kernels))
        return time.perf_counter() - began

    def connections(self) -> int:
        """Return how many SSH connections there are."""
        links = [self.cluster.host(name).node._link for name in self.hosts]
        return sum(link.connections for link in links if isinstance(link, SSHLink))

    async def close(self) -> None:
        """End all kernels and the cluster."""
        if self._holder is not None and self._holder.stdin is not None:
            self._holder.stdin.close()
            await self._holder.wait()
        turn = asyncio.Semaphore(AT_ONCE)

        async def end(kernel: RemoteKernel) -> None:
            async with turn:
                with contextlib.suppress(DistributedError):
                    await self.cluster.run(self.cluster.release(kernel.id))

        await asyncio.gather(*(end(kernel) for kernel in self.kernels))
        await asyncio.to_thread(self.cluster.close)
        self.folder.cleanup()


async def measure(site: Site, steps: Sequence[int]) -> list[dict[str, float]]:
    """Return the figures with each number of kernels."""
    rows: list[dict[str, float]] = []
    for count in steps:
        began = time.monotonic()
        await site.grow(count)
        grown = time.monotonic() - began
        gateway_memory, agent_memory = await site.memory()
        gateway, agent = await site.idle()
        row = {
            "kernels": count,
            "nodes": len(site.hosts),
            "streams": len(CHANNELS) * count,
            "connections": site.connections(),
            "gateway_memory": gateway_memory,
            "agent_memory": agent_memory,
            "gateway_idle": 100 * gateway,
            "agent_idle": 100 * agent,
            "list": await site.list_all(),
            "reconnect": await site.reconnect(),
            "grown": grown,
        }
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    return rows


ROWS = (
    ("streams", "their clients' connections (streams)", "{:,.0f}"),
    ("connections", "SSH connections", "{:.0f}"),
    ("gateway_memory", "memory of this process (MB)", "{:.0f}"),
    ("agent_memory", "memory of the largest agent (MB)", "{:.1f}"),
    ("gateway_idle", "the cluster's thread, idle (% of a core)", "{:.2f}"),
    ("agent_idle", "the busiest agent, idle (% of a core)", "{:.2f}"),
    ("list", "list of all kernels (ms)", "{:.0f}"),
    ("reconnect", "all cut off at once → all streams carried again (s)", "{:.1f}"),
)


def table(rows: Sequence[dict[str, float]]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| idle kernels | " + " | ".join(f"{row['kernels']:,.0f}" for row in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
    ]
    lines += [f"| {label} | " + " | ".join(form.format(row[key]) for row in rows) + " |" for key, label, form in ROWS]
    return "\n".join(lines) + "\n"


GROWING = (
    ("gateway_memory", "memory of the gateway's process, beside its own (MB)", "{:,.0f}"),
    ("gateway_idle", "the cluster's thread, idle (% of a core)", "{:.2f}"),
)
HOST_IDLE = 0.03
"""% of a core that the cluster's thread takes for one host more: a ping every two seconds. Ten hosts in place of one, with ten
kernels in both cases, were 0.30 % in place of 0.06 %."""
SITES = ((10, 100, 1), (50, 1_000, 1), (50, 1_000, 2), (500, 10_000, 1))
"""Hosts, kernels, and clients of each kernel."""


def line(rows: Sequence[dict[str, float]], key: str) -> tuple[float, float]:
    """Return the value without kernels and what each stream adds, of the line through the smallest and the largest figures."""
    first, last = rows[0], rows[-1]
    slope = (last[key] - first[key]) / (last["streams"] - first["streams"])
    return first[key] - slope * first["streams"], slope


def model(rows: Sequence[dict[str, float]]) -> str:
    """Return what sites of other sizes may expect, as a Markdown table."""
    heads = [
        f"{hosts} hosts, {kernels:,} kernels, {clients} client{'s' * (clients > 1)} each"
        for hosts, kernels, clients in SITES
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    cells = []
    for hosts, kernels, clients in SITES:
        each = len(CHANNELS) * clients * kernels / hosts
        cells.append(f"{hosts * max(1, math.ceil(each / ENOUGH)):,}")
    lines.append(f"| SSH connections, a further one from {ENOUGH} streams of a host on | {' | '.join(cells)} |")
    _, slope = line(rows, "gateway_memory")
    found = [f"{slope * len(CHANNELS) * kernels * clients:,.0f}" for _, kernels, clients in SITES]
    lines.append(f"| memory of the gateway's process, beside its own (MB) | {' | '.join(found)} |")
    base, slope = line(rows, "gateway_idle")
    base -= HOST_IDLE * rows[0]["nodes"]
    found = [
        f"{base + HOST_IDLE * hosts + slope * len(CHANNELS) * kernels * clients:.1f}"
        for hosts, kernels, clients in SITES
    ]
    lines.append(f"| the cluster's thread, idle (% of a core) | {' | '.join(found)} |")
    base, slope = agents(rows)
    found = [f"{base + slope * len(CHANNELS) * kernels * clients / hosts:.0f}" for hosts, kernels, clients in SITES]
    lines.append(f"| memory of each agent (MB) | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def agents(rows: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Return the same as `line` of an agent's memory, by the streams of its own node."""
    first, last = rows[0], rows[-1]
    slope = (last["agent_memory"] - first["agent_memory"]) / ((last["streams"] - first["streams"]) / last["nodes"])
    return first["agent_memory"] - slope * first["streams"] / last["nodes"], slope


def check(rows: Sequence[dict[str, float]]) -> str:
    """Return how far the figures in between lie from the line, as a Markdown table."""
    if len(rows) < 3:
        return "Nothing lies between: two sizes were measured.\n"
    lines = ["| kernels | | measured | by the line |", "|---|---|---|---|"]
    for row in rows[1:-1]:
        for key, label, _ in GROWING:
            base, slope = line(rows, key)
            lines.append(f"| {row['kernels']:,.0f} | {label} | {row[key]:.2f} | {base + slope * row['streams']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything; called by `nox -s scale`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--nodes", type=int, default=10, help="of the lab")
    parser.add_argument("--ssh-config", type=Path, help="of hosts that are there already, in place of a lab")
    parser.add_argument("--hosts", nargs="+", default=["node1"])
    parser.add_argument("--python", default="python3", help="on the nodes")
    parser.add_argument("--json", type=Path, default=Path(".bench/scale.json"), help="where the figures go")
    parser.add_argument("--docs", type=Path, help="a folder for scale.md as well")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    logging.getLogger("eg_distributed").setLevel(logging.ERROR)

    async def run(ssh_config: Path, hosts: Sequence[str]) -> list[dict[str, float]]:
        site = Site(ssh_config, hosts, options.python)
        try:
            return await measure(site, options.kernels)
        finally:
            await site.close()

    if options.ssh_config:
        rows = asyncio.run(run(options.ssh_config, options.hosts))
    else:
        from lab import Lab

        lab = Lab.up(name="scale", nodes=options.nodes)
        try:
            rows = asyncio.run(run(lab.ssh_config, [node.name for node in lab.nodes]))
        finally:
            lab.down()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"date": today(), "machine": this_machine(load), "rows": rows}
    options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(table(rows))
    if options.docs:
        page = PAGE.read_text("utf-8").format(
            table=table(rows),
            model=model(rows),
            check=check(rows),
            date=today(),
            machine=this_machine(load),
            nodes=options.nodes,
        )
        (options.docs / "scale.md").write_text(page, "utf-8")


PAGE = Path(__file__).with_name("scale.md")


if __name__ == "__main__":
    main()
