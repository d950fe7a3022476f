"""Python kernels whose driver runs on a node and whose executors run on a real master and a real YARN."""

from __future__ import annotations

import asyncio
import time

import pytest

from lab import Lab
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel, host_of
from tests.integration.conftest import until
from tests.integration.spark_lab import (
    END_SECONDS,
    KILLED_SECONDS,
    SESSION_SECONDS,
    applications,
    driver,
    ended,
    nothing_left,
    role_of,
    running,
    spark_client,
    spark_gateway,
    spark_lab,
)

__all__ = ["spark_client", "spark_gateway", "spark_lab"]

SPECS = ("spark_python_standalone", "spark_python_yarn_client")
pytestmark = pytest.mark.timeout(400)
SLEEPER = """
import time
def slow(x):
    time.sleep(60)
    return x
print("begun", flush=True)
sc.parallelize(range(2), 2).map(slow).count()
"""


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
    assert time.monotonic() - began < 5  # the session is being made beside it
    # Executors, named as the kernel is, on nodes.
    said = await kernel.execute("print(spark.range(1000).count())", SESSION_SECONDS)
    assert said.status == "ok", said.errors
    assert said.stdout == "1000\n"
    (application,) = running(on, kernel.id)
    assert f"application {application.id}" in said.stderr
    assert application.nodes
    assert set(application.nodes) <= {node.name for node in spark_lab.nodes}
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
    cell = await kernel.begin(SLEEPER)
    await cell.printed("begun")
    await until_active(kernel, spark_lab)
    began = time.monotonic()
    await asyncio.gather(kernel.interrupt(), kernel.interrupt())
    result = await cell.result(SESSION_SECONDS)
    assert result.status == "error"
    assert time.monotonic() - began < 20
    assert await kernel.evaluate("len(sc.statusTracker().getActiveStageIds())", SESSION_SECONDS) == 0
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
    await nothing_left(spark_lab, [kernel.id])


async def until_active(kernel: Kernel, lab: Lab) -> None:
    """Wait until an executor runs the kernel's Python code."""

    def busy() -> bool:
        return any("pyspark.daemon" in node.exec(["ps", "-eo", "args="]).stdout for node in lab.nodes)

    await until("a worker runs the code", busy, timeout=SESSION_SECONDS)


@pytest.mark.parametrize("spec", SPECS)
async def test_a_killed_kernel_leaves_nothing(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """SIGKILL of the kernel: no JVM, no executor, no application and no staging folder after 15 s."""
    on = cluster(spark_lab, role_of(spec))
    kernel = await spark_client.start_kernel(spec)
    assert await count(kernel) == 1000
    pid = int(await kernel.evaluate("__import__('os').getpid()"))
    host = await host_of(kernel)
    (before,) = running(on, kernel.id)
    node = spark_lab.node(host.partition(".")[0])
    assert driver(spark_lab, kernel.id)[node.name]
    node.exec(["kill", "-9", str(pid)]).check()
    # The gateway restarts it, as it does with every kernel that died: the one before has left, all the same.
    await until(
        "its application has ended",
        lambda: before.id not in [found.id for found in running(on, kernel.id)],
        timeout=KILLED_SECONDS,
    )
    await kernel.delete()
    await nothing_left(spark_lab, [kernel.id])


@pytest.mark.parametrize("spec", SPECS)
async def test_drivers_are_spread_and_pinned(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """Balancing and pins hold for Spark kernels as for others."""
    kernels = await spark_client.start_kernels(2, spec)
    hosts = {await host_of(kernel) for kernel in kernels}
    assert hosts == {node.name for node in spark_lab.nodes}
    await spark_client.close_kernels()
    for name in sorted(hosts):
        kernel = await spark_client.start_kernel(spec, env={"KERNEL_REMOTE_HOST": name})
        assert await host_of(kernel) == name
        await kernel.delete()
