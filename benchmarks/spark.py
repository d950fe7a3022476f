"""Measure Spark kernels by our launcher beside Enterprise Gateway's own proxy and launcher, in one run on one lab.

    python -m benchmarks.spark [--rounds 3] [--json FILE] [--only NAME]

Enterprise Gateway's Python launcher can't make its session on PySpark 3.3 and later, so there the first cell makes it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import Gateway, Lab, Node
from lab.kernelspecs import LAUNCHER, STOCK
from lab.names import DEFAULT_GATEWAY
from lab.spark.clusters import cluster
from lab.spark.kernelspecs import ENV
from tests.integration.client import GatewayClient, Kernel
from tests.integration.spark_lab import NAME, specs

STOCK_SESSION = "from pyspark.sql import SparkSession; spark = SparkSession.builder.getOrCreate()\n"
COUNT = {
    "python": "print(spark.range(1000).count())",
    "scala": "println(spark.range(1000).count())",
    "R": "count(range_df)",
}
ROWS = (
    ("start", "start → kernel_info_reply (s)"),
    ("first_job", "start → first job done (s)"),
    ("second_job", "next job (s)"),
    ("memory", "memory of the kernel on its node, driver's JVM included (MB)"),
    ("shutdown", "DELETE → answer (s)"),
    ("gone", "DELETE → the cluster has ended the application (s)"),
    ("agent_cpu", "CPU of the node's agent meanwhile (s)"),
)


@dataclass
class Way:
    """One kernelspec, and what its first cell has to begin with."""

    label: str
    spec: str
    role: str
    language: str = "python"
    prelude: str = ""
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        """Keep one figure of one round."""
        self.figures.setdefault(name, []).append(value)


WAYS = (
    Way("ours, standalone", "spark_python_standalone", "spark"),
    Way("EG's, standalone", "stock_standalone", "spark", prelude=STOCK_SESSION),
    Way("ours, YARN", "spark_python_yarn_client", "yarn"),
    Way("EG's, YARN", "stock_yarn_client", "yarn", prelude=STOCK_SESSION),
    Way("ours, Scala, standalone", "spark_scala_standalone", "spark", language="scala"),
)


def stock(lab: Lab, role: str) -> dict[str, Any]:
    """Return a kernelspec of Enterprise Gateway's proxy and launcher: what its run.sh executes, without the shell."""
    master = cluster(lab, "spark").address if role == "spark" else "yarn"
    options = ["--master", master, "--deploy-mode", "client", "--name", "{kernel_id}"]
    argv = ["/opt/spark/bin/spark-submit", *options, LAUNCHER]
    for option in ("kernel-id", "response-address", "public-key", "port-range"):
        argv += [f"--RemoteProcessProxy.{option}", "{" + option.replace("-", "_") + "}"]
    env = {
        "SPARK_HOME": "/opt/spark",
        "PYSPARK_PYTHON": "/opt/kernel/bin/python",
        "HADOOP_CONF_DIR": "/etc/hadoop",
        **ENV,
    }
    return {
        "language": "python",
        "display_name": "stock",
        "metadata": {"process_proxy": {"class_name": STOCK}},
        "env": env,
        "argv": [*argv, "--RemoteProcessProxy.spark-context-initialization-mode", "none"],
    }


def memory(lab: Lab, kernel_id: str) -> float:
    """Return the MB (proportional set size, so that shared pages count once) of all processes with the kernel's id."""
    script = f"""for p in $(grep -l {kernel_id} /proc/[0-9]*/environ 2>/dev/null); do
        cat $(dirname $p)/smaps_rollup 2>/dev/null; done | awk '/^Pss:/ {{s += $2}} END {{print s+0}}'"""
    return sum(float(node.exec(["sh", "-c", script]).stdout or 0) for node in lab.nodes) / 1024


def agent_seconds(node: Node) -> float:
    """Return the CPU seconds that the agent on *node* has used."""
    ticks = "for p in $(pgrep -f 'eg-distributed.*zip agent'); do cut -d' ' -f14,15 /proc/$p/stat; done"
    script = ticks + " | awk '{s += $1 + $2} END {print s / 100}'"
    return float(node.exec(["sh", "-c", script]).stdout or 0)


async def measure(way: Way, client: GatewayClient, lab: Lab) -> None:
    """One round: start, two jobs, memory, shutdown."""
    on = cluster(lab, way.role)
    before = sum(map(agent_seconds, lab.nodes))
    began = time.perf_counter()
    kernel: Kernel = await client.start_kernel(way.spec, env={"KERNEL_USERNAME": "bench"}, timeout=120)
    await kernel.connect(120)
    way.note("start", time.perf_counter() - began)
    cell = await kernel.execute(way.prelude + COUNT[way.language], 180)
    if cell.status != "ok":
        raise SystemExit(f"{way.label}: {cell.errors}")
    way.note("first_job", time.perf_counter() - began)
    again = time.perf_counter()
    await kernel.execute(COUNT[way.language], 120)
    way.note("second_job", time.perf_counter() - again)
    way.note("memory", await asyncio.to_thread(memory, lab, kernel.id))
    way.note("agent_cpu", sum(map(agent_seconds, lab.nodes)) - before)
    ending = time.perf_counter()
    await kernel.delete(120)
    way.note("shutdown", time.perf_counter() - ending)
    ended = {"FINISHED", "FAILED", "KILLED"}
    while [app for app in on.applications() if app.name == kernel.id and app.state not in ended]:
        if time.perf_counter() - ending > 120:
            break
        await asyncio.sleep(0.05)
    way.note("gone", time.perf_counter() - ending)


def table(ways: list[Way]) -> str:
    """Return the medians as a Markdown table."""
    lines = ["| | " + " | ".join(way.label for way in ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for name, title in ROWS:
        values = [f"{statistics.median(way.figures[name]):.2f}" if way.figures.get(name) else "" for way in ways]
        lines.append(f"| {title} | " + " | ".join(values) + " |")
    return "\n".join(lines)


async def run(ways: list[Way], rounds: int, gateways: dict[bool, Gateway], lab: Lab) -> None:
    """All ways, *rounds* times, one kernel at a time."""
    for number in range(rounds + 1):
        for way in ways:
            async with GatewayClient(gateways[way.spec.startswith("stock")].url) as client:
                await measure(way, client, lab)
            if number == 0:
                way.figures.clear()  # connections, and files that come from the disk for the first time


def main() -> int:
    """Measure, print the table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to keep all figures")
    parser.add_argument("--only", action="append", help="a kernelspec; repeatable")
    options = parser.parse_args()
    lab = Lab.up(NAME, nodes=2, driver="docker", clusters=("spark", "yarn"))
    ours = specs()
    theirs = {"stock_standalone": stock(lab, "spark"), "stock_yarn_client": stock(lab, "yarn")}
    timeout = {"EG_KERNEL_LAUNCH_TIMEOUT": "120"}
    gateways = {
        False: lab.add_gateway("bench-ours", kernelspecs=ours, env=timeout),
        # The stock proxy slows the whole gateway that it was used in.
        True: lab.add_gateway("bench-stock", kernelspecs=theirs, env=timeout),
    }
    assert DEFAULT_GATEWAY not in {gateway.name for gateway in gateways.values()}
    ways = [way for way in WAYS if not options.only or way.spec in options.only]
    try:
        asyncio.run(run(ways, options.rounds, gateways, lab))
    finally:
        for gateway in gateways.values():
            gateway.stop()
            gateway.remove()
    print(table(ways))
    if options.json is not None:
        options.json.write_text(json.dumps({way.label: way.figures for way in ways}, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
