"""R kernels (IRkernel, no SparkR) whose driver runs on a node and whose executors run on a real master and a real YARN."""

from __future__ import annotations

import asyncio
import time

import pytest

from lab import Lab
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel, Result
from tests.integration.spark_lab import (
    ANSWER_SECONDS,
    END_SECONDS,
    KILLED_SECONDS,
    SESSION_SECONDS,
    ended,
    nothing_left,
    on_executors,
    role_of,
    running,
    say,
)
from tests.until import until_in_thread

SPECS = ("spark_R_standalone", "spark_R_yarn_client")
pytestmark = pytest.mark.timeout(500)
SLEEPERS = {
    "sql": 'count(sql("select max(sha2(cast(id as string), 512)) m from range(0, 100000000000, 1, 1)")$repartition(2L))',
    "closure": "spark.lapply(list(1), function(x) { Sys.sleep(60); x })",
}


async def interrupted(kernel: Kernel, code: str) -> tuple[Result, float]:
    """Run *code*, interrupt it twice once it has begun; return its end, and the seconds till then."""
    cell = await kernel.begin(f'cat("begun\\n")\n{code}')
    await cell.printed("begun", SESSION_SECONDS)
    began = time.monotonic()
    await asyncio.gather(kernel.interrupt(), kernel.interrupt())
    return await cell.result(SESSION_SECONDS), time.monotonic() - began


@pytest.mark.parametrize("spec", SPECS)
async def test_an_r_notebook_on_a_cluster(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """Jobs and R closures run on executors, interrupts end a cell and neither kernel nor session, and nothing stays."""
    on = cluster(spark_lab, role_of(spec))
    kernel = await spark_client.start_kernel(spec)
    await kernel.interrupt()
    began = time.monotonic()
    assert "2" in (await say(kernel, "1 + 1")).text
    assert time.monotonic() - began < ANSWER_SECONDS  # the JVM starts beside it
    result, took = await interrupted(kernel, "Sys.sleep(60)")
    assert took < ANSWER_SECONDS
    assert result.status in ("abort", "aborted", "error")
    # Executors, named as the kernel is, on nodes; rows, and a closure with what it uses.
    application = await on_executors(spark_lab, kernel)
    rows = 'd <- collect(sql("select id, id * 2 as twice, cast(id as string) s from range(3)")); cat(sum(d$twice), d$s)'
    assert (await say(kernel, rows)).stdout == "6 0 1 2"
    await say(kernel, "offset <- 10\nsquare <- function(x) x * x")
    closure = 'r <- spark.lapply(list(1, 2, 3), function(x) list(square(x) + offset, Sys.info()[["nodename"]]))\n'
    closure += "cat(sapply(r, `[[`, 1), sapply(r, `[[`, 2))"
    said = (await say(kernel, closure)).stdout.split()
    assert said[:3] == ["11", "14", "19"]
    assert {host.partition(".")[0] for host in said[3:]} <= {node.name.partition(".")[0] for node in spark_lab.nodes}
    failed = await kernel.execute('spark.lapply(list(1), function(x) stop("of its own"))', SESSION_SECONDS)
    assert failed.status == "error"
    assert "of its own" in str(failed.errors[-1]["evalue"])
    assert (await say(kernel, 'cat(unlist(sparkR.conf("spark.submit.deployMode")))')).stdout == "client"
    # Interrupts of jobs, once they run; the executor's only core is free for the next one.
    for code in SLEEPERS.values():
        cell = await kernel.begin(code)
        await until_in_thread("an executor is busy", lambda: busy(spark_lab), seconds=SESSION_SECONDS)
        began = time.monotonic()
        await asyncio.gather(kernel.interrupt(), kernel.interrupt())
        result = await cell.result(SESSION_SECONDS)
        assert result.status != "ok"
        assert time.monotonic() - began < 20
        began = time.monotonic()
        assert "77" in (await say(kernel, "count(spark$range(77))")).text
        assert time.monotonic() - began < 30
    assert [found.id for found in running(on, kernel.id)] == [application.id]
    # A restart: another application, the same name.
    await kernel.restart(timeout=SESSION_SECONDS)
    assert (await say(kernel, 'cat(exists("square"))')).stdout == "FALSE"
    assert "1000" in (await say(kernel, "count(spark$range(1000))")).text
    (again,) = running(on, kernel.id)
    assert again.id != application.id
    # The end.
    began = time.monotonic()
    await kernel.delete()
    assert time.monotonic() - began < END_SECONDS
    await ended(on, kernel.id, KILLED_SECONDS)
    await nothing_left(spark_lab)


def busy(lab: Lab) -> bool:
    """Whether an executor's task runs, or an R that one has started."""
    listed = [line for node in lab.nodes for line in node.exec(["ps", "-eLo", "comm=,stat=,args="]).stdout.splitlines()]
    tasks = [line for line in listed if line.startswith("Executor task") and " R" in line[:24]]
    return bool(tasks) or any(".work()" in line for line in listed)
