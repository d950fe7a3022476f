"""What breaks while a Spark job runs: a worker, a NodeManager, a master, the gateway's way to the driver."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from lab import Gateway, Lab, faults
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel, Result, host_of
from tests.integration.faults import cut_ssh
from tests.integration.spark_lab import (
    role_of,
    running,
    say,
)
from tests.until import until, until_in_thread

pytestmark = pytest.mark.timeout(400)
STANDALONE, YARN = "spark_python_standalone", "spark_python_yarn_client"
TASKS = 24
JOB = """
import time
def slow(x):
    time.sleep(0.7)
    return x
print("begun", flush=True)
total = sc.parallelize(range({tasks}), {tasks}).map(slow).sum()
print("sum", total, flush=True)
open({done!r}, "w").close()
"""
JOB_SECONDS = 150.0
"""A lost NodeManager is noticed after 20 s, and its tasks are run again elsewhere."""


def done(kernel: Kernel) -> str:
    """Return the file that says on the driver's node that the job has ended."""
    return f"/tmp/job-done-{kernel.id}"


async def during(kernel: Kernel) -> asyncio.Task[Result]:
    """Begin the job, and return once some of its tasks are done."""
    await say(kernel, "sc.parallelize([1]).count()")
    cell = await kernel.begin(JOB.format(tasks=TASKS, done=done(kernel)))
    await cell.printed("begun")
    moving = asyncio.ensure_future(cell.result(JOB_SECONDS))
    # The cell shows how far it is after 3 s.
    await until(
        "some tasks are done", lambda: any("tasks done" in str(shown) for shown in cell.partial.displays), seconds=60
    )
    return moving


@pytest.mark.parametrize(("spec", "fault"), [(STANDALONE, "spark-worker-down"), (YARN, "yarn-nodemanager-down")])
@pytest.mark.long
async def test_a_job_outlives_a_node_of_its_executors(
    spark_lab: Lab, spark_client: GatewayClient, spec: str, fault: str
) -> None:
    """The worker or NodeManager with an executor is killed: the job completes on the others, and the kernel is as it was."""
    on = cluster(spark_lab, role_of(spec))
    # On YARN two executors of which one NodeManager has room for one: the application master's node has to stay, since without
    # it the application is over.
    options = "--num-executors 2 --executor-memory 900m" if spec == YARN else ""
    kernel = await spark_client.start_kernel(spec, env={"KERNEL_EXTRA_SPARK_OPTS": options})
    if spec == YARN:
        await say(kernel, "sc")
        await until_in_thread("there are two executors", lambda: running(on, kernel.id)[0].containers == 3, seconds=60)
    busy = await during(kernel)
    (application,) = running(on, kernel.id)
    if spec == YARN:
        master = on.ask(f"/ws/v1/cluster/apps/{application.id}")["app"]["amHostHttpAddress"].partition(":")[0]
        broken = next(node for node in spark_lab.nodes if node.name != master)
    else:
        (there,) = application.nodes
        broken = next(node for node in spark_lab.nodes if node.name == there)
    assert broken.name in application.nodes
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: faults.heal(spark_lab))
        faults.add(spark_lab, fault, [broken])
        assert not busy.done()
        result = await busy
        assert result.status == "ok", result.errors
        assert result.stdout.splitlines()[-1] == f"sum {sum(range(TASKS))}"
        assert await kernel.evaluate("spark.range(30).count()", JOB_SECONDS) == 30
        assert [found.id for found in running(on, kernel.id)] == [application.id]
    await asyncio.to_thread(on.wait_ready)


@pytest.mark.parametrize(("spec", "fault"), [(STANDALONE, "spark-master-down"), (YARN, "yarn-resourcemanager-down")])
@pytest.mark.long
async def test_a_job_outlives_its_master(spark_lab: Lab, spark_client: GatewayClient, spec: str, fault: str) -> None:
    """The master or the ResourceManager is killed mid-job: executors that are there finish it."""
    on = cluster(spark_lab, role_of(spec))
    kernel = await spark_client.start_kernel(spec)
    busy = await during(kernel)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: faults.heal(spark_lab))
        faults.add(spark_lab, fault, [on.machine])
        assert not busy.done()
        result = await busy
        assert result.status == "ok", result.errors
        assert result.stdout.splitlines()[-1] == f"sum {sum(range(TASKS))}"
    await asyncio.to_thread(on.wait_ready)


async def test_a_cut_loses_nothing_of_a_jobs_cell(
    spark_lab: Lab, spark_gateway: Gateway, spark_client: GatewayClient
) -> None:
    """SSH to the driver's node is cut for a while mid-job: the cell's output is whole, and the session goes on."""
    kernel = await spark_client.start_kernel(STANDALONE)
    node = spark_lab.node((await host_of(kernel)).partition(".")[0])
    busy = await during(kernel)
    with faults.add(spark_lab, "refuse", [node], port=22):  # nor does a new login get through until the job has ended
        assert cut_ssh(node, spark_gateway)
        assert not busy.done()
        assert node.exec(["ls", done(kernel)]).exit_code != 0  # nor has it ended without our being told
        await until_in_thread(
            "the job has ended", lambda: node.exec(["rm", done(kernel)]).exit_code == 0, seconds=JOB_SECONDS
        )
    result = await busy
    assert result.status == "ok", result.errors
    assert result.stdout == f"begun\nsum {sum(range(TASKS))}\n"
    assert await kernel.evaluate("spark.range(30).count()", JOB_SECONDS) == 30
    assert len(running(cluster(spark_lab, "spark"), kernel.id)) == 1
