"""R kernels (IRkernel, no SparkR) whose driver runs on a node and whose executors run on a real master and a real YARN."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from lab import Gateway, Lab
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel, Result
from tests.integration.conftest import until
from tests.integration.spark_lab import (
    END_SECONDS,
    KILLED_SECONDS,
    SESSION_SECONDS,
    ended,
    nothing_left,
    role_of,
    running,
    spark_client,
    spark_gateway,
    spark_lab,
)

__all__ = ["spark_client", "spark_gateway", "spark_lab"]

SPECS = ("spark_R_standalone", "spark_R_yarn_client")
pytestmark = pytest.mark.timeout(500)
SLEEPERS = {
    "sql": 'count(sql("select max(sha2(cast(id as string), 512)) m from range(0, 100000000000, 1, 1)")$repartition(2L))',
    "closure": "spark.lapply(list(1), function(x) { Sys.sleep(60); x })",
}


async def say(kernel: Kernel, code: str, timeout: float = SESSION_SECONDS) -> Result:
    """Run a cell that has to succeed."""
    result = await kernel.execute(code, timeout)
    assert result.status == "ok", (result.errors, result.stdout)
    return result


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
    assert time.monotonic() - began < 5  # the JVM starts beside it
    result, took = await interrupted(kernel, "Sys.sleep(60)")
    assert took < 5
    assert result.status in ("abort", "aborted", "error")
    # Executors, named as the kernel is, on nodes; rows, and a closure with what it uses.
    assert "1000" in (await say(kernel, "count(spark$range(1000))")).text
    (application,) = running(on, kernel.id)
    assert application.nodes
    assert set(application.nodes) <= {node.name for node in spark_lab.nodes}
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
        await until("an executor is busy", lambda: busy(spark_lab), timeout=SESSION_SECONDS)
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
    await nothing_left(spark_lab, [kernel.id])


def busy(lab: Lab) -> bool:
    """Whether an executor's task runs, or an R that one has started."""
    listed = [line for node in lab.nodes for line in node.exec(["ps", "-eLo", "comm=,stat=,args="]).stdout.splitlines()]
    tasks = [line for line in listed if line.startswith("Executor task") and " R" in line[:24]]
    return bool(tasks) or any(".work()" in line for line in listed)


@pytest.mark.parametrize("spec", SPECS)
async def test_a_killed_r_kernel_leaves_nothing(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """SIGKILL of R: its JVM goes, and its application has ended after 15 s."""
    on = cluster(spark_lab, role_of(spec))
    kernel = await spark_client.start_kernel(spec)
    assert "1000" in (await say(kernel, "count(spark$range(1000))")).text
    (before,) = running(on, kernel.id)
    pid, host = (await say(kernel, 'cat(Sys.getpid(), Sys.info()[["nodename"]])')).stdout.split()
    spark_lab.node(host.partition(".")[0]).exec(["kill", "-9", pid]).check()
    await until(
        "its application has ended",
        lambda: before.id not in [found.id for found in running(on, kernel.id)],
        timeout=KILLED_SECONDS,
    )
    await kernel.delete()
    await nothing_left(spark_lab, [kernel.id])


def test_its_own_client_tests_pass(spark_lab: Lab, spark_gateway: Gateway) -> None:
    """Enterprise Gateway's integration tests of spark_R_yarn_client pass on YARN, but for the one that wants SparkR itself."""
    settings = {
        "GATEWAY_HOST": "127.0.0.1:8888",
        "ITEST_HOSTNAME_PREFIX": "node",
        "KERNEL_USERNAME": "lab",
        "KERNEL_LAUNCH_TIMEOUT": "60",
        "R_KERNEL_CLIENT_NAME": "spark_R_yarn_client",
        "EXPECTED_APPLICATION_ID": "application_*",
        "EXPECTED_SPARK_VERSION": "3.5.*",
        "EXPECTED_SPARK_MASTER": "yarn",
        "EXPECTED_DEPLOY_MODE": "client",
    }
    environment = [f"{name}={value}" for name, value in settings.items()]
    suite = "enterprise_gateway.itests.test_r_kernel"
    argv = ["env", *environment, spark_gateway.python, "-m", "unittest", "-v", "-k", "Client", suite]
    done = spark_gateway.exec(argv, timeout=300)
    said = done.stderr + done.stdout
    ran = re.search(r"^Ran (\d+) tests", said, re.MULTILINE)
    assert ran is not None, said
    assert int(ran[1]) == 8, said
    failed = re.findall(r"^(?:FAIL|ERROR): (\w+)", said, re.MULTILINE)
    assert failed == ["test_get_application_id"], said
