"""What is the Python kernel's own on a cluster: its first cell, its waits, a notebook's own builder, and what a cell is told."""

from __future__ import annotations

import time

import pytest

from lab import Lab
from lab.spark.clusters import cluster
from tests.integration.client import Execution, GatewayClient
from tests.integration.spark_lab import ANSWER_SECONDS, SESSION_SECONDS, running, say
from tests.until import until

pytestmark = pytest.mark.timeout(400)
STANDALONE, YARN = "spark_python_standalone", "spark_python_yarn_client"
GONE_SECONDS = 150.0
"""For two executors to have come and gone, each of which tries for a while what it cannot do."""
TOLD_SECONDS = SESSION_SECONDS + 30.0
"""When a cell must have been told that nothing runs: a session comes first, and 13 s are promised from when its job begins."""
BUILDER = "SparkSession.builder.appName('mine').config('spark.executor.memory', '{}').getOrCreate()"


async def test_the_first_cell_may_import_pyspark(spark_client: GatewayClient) -> None:
    """Right after the kernel's first answer, and with the session begun in the same cell."""
    for code in ("from pyspark.sql import SparkSession", "import pyspark.sql.functions as F"):
        kernel = await spark_client.start_kernel(STANDALONE)
        await say(kernel, code)
        await say(
            kernel, "from pyspark.sql import SparkSession, functions as F\nassert isinstance(spark, SparkSession)"
        )
        await kernel.delete()


async def test_a_wait_is_interrupted_and_gone_on_with(spark_lab: Lab, spark_client: GatewayClient) -> None:
    """In a full queue a cell can be interrupted and run again, for the same application; completions are answered meanwhile."""
    kernel = await spark_client.start_kernel(YARN, env={"KERNEL_EXTRA_SPARK_OPTS": "--queue tiny"})
    for _ in range(2):
        cell = await kernel.begin("spark.range(10).count()")
        await cell.printed("ACCEPTED and waits for room: ", TOLD_SECONDS, to="stderr")
        await kernel.interrupt()
        result = await cell.result(ANSWER_SECONDS)
        assert result.errors[-1]["ename"] == "KeyboardInterrupt"
    assert len(running(cluster(spark_lab, "yarn"), kernel.id)) == 1
    began = time.monotonic()
    matches = await kernel.evaluate("get_ipython().kernel.do_complete('spark.', 6)['matches']", SESSION_SECONDS)
    assert "range" in " ".join(matches)
    assert await kernel.evaluate("get_ipython().kernel.do_inspect('spark.range', 11)['found']") is True
    assert "still to come" in (await say(kernel, "%whos")).stdout
    assert time.monotonic() - began < 2 * ANSWER_SECONDS


async def test_a_notebooks_own_builder(spark_lab: Lab, spark_client: GatewayClient) -> None:
    """The first makes the session, with its settings; later ones are told what is not in force; names follow a new session."""
    kernel = await spark_client.start_kernel(STANDALONE)
    settings = "[sc.appName, sc.getConf().get('spark.executor.memory'), sc.getConf().get('spark.driver.memory')]"
    first = BUILDER.format("600m").replace(".getOrCreate", ".config('spark.driver.memory', '600m').getOrCreate")
    said = (
        await say(kernel, f"from pyspark.sql import SparkSession\ns = {first}\nassert s.range(10).count() == 10")
    ).stderr
    assert "not in force" not in said
    assert f"application {await kernel.evaluate('sc.applicationId')}" in said
    assert await kernel.evaluate(settings) == ["mine", "600m", "600m"]
    heap = "sc._jvm.Runtime.getRuntime().maxMemory() >> 20"
    assert 560 < await kernel.evaluate(heap) <= 600
    said = (await say(kernel, BUILDER.format("700m"))).stderr
    assert "spark.executor.memory=700m (in force: 600m); call spark.stop() first" in said
    said = (await say(kernel, "SparkSession.builder.config('spark.driver.memory', '2g').getOrCreate()")).stderr
    assert "spark.driver.memory=2g (in force: 600m); restart the kernel" in said
    before = await kernel.evaluate("sc.applicationId")
    said = (await say(kernel, f"spark.stop()\ns = {BUILDER.format('700m')}\nassert sc is s.sparkContext")).stderr
    assert "not in force" not in said
    assert await kernel.evaluate("spark is s and spark.range(10).count()", SESSION_SECONDS) == 10
    assert [app.name for app in running(cluster(spark_lab, "spark"))] == ["mine"]
    assert await kernel.evaluate("sc.applicationId") != before


async def nothing_runs(cell: Execution) -> None:
    """Wait until *cell* has been told that none of its tasks runs."""

    def shown() -> bool:
        return any("no task runs: " in str(each.get("text/plain", "")) for each in cell.partial.displays)

    await until("the cell is told that nothing runs", shown, TOLD_SECONDS, pause=0.1)


async def test_the_first_cell_is_told_that_no_executor_comes(spark_client: GatewayClient) -> None:
    """A cell that makes its own session is watched like any other; what executors don't reach is named."""
    kernel = await spark_client.start_kernel(STANDALONE, env={"KERNEL_EXTRA_SPARK_OPTS": "--executor-memory 8g"})
    cell = await kernel.begin("spark.range(9).count()")
    await nothing_runs(cell)
    said = str(cell.partial.displays[-1]["text/plain"])
    assert "its executors don't reach the driver at node" in said
    assert ".lab.test: no task runs" in said
    await kernel.interrupt()
    assert (await cell.result(ANSWER_SECONDS)).status == "error"


@pytest.mark.long
async def test_executors_that_come_and_go_are_told(spark_client: GatewayClient) -> None:
    """Where each executor ends as soon as it is there, the cell is told why the last one went, and not to ask for less."""
    # There is no such service; and one try is enough to know that.
    options = "--conf spark.shuffle.service.enabled=true --conf spark.shuffle.registration.maxAttempts=1"
    kernel = await spark_client.start_kernel(STANDALONE, env={"KERNEL_EXTRA_SPARK_OPTS": options})
    cell = await kernel.begin("spark.range(9).repartition(2).count()")
    await nothing_runs(cell)
    await until(
        "the cell is told that executors come and go",
        lambda: "executors come and go" in str(cell.partial.displays[-1]["text/plain"]),
        GONE_SECONDS,
        pause=0.1,
    )
    await kernel.interrupt()
    assert (await cell.result(ANSWER_SECONDS)).status == "error"


async def test_a_jvm_that_refuses_is_quoted(spark_client: GatewayClient) -> None:
    """What Spark's JVM said before it ended is in the cell's error."""
    kernel = await spark_client.start_kernel(STANDALONE, env={"KERNEL_EXTRA_SPARK_OPTS": "--driver-memory lots"})
    result = await kernel.execute("spark", SESSION_SECONDS)
    said = str(result.errors[-1]["evalue"])
    assert "Spark's JVM ended at its start (exit code 1): " in said
    assert "Invalid maximum heap size: -Xmxlots" in said


async def test_tables_and_hive(spark_client: GatewayClient) -> None:
    """Rows of a table are there when they are read; Hive's own files are not in the user's home."""
    kernel = await spark_client.start_kernel(STANDALONE)
    await say(
        kernel, "from pyspark.sql import SparkSession\ns = SparkSession.builder.enableHiveSupport().getOrCreate()"
    )
    try:
        await say(kernel, "s.range(5).write.mode('overwrite').saveAsTable('lab_saved')", SESSION_SECONDS)
        assert await kernel.evaluate("s.table('lab_saved').count()", SESSION_SECONDS) == 5
    finally:
        await kernel.execute("s.sql('drop table if exists lab_saved')", SESSION_SECONDS)
    here = "[name for name in __import__('os').listdir() if name in ('metastore_db', 'derby.log', 'spark-warehouse')]"
    assert await kernel.evaluate(here) == []
