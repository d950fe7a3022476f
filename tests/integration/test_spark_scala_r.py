"""Scala's and R's kernels where something is in the way: interrupts at any time, a cluster without room, own settings."""

from __future__ import annotations

import asyncio

import pytest

from lab import Lab
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel, Result
from tests.integration.spark_lab import (
    ANSWER_SECONDS,
    COUNT,
    SESSION_SECONDS,
    client_that_leaves_nothing,
    language_of,
    running,
    say,
    specs,
)
from tests.integration.test_output_kept import MISSING
from tests.integration.test_persistence import PERSISTENCE, killed_and_started
from tests.sessions import Tab

pytestmark = pytest.mark.timeout(400)
SCALA, R = "spark_scala_standalone", "spark_R_standalone"
LONG = "\n".join(
    f"case class C{i}(a: Int, b: String) {{ def f(x: Int) = List(x, a).map(_ + {i}).sum }}" for i in range(40)
)
"""Code that the compiler works on for a second or more."""

LINES = 300
PRINTING = {
    SCALA: f"for (number <- 0 until {LINES}) {{ println(number); Thread.sleep(50) }}",
    R: f'for (number in 0:{LINES - 1}) {{ cat(number, "\\n", sep = ""); flush.console(); Sys.sleep(0.05) }}',
}


async def interrupt_until_it_ends(kernel: Kernel, code: str) -> Result:
    """Run a cell, and interrupt it again and again from the moment it is sent, whatever the kernel is doing with it then."""
    cell = asyncio.ensure_future(kernel.execute(code, SESSION_SECONDS))
    while not cell.done():
        await kernel.interrupt()
        await asyncio.wait([cell], timeout=0.05)
    return cell.result()


async def test_a_scala_cell_is_answered_whenever_it_is_interrupted(spark_client: GatewayClient) -> None:
    """Interrupts that come before the cell, in the compiler or in the user's code end that cell; the next one runs as ever."""
    kernel = await spark_client.start_kernel(SCALA)
    for number in range(6):
        await say(kernel, f"val x = {number}")
        result = await interrupt_until_it_ends(kernel, f"{LONG if number % 2 else ''}\nThread.sleep(60000)")
        assert result.status == "error"
        assert "Interrupted" in str(result.reply)
        assert (await kernel.execute("println(x + 1)", ANSWER_SECONDS)).stdout.endswith(f"{number + 1}\n")


async def test_a_scala_cell_is_answered_whatever_throws(spark_client: GatewayClient) -> None:
    """Errors without words, in a result's own words or of the JVM end their cell alone, with the error before `idle`."""
    kernel = await spark_client.start_kernel(SCALA)
    for code in (
        "throw new RuntimeException()",
        "throw new StackOverflowError()",
        "new Object { override def toString: String = throw new NoClassDefFoundError() }",
        "no such code",
        "List(1, 2",
    ):
        result = await kernel.execute(code, SESSION_SECONDS)
        assert result.status == "error", code
        assert result.errors, code  # what comes after `idle` isn't heard
        after = await kernel.execute("val y = 1", ANSWER_SECONDS)
        assert after.status == "ok"
        assert "lastException" not in str(after.displays)
    assert (await kernel.execute("  \n", ANSWER_SECONDS)).status == "ok"
    assert (await say(kernel, "1 + 1")).displays  # it, too, comes before `idle`


async def test_what_a_scala_cell_prints_is_whole(spark_client: GatewayClient) -> None:
    """Blank lines, a line's end that comes late and a character that is written byte by byte are what the cell has printed."""
    kernel = await spark_client.start_kernel(SCALA)
    slowly = "out.flush(); Thread.sleep(300)"
    code = f"""
val out = Console.out
println(); out.print("a"); {slowly}; out.print("\\n"); {slowly}; out.print("  "); {slowly}; println("b")
val bytes = "ä€𝄞".getBytes("UTF-8")
for (byte <- bytes) {{ out.write(byte); {slowly} }}
"""
    assert (await say(kernel, code)).stdout.startswith("\na\n  b\nä€𝄞")


async def test_a_scala_kernel_answers_what_front_ends_ask(spark_client: GatewayClient) -> None:
    """Requests of which Toree knows nothing have a reply: a front end waits for it."""
    kernel = await spark_client.start_kernel(SCALA)
    await kernel.ask("inspect_request", {"code": "spark", "cursor_pos": 3, "detail_level": 0}, SESSION_SECONDS)
    history = {"output": False, "raw": True, "hist_access_type": "tail", "n": 10, "session": 0, "start": 0, "stop": 0}
    await kernel.ask("history_request", history, ANSWER_SECONDS)
    await kernel.ask("comm_info_request", {}, ANSWER_SECONDS)
    await kernel.ask("comm_info_request", {"target_name": "jupyter.widget"}, ANSWER_SECONDS)


@pytest.mark.long
async def test_scala_cells_leave_a_session_that_does_not_come(spark_lab: Lab, spark_client: GatewayClient) -> None:
    """However often cells that wait for a session are interrupted: each ends, the kernel answers, one session is under way."""
    kernel = await spark_client.start_kernel("spark_scala_yarn_client", env={"KERNEL_EXTRA_SPARK_OPTS": "--queue tiny"})
    for _ in range(4):
        cell = await kernel.begin(COUNT["scala"])
        await cell.printed("ACCEPTED and waits for room: ", SESSION_SECONDS, to="stderr")
        await kernel.interrupt()
        assert (await cell.result(ANSWER_SECONDS)).status == "error"
        assert (await kernel.execute("println(1 + 1)", ANSWER_SECONDS)).stdout.endswith("2\n")
    assert len(running(cluster(spark_lab, "yarn"), kernel.id)) == 1
    # A builder of the notebook's own waits in a lock of Spark's for the same session: the session goes, and the cell ends.
    cell = await kernel.begin('println("begun"); org.apache.spark.sql.SparkSession.builder.getOrCreate()')
    await cell.printed("begun", SESSION_SECONDS)
    await kernel.interrupt()
    assert (await cell.result(SESSION_SECONDS)).status == "error"


@pytest.mark.parametrize("spec", [SCALA, pytest.param(R, marks=pytest.mark.long)])
@pytest.mark.long
async def test_the_first_cell_is_told_that_no_executor_comes(spark_client: GatewayClient, spec: str) -> None:
    """A job that no executor takes says so in the cell that began it, also where that made the session; an interrupt ends it."""
    kernel = await spark_client.start_kernel(spec, env={"KERNEL_EXTRA_SPARK_OPTS": "--executor-memory 8g"})
    cell = await kernel.begin(COUNT[language_of(spec)])
    await cell.printed(".lab.test: no task runs: the cluster has no executor, ", SESSION_SECONDS, to="stderr")
    await kernel.interrupt()
    await cell.result(ANSWER_SECONDS)
    assert "or ask for less (--executor-memory, --executor-cores)" in cell.partial.stderr


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.parametrize("spec", [SCALA, R])
async def test_what_a_cell_prints_over_a_killed_gateway_is_whole(spark_lab: Lab, spec: str) -> None:
    """With Enterprise Gateway's persistence its lines come each once and in order, then its reply, and the next cell works."""
    gateway = spark_lab.add_gateway(
        "killed", kernelspecs=specs(), options=PERSISTENCE, env={"EG_KERNEL_LAUNCH_TIMEOUT": "60"}
    )
    try:
        kernel = await GatewayClient(gateway.url).start_kernel(spec)
        tab = Tab(gateway, kernel)
        await tab.connect(gateway)
        cell = await tab.run(PRINTING[spec])
        await cell.reached(LINES // 5)
        await killed_and_started(gateway)
        await tab.lost_connection()
        before = len(cell.numbers)
        async with client_that_leaves_nothing(spark_lab, gateway) as client:
            client.attach(kernel.id, spec)
            await tab.connect(gateway)
            await cell.ended()
            after = cell.numbers[before:]
            assert after == list(range(after[0], LINES))
            # What came in the last moment before SIGKILL could not be confirmed any more, and so comes again.
            assert before - LINES // 10 < after[0] <= before
            assert [reply["status"] for reply in cell.replies] == ["ok"]
            assert MISSING not in tab.told
            await tab.close()
    finally:
        await asyncio.to_thread(gateway.remove)
