"""Scala's and R's kernels where something is in the way: interrupts at any time, a cluster without room, own settings."""

from __future__ import annotations

import pytest

from tests.integration.client import GatewayClient
from tests.integration.spark_lab import ANSWER_SECONDS, COUNT, SESSION_SECONDS, language_of, say

pytestmark = pytest.mark.timeout(400)
R = "spark_R_standalone"


@pytest.mark.parametrize("spec", [R])
async def test_the_first_cell_is_told_that_no_executor_comes(spark_client: GatewayClient, spec: str) -> None:
    """A job that no executor takes says so in the cell that began it, also where that made the session; an interrupt ends it."""
    kernel = await spark_client.start_kernel(spec, env={"KERNEL_EXTRA_SPARK_OPTS": "--executor-memory 8g"})
    cell = await kernel.begin(COUNT[language_of(spec)])
    await cell.printed(".lab.test: no task runs: the cluster has no executor, ", SESSION_SECONDS, to="stderr")
    await kernel.interrupt()
    await cell.result(ANSWER_SECONDS)
    assert "or ask for less (--executor-memory, --executor-cores)" in cell.partial.stderr


async def test_settings_of_an_r_notebooks_own(spark_client: GatewayClient) -> None:
    """`sparkR.session` makes a session with its arguments, or says which are not in force, and what to do about it."""
    kernel = await spark_client.start_kernel(R)
    config = 'list(spark.executor.memory = "600m", spark.sql.shuffle.partitions = 3)'
    first = await say(kernel, f'sparkR.session(appName = "my report", sparkConfig = {config})')
    assert not first.displays
    assert "not in force" not in first.stderr
    look = 'cat(sep = "|", sc$sc()$appName(), sc$sc()$getConf()$get("spark.executor.memory"), '
    look += 'unlist(sparkR.conf("spark.sql.shuffle.partitions")))'
    assert (await say(kernel, look)).stdout == "my report|600m|3"
    late = (
        'sparkR.session(spark.executor.memory = "512m", spark.sql.shuffle.partitions = 4, spark.driver.memory = "3g")'
    )
    said = (await say(kernel, late)).stderr
    assert (
        "the session was there before: spark.executor.memory=512m (it is 600m); call sparkR.session.stop() first"
        in said
    )
    assert "Spark's JVM was started without: spark.driver.memory=3g; put that into SPARK_OPTS" in said
    assert (await say(kernel, look)).stdout == "my report|600m|4"
    await say(kernel, "spark$stop()")
    assert (await say(kernel, COUNT["R"])).stdout == "1000"  # a new one, as after sparkR.session.stop()


async def test_what_spark_prints_is_in_an_r_cell(spark_client: GatewayClient) -> None:
    """`show`, `printSchema`, `explain` and `head` show rows and plans in the cell; what needs SparkR says so."""
    kernel = await spark_client.start_kernel(R)
    await say(kernel, 'd <- sql("select id, cast(id as string) name from range(9)")')
    for code in ("d$show(2L)", "showDF(d, 2)"):
        shown = await say(kernel, code)
        assert "|  1|   1|" in shown.stdout
        assert "only showing top 2 rows" in shown.stdout
        assert not shown.displays
    assert "|-- name: string" in (await say(kernel, "d$printSchema()")).stdout
    assert "Physical Plan" in (await say(kernel, "explain(d)")).stdout
    assert (await say(kernel, "cat(head(d, 3)$id, nrow(head(d)))")).stdout == "0 1 2 6"
    needs = await kernel.execute("createDataFrame(iris)", ANSWER_SECONDS)
    assert "createDataFrame needs the package SparkR; install it" in str(needs.errors[-1]["evalue"])
    # A worker's R that is killed cleans nothing up: its temporary files are where the executor's are.
    folder = "unlist(spark.lapply(list(1), function(x) startsWith(tempdir(), getwd()) && dir.exists(tempdir())))"
    assert (await say(kernel, f"cat({folder})")).stdout == "TRUE"
