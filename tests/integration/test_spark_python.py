"""Python kernels whose driver runs on a node and whose executors run on a real master and a real YARN."""

from __future__ import annotations

import asyncio
import time

import pytest

from lab import Lab
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel, host_of
from tests.integration.spark_lab import (
    ANSWER_SECONDS,
    END_SECONDS,
    KILLED_SECONDS,
    SESSION_SECONDS,
    appeared,
    applications,
    ended,
    nothing_left,
    on_executors,
    role_of,
    running,
    say,
)
from tests.until import until

SPECS = ("spark_python_standalone", "spark_python_yarn_client")
pytestmark = pytest.mark.timeout(400)
SLEEPER = """
import time
def slow(x):
    open({file!r}, "w").close()
    time.sleep(60)
    return x
sc.parallelize([1], 1).map(slow).count()
"""
"""A job whose only task says that it runs by a file on its node."""


async def count(kernel: Kernel, number: int = 1000) -> int:
    """Have executors count to *number*."""
    return int(await kernel.evaluate(f"spark.range({number}).count()", SESSION_SECONDS))


@pytest.mark.parametrize("spec", SPECS)
async def test_a_notebook_on_a_cluster(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """A kernel answers at once, its jobs run on executors, an interrupt ends a job and not the session, and nothing stays."""
    on = cluster(spark_lab, role_of(spec))
    kernel = await spark_client.start_kernel(spec)
    began = time.monotonic()
    assert await kernel.evaluate("1 + 1") == 2
    assert time.monotonic() - began < ANSWER_SECONDS  # the session is being made beside it
    # Executors, named as the kernel is, on nodes.
    first = await say(kernel, "print(spark.range(1000).count())")
    assert first.stdout == "1000\n"
    application = await on_executors(spark_lab, kernel)
    assert f"application {application.id}" in first.stderr
    # Code of the user's own, run by the workers' Python.
    udf = "from pyspark.sql.functions import udf\nprint(spark.range(4).select(udf(lambda x: x * x, 'long')('id')).collect())"
    assert "=9)" in (await kernel.execute(udf, SESSION_SECONDS)).stdout
    hosts = await kernel.evaluate(
        "sc.parallelize(range(2), 2).map(lambda _: __import__('socket').gethostname()).collect()", SESSION_SECONDS
    )
    assert set(hosts) <= {node.name for node in spark_lab.nodes}
    assert await kernel.evaluate("sc.appName") == kernel.id
    assert await kernel.evaluate("sc.getConf().get('spark.driver.host')") == await host_of(kernel)
    # An interrupt, and a second one.
    begun = f"/tmp/begun-{kernel.id}"
    cell = await kernel.begin(SLEEPER.format(file=begun))
    await appeared(spark_lab, begun)
    began = time.monotonic()
    await asyncio.gather(kernel.interrupt(), kernel.interrupt())
    result = await cell.result(SESSION_SECONDS)
    assert result.status == "error"
    assert time.monotonic() - began < 20

    async def idle() -> bool:
        return bool(await kernel.evaluate("len(sc.statusTracker().getActiveStageIds()) == 0", SESSION_SECONDS))

    await until("no stage is active", idle, seconds=20, pause=0.1)  # a cancel is a request to Spark's scheduler
    assert await count(kernel, 77) == 77
    assert [found.id for found in running(on, kernel.id)] == [application.id]
    # A restart: another application, the same name.
    await kernel.restart(timeout=SESSION_SECONDS)
    assert await kernel.evaluate("'udf' in globals()") is False
    assert await count(kernel) == 1000
    again = running(on, kernel.id)
    assert len(again) == 1
    assert again[0].id != application.id
    assert len(applications(on, kernel.id)) == 2
    # The end.
    began = time.monotonic()
    await kernel.delete()
    assert time.monotonic() - began < END_SECONDS
    await ended(on, kernel.id, KILLED_SECONDS)
    await nothing_left(spark_lab)
