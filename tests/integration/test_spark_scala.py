"""Scala kernels (Toree) whose driver runs on a node and whose executors run on a real master and a real YARN."""

from __future__ import annotations

import asyncio
import time

import pytest

from lab import Lab
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel, Result
from tests.integration.spark_lab import (
    END_SECONDS,
    KILLED_SECONDS,
    SESSION_SECONDS,
    applications,
    ended,
    nothing_left,
    on_executors,
    role_of,
    running,
    say,
)

SPECS = ("spark_scala_standalone", "spark_scala_yarn_client")
pytestmark = pytest.mark.timeout(500)
PLUGINS = (
    "println(new org.apache.toree.plugins.PluginSearcher().internal.map(_.name).toSet == "
    "kernel.pluginManager.plugins.map(_.name).toSet && kernel.pluginManager.plugins.nonEmpty)"
)
"""Whether all plugins are there that Toree's own search finds in its jar."""
SLEEPERS = {
    "rdd": "sc.parallelize(1 to 1, 1).map { x => Thread.sleep(60000); x }.count()",
    "dataset": "spark.range(0, 1, 1, 1).map(x => { Thread.sleep(60000); 1L })(org.apache.spark.sql.Encoders.scalaLong).count()",
}


async def interrupted(kernel: Kernel, code: str, active: bool) -> tuple[Result, float]:
    """Run *code*, interrupt it twice once it (or, *active*, its job) runs; return its end, and the seconds till then."""
    watch = "while (sc.statusTracker.getActiveStageIds.isEmpty) Thread.sleep(20)" if active else ""
    spoken = f'new Thread {{ override def run(): Unit = {{ {watch}; out.println("begun") }} }}.start()'
    cell = await kernel.begin(f"val out = Console.out\n{spoken}\n{code}")
    await cell.printed("begun", SESSION_SECONDS)
    began = time.monotonic()
    await asyncio.gather(kernel.interrupt(), kernel.interrupt())
    return await cell.result(SESSION_SECONDS), time.monotonic() - began


async def interrupted_early(kernel: Kernel) -> None:
    """Assert that a cell that waits for the interpreter of a kernel which has just answered can be interrupted."""
    for _ in range(3):
        early = asyncio.ensure_future(kernel.execute("while (true) Thread.sleep(10)", SESSION_SECONDS))
        while not early.done():
            await kernel.interrupt()  # again, where one came before the cell did
            await asyncio.wait([early], timeout=0.5)
        reply = early.result().reply
        assert reply["status"] == "error"
        if reply["evalue"] == "interrupted before the interpreter was there":
            return
        assert "InterruptedException" in f"{reply['ename']}: {reply['evalue']}"
        await kernel.restart(timeout=SESSION_SECONDS)  # the machine was busy with something else for seconds
    pytest.fail(f"the interpreter was always there before the interrupt: {reply}")


@pytest.mark.parametrize("spec", SPECS)
async def test_a_scala_notebook_on_a_cluster(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """Jobs and closures run on executors, interrupts end a cell and neither kernel nor session, and nothing stays."""
    on = cluster(spark_lab, role_of(spec))
    kernel = await spark_client.start_kernel(spec)
    await interrupted_early(kernel)
    # Interrupts before there is a session: nothing while idle, the end of a cell otherwise, and no session for it.
    await kernel.interrupt()
    await kernel.interrupt()
    # Printed, and the error by its reply: Toree sends results and errors beside the `idle` that ends an output, in any order.
    assert (await say(kernel, "println(1 + 1)")).stdout.endswith("2\n")
    result, _ = await interrupted(kernel, "Thread.sleep(60000)", active=False)
    assert result.status == "error"
    # Toree says one or the other: what its interpreter has thrown, or what that has printed of it.
    assert "InterruptedException" in f"{result.reply['ename']}: {result.reply['evalue']}"
    assert applications(on, kernel.id) == []
    assert "%lsmagic" in (await say(kernel, "%LsMagic")).stdout.lower()
    assert (await say(kernel, PLUGINS)).stdout.endswith("true\n")
    # Executors, named as the kernel is, on nodes; closures, with a class of the notebook's own.
    application = await on_executors(spark_lab, kernel)
    assert (await say(kernel, 'println(sqlContext.sql("select 5 as five").first)')).stdout.endswith("[5]\n")
    closure = (
        "case class Seen(host: String, square: Int)\n"
        "val seen = sc.parallelize(1 to 4, 2).map(x => Seen(java.net.InetAddress.getLocalHost.getHostName, x * x)).collect\n"
        'println(seen.map(_.square).sum + " " + seen.map(_.host).toSet.mkString(","))'
    )
    total, hosts = (await say(kernel, closure)).stdout.strip().splitlines()[-1].split(" ")
    assert total == "30"
    assert {host.partition(".")[0] for host in hosts.split(",")} <= {
        node.name.partition(".")[0] for node in spark_lab.nodes
    }
    # Interrupts of jobs: the tasks' threads, too, or the next job would wait for the only core.
    for code in SLEEPERS.values():
        result, took = await interrupted(kernel, code, active=True)
        assert result.status == "error"
        assert took < 20
        began = time.monotonic()
        assert (await say(kernel, "println(spark.range(77).count())")).stdout.endswith("77\n")
        assert time.monotonic() - began < 30
    assert [found.id for found in running(on, kernel.id)] == [application.id]
    # A restart: another application, the same name.
    await kernel.restart(timeout=SESSION_SECONDS)
    assert (await kernel.execute("seen", SESSION_SECONDS)).status == "error"
    assert (await say(kernel, "println(spark.range(1000).count())")).stdout.endswith("1000\n")
    (again,) = running(on, kernel.id)
    assert again.id != application.id
    # The end.
    began = time.monotonic()
    await kernel.delete()
    assert time.monotonic() - began < END_SECONDS
    await ended(on, kernel.id, KILLED_SECONDS)
    await nothing_left(spark_lab)
