"""An account of a cell: what each process on its way uses, and for what; `nox -s account`.

One kernel on a node, driven through us by a plain client on this machine, without a gateway's websockets, which are the same for
every kernel; and the same kernel, driven by the same client on its node. The difference is ours. Prints a table, and writes
docs/cell.md with --docs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import node_processes, this_machine, today
from benchmarks.node_processes import used
from eg_distributed.cluster import Cluster
from eg_distributed.kernel import RemoteKernel
from eg_distributed.link.links import SSHLink
from eg_distributed.protocol import Ping
from eg_distributed.request import StartRequest
from eg_distributed.settings import Distributed

CLIENT = Path(__file__).with_name("cell_client.py")
ROUNDS = 5
TRACED = 200
"""Cells under strace, which makes each of them slower, and so are none of those that are timed."""
OURS = ("gateway", "sshd", "agent")
WHAT = {
    "gateway": "the cluster's thread in the gateway's process",
    "sshd": "sshd on the node, of this login",
    "agent": "the agent on the node",
    "kernel": "the kernel itself, for comparison",
}


@dataclass
class Used:
    """What one process has used for one cell, in microseconds, wake-ups, and system calls by their names."""

    cpu: list[float] = field(default_factory=list)
    woken: list[float] = field(default_factory=list)
    calls: dict[str, float] = field(default_factory=dict)


class Site:
    """A cluster with one kernel on one host, and clients of it."""

    def __init__(self, ssh_config: Path, host: str, python: str) -> None:
        self.host = host
        self.python = python
        self.settings = Distributed()
        self.settings.ssh_config = str(ssh_config)
        self.folder = tempfile.TemporaryDirectory(dir="/tmp")  # short enough for UNIX sockets below it
        self.settings.runtime_dir = self.folder.name
        self.cluster = Cluster(self.settings, f"account-{os.getpid()}")
        self.thread = str(self.cluster._thread.native_id)
        self.kernel: RemoteKernel | None = None
        self.pids: dict[str, int] = {}

    async def start(self) -> None:
        """Start the kernel, and learn which processes there are."""
        argv = [self.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        request = StartRequest(kernel_id=str(uuid.uuid4()), hosts=(self.host,), argv=argv, language="python", key="k")
        self.kernel = await self.cluster.run(self.cluster.start(request))
        agent = await self.cluster.run(self.cluster.host(self.host).node.request(Ping()))
        self.pids = {"agent": agent.pid, "kernel": self.kernel.pid}

    async def look(self) -> dict[str, Any]:
        """Return what each process has used so far."""
        words = ["python3", "-c", Path(node_processes.__file__).read_text("utf-8")]
        words += [f"{name}={pid}" for name, pid in self.pids.items()]
        link = self.cluster.host(self.host).node._link
        assert isinstance(link, SSHLink)
        # Over the kernel's own connection, since its sshd is to be looked at as well.
        answer = await self.cluster.run(link._connection.run(shlex.join(words), check=True))
        found: dict[str, Any] = json.loads(str(answer.stdout))
        mine = used(os.getpid())["threads"]
        return {**found, "gateway": {"threads": {self.thread: mine[self.thread]}}}

    def client(self) -> subprocess.Popen[str]:
        """Return a client that goes through us."""
        assert self.kernel is not None
        info = json.dumps({**self.kernel.connection_info, "key": "k"})
        return _ready([sys.executable, "-c", CLIENT.read_text("utf-8"), info])

    def direct_client(self) -> subprocess.Popen[str]:
        """Return one on the node."""
        read = f"tr '\\0' '\\n' < /proc/{self.pids['kernel']}/cmdline"
        ssh = ["ssh", "-F", self.settings.ssh_config, self.host]
        words = subprocess.run([*ssh, read], capture_output=True, text=True, check=True).stdout.split("\n")
        file = next(word for word in words if word.endswith(".json"))
        return _ready([*ssh, shlex.join([self.python, "-c", CLIENT.read_text("utf-8"), f"@{file}"])])

    async def close(self) -> None:
        """End the kernel and the cluster."""
        if self.kernel is not None:
            await self.cluster.run(self.cluster.release(self.kernel.id))
        await asyncio.to_thread(self.cluster.close)
        self.folder.cleanup()


def _ready(argv: list[str]) -> subprocess.Popen[str]:
    client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    if client.stdout.readline() != "ready\n":
        raise SystemExit("the client did not get through; its words are above")
    return client


def cells(client: subprocess.Popen[str], count: int) -> list[float]:
    """Return the milliseconds of so many cells."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{count}\n")
    client.stdin.flush()
    return [1e3 * seconds for seconds in json.loads(client.stdout.readline())]


@contextlib.contextmanager
def closing(client: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Have *client* end behind the block."""
    try:
        yield client
    finally:
        assert client.stdin is not None
        client.stdin.close()
        client.wait(30)


def add(found: dict[str, Used], before: dict[str, Any], after: dict[str, Any], count: int) -> None:
    """Add to *found* what *count* cells have used by each process."""
    for name, process in after.items():
        cpu = woken = 0.0
        for thread, (spent, _, times) in process["threads"].items():
            earlier = before[name]["threads"].get(thread, (0.0, 0.0, 0))
            cpu += spent - earlier[0]
            woken += times - earlier[2]
        each = found.setdefault(name, Used())
        each.cpu.append(cpu / count)
        each.woken.append(woken / count)


def here(pid: int) -> int:
    """Return the pid that a process of a container on this machine, or of this machine, has here; 0 if it isn't one."""
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, StopIteration):
            line = next(line for line in path.read_text().splitlines() if line.startswith("NSpid:"))
            if line.split()[-1] == str(pid) and b"eg-distributed" in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
    return 0


def trace(site: Site, client: subprocess.Popen[str], found: dict[str, Used]) -> None:
    """Count the system calls of the gateway's thread and of the agent, where strace is here and the node is on this machine."""
    if shutil.which("strace") is None:
        return
    pids = {"gateway": int(site.thread), "agent": here(site.pids["agent"])}
    tracers = {}
    for name, pid in pids.items():
        if pid:
            argv = ["strace", "-c", *(() if name == "gateway" else ("-f",)), "-p", str(pid)]
            tracers[name] = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    time.sleep(1.0)  # it tells nobody when it has begun
    cells(client, TRACED)
    for name, tracer in tracers.items():
        tracer.send_signal(2)
        for line in tracer.communicate()[1].splitlines():
            words = line.split()
            if len(words) >= 5 and words[0].replace(".", "").isdigit() and words[-1] != "total":
                found[name].calls[words[-1]] = int(words[3]) / TRACED


async def account(site: Site, count: int) -> dict[str, Any]:
    """Return the account."""
    await site.start()
    through: list[float] = []
    direct: list[float] = []
    found: dict[str, Used] = {}
    with closing(site.client()) as ours, closing(site.direct_client()) as theirs:
        for _ in range(ROUNDS):  # in turns, so that what else the machine does falls on both
            before = await site.look()
            through += cells(ours, count)
            add(found, before, await site.look(), count)
            direct += cells(theirs, count)
        trace(site, ours, found)
    return {
        "through": statistics.median(through),
        "direct": statistics.median(direct),
        "used": {
            name: {"cpu": min(each.cpu), "woken": statistics.median(each.woken), "calls": each.calls}
            for name, each in found.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """Return the account as a Markdown table."""
    lines = ["| | processor (µs) | wake-ups | system calls |", "|---|---|---|---|"]
    for name, what in WHAT.items():
        each = result["used"][name]
        calls = {call: times for call, times in each["calls"].items() if times >= 0.1}
        most = sorted(calls.items(), key=lambda item: -item[1])
        told = (
            f"{sum(calls.values()):.0f}: " + ", ".join(f"{call} {times:.1f}" for call, times in most) if calls else ""
        )
        lines.append(f"| {what} | {each['cpu']:.0f} | {each['woken']:.1f} | {told} |")
    ours = sum(result["used"][name]["cpu"] for name in OURS)
    lines.append(f"| **ours, together** | **{ours:.0f}** | | |")
    return "\n".join(lines) + "\n"


def times(result: dict[str, Any]) -> str:
    """Return the medians in a sentence."""
    more = result["through"] - result["direct"]
    return (
        f"A cell took {result['direct']:.2f} ms (median) of a client on the kernel's own node, and {result['through']:.2f} ms of "
        f"one that goes through us: **{more:.2f} ms more**.\n"
    )


def main() -> None:
    """Run everything; called by `nox -s account`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=500, help=f"in each of {ROUNDS} rounds")
    parser.add_argument("--ssh-config", type=Path, help="of a host that is there already, in place of a lab")
    parser.add_argument("--host", default="node1")
    parser.add_argument(
        "--python", default="/opt/kernel/bin/python", help="on the node, with ipykernel and jupyter_client"
    )
    parser.add_argument("--json", type=Path, default=Path(".bench/cell.json"), help="where the figures go")
    parser.add_argument("--docs", type=Path, help="a folder for cell.md as well")
    options = parser.parse_args()
    load = os.getloadavg()[0]

    async def run(ssh_config: Path) -> dict[str, Any]:
        site = Site(ssh_config, options.host, options.python)
        try:
            return await account(site, options.cells)
        finally:
            await site.close()

    if options.ssh_config:
        result = asyncio.run(run(options.ssh_config))
    else:
        from lab import Lab

        lab = Lab.up(name="account", nodes=1)
        try:
            result = asyncio.run(run(lab.ssh_config))
        finally:
            lab.down()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"date": today(), "machine": this_machine(load), **result}, indent=2) + "\n", "utf-8"
    )
    print(times(result))
    print(table(result))
    if options.docs:
        page = PAGE.read_text("utf-8").format(
            table=table(result), times=times(result), date=today(), machine=this_machine(load)
        )
        (options.docs / "cell.md").write_text(page, "utf-8")


PAGE = Path(__file__).with_name("cell.md")

if __name__ == "__main__":
    main()
