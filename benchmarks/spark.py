"""Measure Spark kernels by our launchers beside Enterprise Gateway's own, in one run on one lab: `nox -s bench`.

Enterprise Gateway's Python launcher can't make its session on PySpark 3.3 and later, so there the first cell makes it. Its Scala
and R launchers can't be had here: the one is a jar that its releases build, the other needs SparkR and R's argparse.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import this_machine, today
from lab import Gateway, Lab, Node
from lab.drivers.spark_kernelspecs import ENV, NEEDS, SITE
from lab.kernelspecs import LAUNCHER, STOCK
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel
from tests.integration.spark_lab import COUNT, language_of, role_of, specs

STOCK_SESSION = "from pyspark.sql import SparkSession; spark = SparkSession.builder.getOrCreate()\n"
SUM = {"python": "print(1 + 1)", "scala": "println(1 + 1)", "R": "cat(1 + 1)"}
ROWS = (
    ("cold", "its very first start → kernel_info_reply (s)"),
    ("cold_cpu", "CPU of the kernel's processes in that time (s)"),
    ("start", "later starts → kernel_info_reply (s)"),
    ("answer", "cell `1 + 1` right after that (s)"),
    ("first_job", "start → first job done (s)"),
    ("second_job", "next job (s)"),
    ("memory", "memory of the kernel on its node, driver's JVM included (MB)"),
    ("shutdown", "DELETE → answer (s)"),
    ("gone", "DELETE → the cluster has ended the application (s)"),
    ("agent_cpu", "CPU of our agents on the nodes meanwhile (s)"),
)
PROMISED = {
    ("cold", "python"): 1.2,
    ("start", "python"): 1.2,
    ("cold", "scala"): 5.0,
    ("start", "scala"): 5.0,
    **{("answer", language): 5.0 for language in COUNT},
    **{("shutdown", language): 3.0 for language in COUNT},
}
"""Seconds that a row must stay below, by language."""


@dataclass
class Way:
    """One kernelspec, named by its language and its cluster."""

    label: str
    spec: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    @property
    def theirs(self) -> bool:
        """Whether proxy and launcher are Enterprise Gateway's own."""
        return self.spec.startswith("stock")

    def note(self, name: str, value: float) -> None:
        """Keep one figure of one round."""
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        """Return the median of a row over all rounds, None where there is no figure."""
        return statistics.median(self.figures[name]) if self.figures.get(name) else None

    def misses(self) -> list[str]:
        """Return which of our figures are above what is promised, in words."""
        found = []
        for name, title in ROWS:
            limit, value = PROMISED.get((name, language_of(self.spec))), self.median(name)
            if limit is not None and value is not None and value > limit and not self.theirs:
                found.append(f"{self.label}: {title}: {value:.2f}, promised {limit:g}")
        return found


WAYS = (
    Way("Python, standalone", "spark_python_standalone"),
    Way("EG's Python, standalone", "stock_python_standalone"),
    Way("Python, YARN", "spark_python_yarn_client"),
    Way("EG's Python, YARN", "stock_python_yarn_client"),
    Way("Scala, standalone", "spark_scala_standalone"),
    Way("Scala, YARN", "spark_scala_yarn_client"),
    Way("R, standalone", "spark_R_standalone"),
    Way("R, YARN", "spark_R_yarn_client"),
)


def stock(lab: Lab, role: str) -> dict[str, Any]:
    """Return a kernelspec of Enterprise Gateway's proxy and launcher: what its run.sh executes, without the shell."""
    master = cluster(lab, "spark").address if role == "spark" else "yarn"
    options = ["--master", master, "--deploy-mode", "client", "--name", "{kernel_id}"]
    argv = [f"{SITE.spark_home}/bin/spark-submit", *options, LAUNCHER]
    for option in ("kernel-id", "response-address", "public-key", "port-range"):
        argv += [f"--RemoteProcessProxy.{option}", "{" + option.replace("-", "_") + "}"]
    env = {
        "SPARK_HOME": str(SITE.spark_home),
        "PYSPARK_PYTHON": str(SITE.python),
        "HADOOP_CONF_DIR": str(SITE.hadoop_conf_dir),
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


def cpu_seconds(lab: Lab, kernel_id: str) -> float:
    """Return the CPU seconds that all processes with the kernel's id have used."""
    script = f"""for p in $(grep -l {kernel_id} /proc/[0-9]*/environ 2>/dev/null); do
        cut -d' ' -f14,15 $(dirname $p)/stat 2>/dev/null; done | awk '{{s += $1 + $2}} END {{print s / 100}}'"""
    return sum(float(node.exec(["sh", "-c", script]).stdout or 0) for node in lab.nodes)


def agent_seconds(node: Node) -> float:
    """Return the CPU seconds that the agent on *node* has used."""
    ticks = "for p in $(pgrep -f 'eg-distributed.*zip agent'); do cut -d' ' -f14,15 /proc/$p/stat; done"
    script = ticks + " | awk '{s += $1 + $2} END {print s / 100}'"
    return float(node.exec(["sh", "-c", script]).stdout or 0)


async def measure(way: Way, client: GatewayClient, lab: Lab, *, cold: bool = False) -> None:
    """One round: start, a cell, two jobs, memory, shutdown; *cold* looks at the start's CPU, which takes time itself."""
    on, language = cluster(lab, role_of(way.spec)), language_of(way.spec)
    before = sum(map(agent_seconds, lab.nodes))
    began = time.perf_counter()
    kernel: Kernel = await client.start_kernel(way.spec, env={"KERNEL_USERNAME": "bench"}, timeout=120)
    await kernel.connect(120)
    way.note("start", time.perf_counter() - began)
    if cold:
        way.note("cold_cpu", await asyncio.to_thread(cpu_seconds, lab, kernel.id))
    asked = time.perf_counter()
    await run(kernel, SUM[language])
    way.note("answer", time.perf_counter() - asked)
    await run(kernel, (STOCK_SESSION if way.theirs else "") + COUNT[language])
    way.note("first_job", time.perf_counter() - began)
    again = time.perf_counter()
    await run(kernel, COUNT[language])
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


async def run(kernel: Kernel, code: str) -> None:
    """Run a cell; end the benchmark with its error if it has one."""
    cell = await kernel.execute(code, 180)
    if cell.status != "ok":
        raise SystemExit(f"{kernel.kernelspec}: {cell.errors}")


async def measure_all(ways: list[Way], rounds: int, gateways: dict[bool, Gateway], lab: Lab) -> None:
    """All ways, *rounds* times, one kernel at a time; the first round of all counts as cold starts alone."""
    for number in range(rounds + 1):
        for way in ways:
            async with GatewayClient(gateways[way.theirs].url) as client:
                await measure(way, client, lab, cold=number == 0)
            if number == 0:  # it pays for connections, and for files that come from the disk for the first time
                way.figures = {"cold": way.figures["start"], "cold_cpu": way.figures["cold_cpu"]}
            print(f"  {number}: {way.label}", file=sys.stderr, flush=True)


def table(ways: list[Way]) -> str:
    """Return the medians as a Markdown table."""
    lines = ["| | " + " | ".join(way.label for way in ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for name, title in ROWS:
        values = [way.median(name) for way in ways]
        cells = ["" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in values]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print the table, keep the figures; called by `nox -s bench`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a kernelspec; repeatable")
    parser.add_argument("--json", type=Path, default=Path(".bench/spark.json"), help="where the figures go")
    parser.add_argument("--docs", type=Path, help="a folder for figures-spark.md as well")
    parser.add_argument("--keep", action="store_true", help="keep the lab afterwards")
    options = parser.parse_args()
    ways = [way for way in WAYS if not options.only or way.spec in options.only]
    timeout = {"EG_KERNEL_LAUNCH_TIMEOUT": "120"}
    load = os.getloadavg()[0]
    lab = Lab.up("bench-spark", nodes=2, driver="docker", clusters=("spark", "yarn"))
    try:
        theirs = {f"stock_python_{end}": stock(lab, role) for end, role in NEEDS.items()}
        gateways = {
            False: lab.add_gateway("ours", kernelspecs=specs(), env=timeout),
            # The stock proxy slows the whole gateway that it was used in.
            True: lab.add_gateway("theirs", kernelspecs=theirs, env=timeout),
        }
        asyncio.run(measure_all(ways, options.rounds, gateways, lab))
    finally:
        if not options.keep:
            lab.down()
    text, misses = table(ways), [miss for way in ways for miss in way.misses()]
    print(text, *misses, sep="\n")
    machine, when = this_machine(load), today()
    result = {"date": when, "machine": machine, "ways": {way.label: way.figures for way in ways}, "misses": misses}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if options.docs is not None:
        missed = "\n".join(f"- {miss}" for miss in misses) or "None."
        page = _PAGE.format(table=text, date=when, machine=machine, rounds=options.rounds, misses=missed)
        (options.docs / "figures-spark.md").write_text(page, "utf-8")
    return 0


_PAGE = """# Figures of Spark kernels

Measured by `nox -s bench -- --docs docs` on {date} ({machine}): one run, one lab of two nodes with
a standalone master and YARN in containers on one machine, one kernel at a time, medians of {rounds} rounds. `EG's` are Enterprise
Gateway's own proxy and launcher, in a gateway of their own, with the same Spark, nodes and settings.

{table}
## Above what is promised

A kernel answers kernel_info within 1.2 s (Python) or 5 s (Scala), a cell without Spark within 5 s, and DELETE within 3 s.

{misses}

## How to read them

- Gateway, masters, workers, drivers, executors and the client share the cores of one machine, with whatever else it does (its
  load above); the CPU that a start takes says what it would be where cores are free.
- Our Python kernel answers before Spark's JVM is begun, R beside it; Enterprise Gateway starts Python by spark-submit, so that
  a JVM comes first. Toree is a JVM itself, and answers before its interpreter is there: its row of `1 + 1` holds the rest.
- Enterprise Gateway's Python launcher can't make its session on PySpark 3.3 and later: it was told to make none, and the first
  cell made it. Its Scala launcher is a jar that only its releases build, and its R launcher needs the packages SparkR and
  argparse: neither can be had from where the lab's images come from, so they have no column.
- The agents' CPU is that from the request to the second job's end. Enterprise Gateway has no agent.
"""


if __name__ == "__main__":
    sys.exit(main())
