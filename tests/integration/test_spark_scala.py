"""Scala kernels (Toree) whose driver runs on a node and whose executors run on a real master and a real YARN."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from lab import Gateway, Lab
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel, Result
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

SPECS = ("spark_scala_standalone", "spark_scala_yarn_client")
pytestmark = pytest.mark.timeout(500)
START_SECONDS = 60.0
SLEEPERS = {
    "rdd": "sc.parallelize(1 to 1, 1).map { x => Thread.sleep(60000); x }.count()",
    "dataset": "spark.range(0, 1, 1, 1).map(x => { Thread.sleep(60000); 1L })(org.apache.spark.sql.Encoders.scalaLong).count()",
}


async def say(kernel: Kernel, code: str, timeout: float = SESSION_SECONDS) -> Result:
    """Run a cell that has to succeed."""
    result = await kernel.execute(code, timeout)
    assert result.status == "ok", (result.errors, result.stdout)
    return result


async def interrupted(kernel: Kernel, code: str, active: bool) -> tuple[Result, float]:
    """Run *code*, interrupt it twice once it (or, *active*, its job) runs; return its end, and the seconds till then."""
    watch = "while (sc.statusTracker.getActiveStageIds.isEmpty) Thread.sleep(20)" if active else ""
    spoken = f'new Thread {{ override def run(): Unit = {{ {watch}; out.println("begun") }} }}.start()'
    cell = await kernel.begin(f"val out = Console.out\n{spoken}\n{code}")
    await cell.printed("begun", SESSION_SECONDS)
    began = time.monotonic()
    await asyncio.gather(kernel.interrupt(), kernel.interrupt())
    return await cell.result(SESSION_SECONDS), time.monotonic() - began


@pytest.mark.parametrize("spec", SPECS)
async def test_a_scala_notebook_on_a_cluster(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """Jobs and closures run on executors, interrupts end a cell and neither kernel nor session, and nothing stays."""
    on = cluster(spark_lab, role_of(spec))
    kernel = await spark_client.start_kernel(spec)
    # Interrupts before there is a session: nothing while idle, the end of a cell otherwise, and no session for it.
    await kernel.interrupt()
    await kernel.interrupt()
    # Printed, and the error by its reply: Toree sends results and errors beside the `idle` that ends an output, in any order.
    assert (await say(kernel, "println(1 + 1)", START_SECONDS)).stdout.endswith("2\n")
    result, _ = await interrupted(kernel, "Thread.sleep(60000)", active=False)
    assert result.status == "error"
    assert "InterruptedException" in str(result.reply["evalue"])
    assert applications(on, kernel.id) == []
    assert "%lsmagic" in (await say(kernel, "%LsMagic")).stdout.lower()
    # Executors, named as the kernel is, on nodes; closures, with a class of the notebook's own.
    assert (await say(kernel, "println(spark.range(1000).count())")).stdout.endswith("1000\n")
    (application,) = running(on, kernel.id)
    assert application.nodes
    assert set(application.nodes) <= {node.name for node in spark_lab.nodes}
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
    assert (await kernel.execute("seen", START_SECONDS)).status == "error"
    assert (await say(kernel, "println(spark.range(1000).count())")).stdout.endswith("1000\n")
    (again,) = running(on, kernel.id)
    assert again.id != application.id
    # The end.
    began = time.monotonic()
    await kernel.delete()
    assert time.monotonic() - began < END_SECONDS
    await ended(on, kernel.id, KILLED_SECONDS)
    await nothing_left(spark_lab, [kernel.id])


@pytest.mark.parametrize("spec", SPECS)
async def test_a_killed_scala_kernel_leaves_nothing(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """SIGKILL of the driver: its application has ended after 15 s."""
    on = cluster(spark_lab, role_of(spec))
    kernel = await spark_client.start_kernel(spec)
    assert (await say(kernel, "println(spark.range(1000).count())")).stdout.endswith("1000\n")
    (before,) = running(on, kernel.id)
    for name, pids in driver(spark_lab, kernel.id).items():
        jvm = [
            pid for pid in pids if "SparkSubmit" in spark_lab.node(name).exec(["cat", f"/proc/{pid}/cmdline"]).stdout
        ]
        if jvm:
            spark_lab.node(name).exec(["kill", "-9", str(jvm[0])]).check()
    await ended_one(spark_lab, spec, kernel.id, before.id)
    await kernel.delete()
    await nothing_left(spark_lab, [kernel.id])


async def ended_one(lab: Lab, spec: str, kernel_id: str, application: str) -> None:
    """Wait until this application of the kernel has ended; its gateway starts the kernel again meanwhile."""
    deadline = time.monotonic() + KILLED_SECONDS
    while application in [found.id for found in running(cluster(lab, role_of(spec)), kernel_id)]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


def test_its_own_client_tests_pass(spark_lab: Lab, spark_gateway: Gateway) -> None:
    """Enterprise Gateway's integration tests of spark_scala_yarn_client, as it ships them, pass on YARN."""
    settings = {
        "GATEWAY_HOST": "127.0.0.1:8888",
        "ITEST_HOSTNAME_PREFIX": "node",
        "KERNEL_USERNAME": "lab",
        "KERNEL_LAUNCH_TIMEOUT": "60",
        "SCALA_KERNEL_CLIENT_NAME": "spark_scala_yarn_client",
        "EXPECTED_APPLICATION_ID": "application_*",
        "EXPECTED_SPARK_VERSION": "3.5.*",
        "EXPECTED_SPARK_MASTER": "yarn",
        "EXPECTED_DEPLOY_MODE": "client",
    }
    environment = [f"{name}={value}" for name, value in settings.items()]
    suite = "enterprise_gateway.itests.test_scala_kernel"
    argv = ["env", *environment, spark_gateway.python, "-m", "unittest", "-v", "-k", "Client", suite]
    done = spark_gateway.exec(argv, timeout=300)
    said = done.stderr + done.stdout
    ran = re.search(r"^Ran (\d+) tests", said, re.MULTILINE)
    assert ran is not None, said
    assert int(ran[1]) == 8, said
    failed = re.findall(r"^(?:FAIL|ERROR): (\w+)", said, re.MULTILINE)
    assert failed == [], said
