"""A notebook on a cluster, in each language: the driver runs on a node, the executors on a real master and a real YARN."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable

import pytest

from lab import Lab
from lab.spark.clusters import Application, cluster
from tests.integration.client import Execution, GatewayClient, Kernel, Result, host_of
from tests.integration.spark_lab import (
    ANSWER_SECONDS,
    END_SECONDS,
    KILLED_SECONDS,
    SESSION_SECONDS,
    SPECS,
    appeared,
    applications,
    ended,
    language_of,
    nothing_left,
    on_executors,
    role_of,
    running,
    sampled,
    say,
)
from tests.until import until, until_in_thread

INTERRUPT_SECONDS = 20.0
"""What an interrupt of a job may take, until the cell has ended."""
FREED_SECONDS = 30.0
"""What the next job may take then: it gets the executor's only core, for which it would wait behind a task that goes on."""


class Notebook(ABC):
    """The steps of a user's day in one language, in their order. Each asserts what has to come of it."""

    interrupted: Collection[str] = ("error",)
    """The status of a cell that was interrupted."""

    def __init__(self, lab: Lab, kernel: Kernel) -> None:
        self.lab, self.kernel = lab, kernel
        self.on = cluster(lab, role_of(kernel.kernelspec))

    @abstractmethod
    async def answer_at_once(self) -> None:
        """Run cells without Spark, while the session is being made beside them or before there is any."""

    @abstractmethod
    async def use_session(self) -> None:
        """Run what a user of this language does with a session: code and classes of one's own, rows, settings."""

    @abstractmethod
    def jobs(self) -> Iterable[str]:
        """Return cells that go on for a minute on an executor."""

    @abstractmethod
    async def begin(self, job: str) -> Execution:
        """Send the cell *job*, and return when an executor runs it."""

    @abstractmethod
    async def count(self, number: int) -> None:
        """Have executors count to *number*."""

    @abstractmethod
    async def forget(self) -> None:
        """Look for a name that `use_session` made, and find it gone."""

    # -- what is the same in every language ----------------------------------------------------------------------------

    async def reach_executors(self) -> Application:
        """Run jobs and closures on executors; return their application, which is named as the kernel is."""
        return await on_executors(self.lab, self.kernel)

    async def interrupt(self, cell: Execution) -> tuple[Result, float]:
        """Interrupt *cell* twice; return its end, and the seconds until then."""
        began = time.monotonic()
        await asyncio.gather(self.kernel.interrupt(), self.kernel.interrupt())
        return await cell.result(SESSION_SECONDS), time.monotonic() - began

    async def interrupt_jobs(self) -> None:
        """Interrupt each of `jobs`: its cell ends, and so do its tasks on the executors."""
        for job in self.jobs():
            result, took = await self.interrupt(await self.begin(job))
            assert result.status in self.interrupted
            assert took < INTERRUPT_SECONDS
            began = time.monotonic()
            await self.count(77)
            assert time.monotonic() - began < FREED_SECONDS

    async def keep_session(self, application: Application) -> None:
        """Find the kernel's session where it was."""
        assert [found.id for found in running(self.on, self.kernel.id)] == [application.id]

    async def restart(self, before: Application) -> None:
        """Restart the kernel: it has forgotten all, and has another application of the same name."""
        await self.kernel.restart(timeout=SESSION_SECONDS)
        await self.forget()
        await self.count(1000)
        (again,) = running(self.on, self.kernel.id)
        assert again.id != before.id
        assert len(applications(self.on, self.kernel.id)) == 2

    async def end(self) -> None:
        """Shut the kernel down: soon, and nothing stays."""
        began = time.monotonic()
        await self.kernel.delete()
        assert time.monotonic() - began < END_SECONDS
        await ended(self.on, self.kernel.id, KILLED_SECONDS)
        await nothing_left(self.lab)

    def assert_on_nodes(self, hosts: Iterable[str]) -> None:
        """Assert that *hosts* are nodes of the lab, by their short names."""
        assert {host.partition(".")[0] for host in hosts} <= {node.name.partition(".")[0] for node in self.lab.nodes}


class PythonNotebook(Notebook):
    """ipykernel, with pyspark."""

    async def answer_at_once(self) -> None:
        began = time.monotonic()
        assert await self.kernel.evaluate("1 + 1") == 2
        assert time.monotonic() - began < ANSWER_SECONDS

    async def reach_executors(self) -> Application:
        first = await say(self.kernel, "print(spark.range(1000).count())")
        assert first.stdout == "1000\n"
        application = await super().reach_executors()
        assert f"application {application.id}" in first.stderr
        return application

    async def use_session(self) -> None:
        # Code of the user's own, run by the workers' Python.
        squares = "spark.range(4).select(udf(lambda x: x * x, 'long')('id')).collect()"
        udf = f"from pyspark.sql.functions import udf\nprint({squares})"
        assert "=9)" in (await self.kernel.execute(udf, SESSION_SECONDS)).stdout
        where = "sc.parallelize(range(2), 2).map(lambda _: __import__('socket').gethostname()).collect()"
        hosts = await self.kernel.evaluate(where, SESSION_SECONDS)
        assert set(hosts) <= {node.name for node in self.lab.nodes}
        assert await self.kernel.evaluate("sc.appName") == self.kernel.id
        assert await self.kernel.evaluate("sc.getConf().get('spark.driver.host')") == await host_of(self.kernel)

    def jobs(self) -> Iterable[str]:
        # Its only task says that it runs by a file on its node.
        yield f"""
import time
def slow(x):
    open({self._begun!r}, "w").close()
    time.sleep(60)
    return x
sc.parallelize([1], 1).map(slow).count()
"""

    @property
    def _begun(self) -> str:
        return f"/tmp/begun-{self.kernel.id}"

    async def begin(self, job: str) -> Execution:
        cell = await self.kernel.begin(job)
        await appeared(self.lab, self._begun)
        return cell

    async def interrupt(self, cell: Execution) -> tuple[Result, float]:
        outcome = await super().interrupt(cell)

        async def idle() -> bool:
            active = await self.kernel.evaluate("len(sc.statusTracker().getActiveStageIds())", SESSION_SECONDS)
            return bool(active == 0)

        await until("no stage is active", idle, 20, pause=0.1)  # a cancel is a request to Spark's scheduler
        return outcome

    async def count(self, number: int) -> None:
        assert int(await self.kernel.evaluate(f"spark.range({number}).count()", SESSION_SECONDS)) == number

    async def forget(self) -> None:
        assert await self.kernel.evaluate("'udf' in globals()") is False


class RNotebook(Notebook):
    """IRkernel, without SparkR."""

    interrupted = ("abort", "aborted", "error")

    async def answer_at_once(self) -> None:
        await self.kernel.interrupt()
        began = time.monotonic()
        assert "2" in (await say(self.kernel, "1 + 1")).text
        assert time.monotonic() - began < ANSWER_SECONDS  # the JVM starts beside it
        cell = await self.kernel.begin('cat("begun\\n")\nSys.sleep(60)')
        await cell.printed("begun", SESSION_SECONDS)
        result, took = await self.interrupt(cell)
        assert took < ANSWER_SECONDS
        assert result.status in self.interrupted

    async def use_session(self) -> None:
        # Rows, and a closure with what it uses.
        rows = 'd <- collect(sql("select id, id * 2 as twice, cast(id as string) s from range(3)")); cat(sum(d$twice), d$s)'
        assert (await say(self.kernel, rows)).stdout == "6 0 1 2"
        await say(self.kernel, "offset <- 10\nsquare <- function(x) x * x")
        closure = 'r <- spark.lapply(list(1, 2, 3), function(x) list(square(x) + offset, Sys.info()[["nodename"]]))\n'
        closure += "cat(sapply(r, `[[`, 1), sapply(r, `[[`, 2))"
        said = (await say(self.kernel, closure)).stdout.split()
        assert said[:3] == ["11", "14", "19"]
        self.assert_on_nodes(said[3:])
        failed = await self.kernel.execute('spark.lapply(list(1), function(x) stop("of its own"))', SESSION_SECONDS)
        assert failed.status == "error"
        assert "of its own" in str(failed.errors[-1]["evalue"])
        assert (await say(self.kernel, 'cat(unlist(sparkR.conf("spark.submit.deployMode")))')).stdout == "client"

    def jobs(self) -> Iterable[str]:
        hashes = "select max(sha2(cast(id as string), 512)) m from range(0, 100000000000, 1, 1)"
        yield f'count(sql("{hashes}")$repartition(2L))'
        yield "spark.lapply(list(1), function(x) { Sys.sleep(60); x })"

    async def begin(self, job: str) -> Execution:
        cell = await self.kernel.begin(job)
        await until_in_thread("an executor is busy", self._busy, SESSION_SECONDS)
        return cell

    def _busy(self) -> bool:
        """Return True if an executor's task runs, or an R that one has started."""
        tables = [node.exec(["ps", "-eLo", "comm=,stat=,args="]).stdout for node in self.lab.nodes]
        listed = [line for table in tables for line in table.splitlines()]
        tasks = [line for line in listed if line.startswith("Executor task") and " R" in line[:24]]
        return bool(tasks) or any(".work()" in line for line in listed)

    async def count(self, number: int) -> None:
        assert str(number) in (await say(self.kernel, f"count(spark$range({number}))")).text

    async def forget(self) -> None:
        assert (await say(self.kernel, 'cat(exists("square"))')).stdout == "FALSE"


PLUGINS = (
    "println(new org.apache.toree.plugins.PluginSearcher().internal.map(_.name).toSet == "
    "kernel.pluginManager.plugins.map(_.name).toSet && kernel.pluginManager.plugins.nonEmpty)"
)
"""Whether all plugins are there that Toree's own search finds in its jar."""


class ScalaNotebook(Notebook):
    """Toree, started by `spark_scala.java`."""

    async def answer_at_once(self) -> None:
        await self._interrupt_early()
        # Interrupts before there is a session: nothing while idle, the end of a cell otherwise, and no session for it.
        await self.kernel.interrupt()
        await self.kernel.interrupt()
        assert (await say(self.kernel, "println(1 + 1)")).stdout.endswith("2\n")
        result, _ = await self.interrupt(await self._begin("Thread.sleep(60000)"))
        assert result.status in self.interrupted
        # Toree says one or the other: what its interpreter has thrown, or what that has printed of it.
        assert "InterruptedException" in f"{result.reply['ename']}: {result.reply['evalue']}"
        assert applications(self.on, self.kernel.id) == []
        assert "%lsmagic" in (await say(self.kernel, "%LsMagic")).stdout.lower()
        assert (await say(self.kernel, PLUGINS)).stdout.endswith("true\n")

    async def _interrupt_early(self) -> None:
        """Interrupt a cell that waits for the interpreter of a kernel which has just answered."""
        for _ in range(3):
            early = asyncio.ensure_future(self.kernel.execute("while (true) Thread.sleep(10)", SESSION_SECONDS))
            while not early.done():
                await self.kernel.interrupt()  # again, where one came before the cell did
                await asyncio.wait([early], timeout=0.5)
            reply = early.result().reply
            assert reply["status"] == "error"
            if reply["evalue"] == "interrupted before the interpreter was there":
                return
            assert "InterruptedException" in f"{reply['ename']}: {reply['evalue']}"
            await self.kernel.restart(timeout=SESSION_SECONDS)  # the machine was busy with something else for seconds
        pytest.fail(f"the interpreter was always there before the interrupt: {reply}")

    async def use_session(self) -> None:
        five = 'println(sqlContext.sql("select 5 as five").first)'
        assert (await say(self.kernel, five)).stdout.endswith("[5]\n")
        # A closure, with a class of the notebook's own.
        look = "Seen(java.net.InetAddress.getLocalHost.getHostName, x * x)"
        closure = (
            "case class Seen(host: String, square: Int)\n"
            f"val seen = sc.parallelize(1 to 4, 2).map(x => {look}).collect\n"
            'println(seen.map(_.square).sum + " " + seen.map(_.host).toSet.mkString(","))'
        )
        total, hosts = (await say(self.kernel, closure)).stdout.strip().splitlines()[-1].split(" ")
        assert total == "30"
        self.assert_on_nodes(hosts.split(","))

    def jobs(self) -> Iterable[str]:
        yield "sc.parallelize(1 to 1, 1).map { x => Thread.sleep(60000); x }.count()"
        encoder = "org.apache.spark.sql.Encoders.scalaLong"
        yield f"spark.range(0, 1, 1, 1).map(x => {{ Thread.sleep(60000); 1L }})({encoder}).count()"

    async def begin(self, job: str) -> Execution:
        return await self._begin(job, "while (sc.statusTracker.getActiveStageIds.isEmpty) Thread.sleep(20)")

    async def _begin(self, code: str, watch: str = "") -> Execution:
        """Send a cell, and return when it runs and *watch* beside it is over."""
        spoken = f'new Thread {{ override def run(): Unit = {{ {watch}; out.println("begun") }} }}.start()'
        cell = await self.kernel.begin(f"val out = Console.out\n{spoken}\n{code}")
        await cell.printed("begun", SESSION_SECONDS)
        return cell

    async def count(self, number: int) -> None:
        assert (await say(self.kernel, f"println(spark.range({number}).count())")).stdout.endswith(f"{number}\n")

    async def forget(self) -> None:
        assert (await self.kernel.execute("seen", SESSION_SECONDS)).status == "error"


NOTEBOOKS: dict[str, type[Notebook]] = {"python": PythonNotebook, "R": RNotebook, "scala": ScalaNotebook}
TIMEOUTS = {"python": 400, "R": 500, "scala": 500}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(
            *sample.values, id=sample.id, marks=[*sample.marks, pytest.mark.timeout(TIMEOUTS[language_of(sample.id)])]
        )
        for sample in sampled(SPECS)
    ],
)
async def test_a_notebook_on_a_cluster(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """Jobs and closures run on executors, interrupts end a cell and neither kernel nor session, and nothing stays."""
    notebook = NOTEBOOKS[language_of(spec)](spark_lab, await spark_client.start_kernel(spec))
    await notebook.answer_at_once()
    application = await notebook.reach_executors()
    await notebook.use_session()
    await notebook.interrupt_jobs()
    await notebook.keep_session(application)
    await notebook.restart(application)
    await notebook.end()
