"""What goes wrong with Spark, and what its user is told: host, cause and remedy, soon, in the start or the first cell."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from lab import Gateway, Lab, Node
from lab.spark.clusters import Cluster, cluster
from tests.integration.client import GatewayClient, GatewayError, Kernel, Result, host_of
from tests.integration.conftest import end_gateway
from tests.integration.looks import processes
from tests.integration.spark_lab import (
    ANSWER_SECONDS,
    COUNT,
    KILLED_SECONDS,
    SESSION_SECONDS,
    STAGING,
    client_that_leaves_nothing,
    language_of,
    nothing_left,
    role_of,
    running,
    sampled,
    say,
    specs,
)
from tests.until import until_in_thread

pytestmark = pytest.mark.timeout(300)
TOLD_SECONDS = 30.0
"""When an error must be there. Promised are 15 s; twice that, since a JVM that starts beside other tests may take its time."""
SITE = "/tmp/site-spark-conf"
OTHERS = [("R", "print(count(spark$range(10)))"), ("scala", "println(spark.range(10).count())")]
STANDALONE, YARN = "spark_python_standalone", "spark_python_yarn_client"


@pytest.fixture(scope="module")
def faulty(spark_lab: Lab) -> Iterator[Gateway]:
    """A gateway whose kernelspecs are ours, some with something wrong in them."""
    there = specs()
    wrong = {
        "wrong_home": specs(SPARK_HOME="/opt/no-spark")[STANDALONE],
        "no_java": specs(JAVA_HOME="/opt/no-java")[STANDALONE],
        "no_python": specs(PYSPARK_PYTHON="/opt/no-python")[STANDALONE],
        "no_hadoop": specs(HADOOP_CONF_DIR="/etc/no-hadoop")[YARN],
        "other_python": specs(PYSPARK_DRIVER_PYTHON="/opt/kernel/bin/python", PYSPARK_PYTHON="/usr/bin/python3.9")[
            STANDALONE
        ],
    }
    for name, master in {
        "no_master": "spark://node2.lab.test:7099",
        "no_host": "spark://nowhere.lab.test:7077",
    }.items():
        opts = f"--master {master} --deploy-mode client --name ${{KERNEL_ID:-ERROR__NO__KERNEL_ID}}"
        wrong[name] = specs(SPARK_OPTS=opts)[STANDALONE]
    wrong["R_no_hadoop"] = specs()["spark_R_yarn_client"]
    del wrong["R_no_hadoop"]["env"]["HADOOP_CONF_DIR"]
    site = specs(SPARK_CONF_DIR=SITE)[YARN]
    says = "export " + " ".join(f"{name}={site['env'].pop(name)}" for name in ("HADOOP_CONF_DIR", "JAVA_HOME"))
    fill = f"mkdir -p {SITE}; cp /opt/spark/conf/spark-defaults.conf {SITE}; echo '{says}' > {SITE}/spark-env.sh"
    for node in spark_lab.nodes:
        node.exec(["sh", "-c", fill]).check()
    wrong["site"] = site
    gateway = spark_lab.add_gateway("faulty", kernelspecs={**there, **wrong}, env={"EG_KERNEL_LAUNCH_TIMEOUT": "60"})
    yield gateway
    end_gateway(gateway)


@pytest_asyncio.fixture
async def client(spark_lab: Lab, faulty: Gateway) -> AsyncIterator[GatewayClient]:
    """A client of `faulty`; afterwards nothing of its kernels is left."""
    async with client_that_leaves_nothing(spark_lab, faulty) as found:
        yield found


async def first_cell(kernel: Kernel, code: str = COUNT["python"]) -> Result:
    """Use the session; the time is what a user waits."""
    began = time.monotonic()
    result = await kernel.execute(code, SESSION_SECONDS)
    assert time.monotonic() - began < TOLD_SECONDS
    return result


def told(result: Result) -> str:
    """Return the message of the error that a cell ended with."""
    return str(result.errors[-1]["evalue"])


@pytest.mark.parametrize(
    ("spec", "cause", "remedy"),
    [
        ("wrong_home", "there is no Spark at SPARK_HOME=/opt/no-spark", "set SPARK_HOME in the kernelspec's env"),
        ("no_python", "the driver's interpreter is not there (PYSPARK_PYTHON=/opt/no-python)", "set PYSPARK_PYTHON"),
    ],
)
async def test_what_no_kernel_can_start_with(client: GatewayClient, spec: str, cause: str, remedy: str) -> None:
    """What is wrong on the node itself is the start's error, with the node's name."""
    began = time.monotonic()
    with pytest.raises(GatewayError) as refused:
        await client.start_kernel(spec)
    assert time.monotonic() - began < TOLD_SECONDS
    said = str(refused.value)
    assert cause in said
    assert remedy in said
    assert ".lab.test: " in said


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ("--proxy-user root", "holds --proxy-user, which is the kernelspec's to say"),
        ("--conf spark.master=local[*]", "holds spark.master, which is the kernelspec's to say"),
        ("--class evil.Main", "holds --class"),
        ("--deploy-mode cluster", "holds --deploy-mode"),
        ("x.py", "holds 'x.py', which is no option of spark-submit"),
        ("; touch /tmp/h4-was-here", "holds ';', which is no option of spark-submit"),
        ("--conf 'spark.a=b", "can't be split into words"),
        ("--conf", "ends with --conf, which needs a value"),
    ],
)
async def test_what_a_client_may_not_say(spark_lab: Lab, client: GatewayClient, options: str, cause: str) -> None:
    """KERNEL_EXTRA_SPARK_OPTS is split into options and held against what a client may set; no shell reads it."""
    with pytest.raises(GatewayError) as refused:
        await client.start_kernel(STANDALONE, env={"KERNEL_EXTRA_SPARK_OPTS": options})
    assert f"KERNEL_EXTRA_SPARK_OPTS {cause}" in str(refused.value)
    assert not any(node.exec(["ls", "/tmp/h4-was-here"]).stdout for node in spark_lab.nodes)


async def test_what_a_client_may_say(client: GatewayClient) -> None:
    """Settings of the client's own reach Spark as they are: quoted, spaced, and never expanded."""
    options = "--conf 'spark.eg.words=two words $(id) ${HOME}' --conf spark.sql.shuffle.partitions=3"
    kernel = await client.start_kernel(STANDALONE, env={"KERNEL_EXTRA_SPARK_OPTS": options})
    assert await kernel.evaluate("sc.getConf().get('spark.eg.words')", SESSION_SECONDS) == "two words $(id) ${HOME}"
    assert await kernel.evaluate("spark.conf.get('spark.sql.shuffle.partitions')") == "3"


@pytest.mark.parametrize(
    ("spec", "options", "cause", "remedy"),
    [
        (
            "no_master",
            "",
            "the Spark master can't be reached (node2.lab.test:7099: Connection refused)",
            "start the master",
        ),
        ("no_host", "", "nowhere.lab.test:7077: the name is unknown", "correct --master"),
        ("no_java", "", "there is no Java (/opt/no-java/bin/java can't be run)", "set JAVA_HOME"),
        ("no_hadoop", "", "there is no YARN configuration", "set HADOOP_CONF_DIR"),
        (YARN, "--queue nosuch", "YARN has no queue 'nosuch'", "name one of its queues with --queue"),
        (YARN, "--queue closed", "YARN's queue 'closed' is STOPPED", "have it opened"),
        (YARN, "--executor-memory 5g", "above the max threshold (2048 MB)", "have the cluster's maximum raised"),
    ],
)
async def test_a_session_that_cannot_be(
    client: GatewayClient, spec: str, options: str, cause: str, remedy: str
) -> None:
    """The kernel starts; the first cell that uses Spark says what is wrong, where, and what to do; others just run."""
    kernel = await client.start_kernel(spec, env={"KERNEL_EXTRA_SPARK_OPTS": options})
    assert await kernel.evaluate("40 + 2") == 42
    result = await first_cell(kernel)
    assert result.status == "error"
    assert cause in told(result)
    assert remedy in told(result)
    assert ".lab.test: " in told(result)
    assert await kernel.evaluate("40 + 3") == 43


async def test_r_without_a_yarn_configuration(client: GatewayClient) -> None:
    """Where Spark's JVM itself refuses to start, an R cell is told what a Python cell is, and nothing of Java's."""
    kernel = await client.start_kernel("R_no_hadoop")
    result = await first_cell(kernel, COUNT["R"])
    assert result.status == "error"
    assert ".lab.test: there is no YARN configuration" in told(result)
    assert "set HADOOP_CONF_DIR" in told(result)
    assert "Exception" not in told(result)


async def test_an_application_that_waits_for_room(spark_lab: Lab, client: GatewayClient) -> None:
    """A full queue: the cell says so in YARN's own words, can be interrupted, and the application ends with its kernel."""
    kernel = await client.start_kernel(YARN, env={"KERNEL_EXTRA_SPARK_OPTS": "--queue tiny"})
    cell = await kernel.begin("print(spark.range(10).count())")
    await cell.printed("ACCEPTED and waits for room: ", TOLD_SECONDS, to="stderr")
    assert "in queue root.tiny" in cell.partial.stderr
    # The ResourceManager's words, without figures; which of the two it has depends on what it looked at last.
    words = ("Queue's AM resource limit exceeded (wait, ", "waiting for resources to be assigned for AM (wait, ")
    assert any(each in cell.partial.stderr for each in words)
    began = time.monotonic()
    await kernel.interrupt()
    result = await cell.result()
    assert time.monotonic() - began < ANSWER_SECONDS
    assert result.errors[-1]["ename"] == "KeyboardInterrupt"
    assert await kernel.evaluate("40 + 2") == 42
    (application,) = [app for app in cluster(spark_lab, "yarn").applications() if app.name == kernel.id]
    assert application.state == "ACCEPTED"
    await kernel.delete()
    await nothing_left(spark_lab)


@pytest.mark.long
async def test_a_site_that_names_yarn_in_spark_env_alone(client: GatewayClient) -> None:
    """Where the kernelspec says nothing of YARN and Java, spark-env.sh on the node does: a session is made."""
    kernel = await client.start_kernel("site")
    assert await kernel.evaluate("spark.range(10).count()", SESSION_SECONDS) == 10


@pytest.mark.parametrize(("language", "code"), OTHERS)
async def test_other_languages_are_told_what_sparks_errors_mean(
    client: GatewayClient, language: str, code: str
) -> None:
    """What Spark itself raises has host, cause and remedy in Scala and R as in Python, in the cell that asked for the session."""
    options = {"KERNEL_EXTRA_SPARK_OPTS": "--executor-memory 5g"}
    kernel = await client.start_kernel(f"spark_{language}_yarn_client", env=options)
    result = await kernel.execute(code, SESSION_SECONDS)
    assert result.status == "error"
    said = result.stderr + told(result)
    assert ".lab.test: Spark could not make a session (yarn): " in said
    assert "above the max threshold (2048 MB)" in said
    assert "have the cluster's maximum raised" in said


@pytest.mark.parametrize(("language", "code"), OTHERS)
@pytest.mark.long
async def test_other_languages_are_told_what_they_wait_for_and_where_it_is(
    spark_lab: Lab, client: GatewayClient, language: str, code: str
) -> None:
    """A full queue is told in YARN's words; once there is a session, the cell has the address of its UI."""
    kernel = await client.start_kernel(f"spark_{language}_yarn_client", env={"KERNEL_EXTRA_SPARK_OPTS": "--queue tiny"})
    cell = await kernel.begin(code)
    await cell.printed("ACCEPTED and waits for room: ", SESSION_SECONDS, to="stderr")
    assert "in queue root.tiny" in cell.partial.stderr
    await kernel.delete()
    kernel = await client.start_kernel(f"spark_{language}_standalone")
    result = await kernel.execute(code, SESSION_SECONDS)
    assert result.status == "ok", result.errors
    assert re.search(r"http://[\w.]+:\d+", result.stderr), result.stderr


async def test_a_kernel_that_is_killed_while_it_waits_gives_its_place_up(spark_lab: Lab, client: GatewayClient) -> None:
    """SIGKILL of a kernel whose application waits for room: the application is ended, and its staging folder goes."""
    kernel = await client.start_kernel(YARN, env={"KERNEL_EXTRA_SPARK_OPTS": "--queue tiny"})
    pid = int(await kernel.evaluate("__import__('os').getpid()"))
    node = spark_lab.node((await host_of(kernel)).partition(".")[0])
    cell = await kernel.begin("spark.range(10).count()")
    await cell.printed("ACCEPTED and waits for room: ", SESSION_SECONDS, to="stderr")
    on = cluster(spark_lab, "yarn")
    (waiting,) = running(on, kernel.id)
    staged = f"ls -d {STAGING}/{waiting.id}"
    assert node.exec(["sh", "-c", staged]).exit_code == 0
    node.exec(["kill", "-9", str(pid)]).check()
    await until_in_thread(
        "its application has ended, and what it staged has gone",
        lambda: (
            waiting.id not in [found.id for found in running(on, kernel.id)]
            and node.exec(["sh", "-c", staged]).exit_code != 0
        ),
        seconds=KILLED_SECONDS,
    )
    await kernel.delete()


@pytest.mark.parametrize(
    ("spec", "role", "daemon"),
    [
        (STANDALONE, "spark", "org.apache.spark.deploy.master.Master"),
        pytest.param(
            YARN, "yarn", "org.apache.hadoop.yarn.server.resourcemanager.ResourceManager", marks=pytest.mark.long
        ),
    ],
)
@pytest.mark.long
async def test_a_master_that_takes_connections_and_says_nothing(
    spark_lab: Lab, client: GatewayClient, spec: str, role: str, daemon: str
) -> None:
    """One that was stopped (SIGSTOP) is told like one that is down; when it goes on, so does the next cell."""
    on = cluster(spark_lab, role)
    (pid,) = [pid for pid, args in processes(on.machine).items() if f" {daemon}" in args]
    on.machine.exec(["kill", "-STOP", str(pid)], user="root").check()
    try:
        kernel = await client.start_kernel(spec)
        result = await first_cell(kernel)
        assert result.status == "error"
        assert "it takes connections, but says nothing for 8 s" in told(result)
        assert on.machine.name in told(result)
    finally:
        on.machine.exec(["kill", "-CONT", str(pid)], user="root").check()
    await asyncio.to_thread(on.wait_ready)
    assert await kernel.evaluate("spark.range(10).count()", SESSION_SECONDS) == 10


async def test_workers_with_another_python(client: GatewayClient) -> None:
    """A worker's Python of another version than the driver's: the cell says both versions and what to set."""
    kernel = await client.start_kernel("other_python")
    assert (await kernel.execute("sc", SESSION_SECONDS)).status == "ok"
    result = await kernel.execute("sc.parallelize([1]).map(lambda x: x).collect()", SESSION_SECONDS)
    assert result.status == "error"
    assert "PYTHON_VERSION_MISMATCH" in told(result)
    assert "PYSPARK_PYTHON" in told(result)
    assert ".lab.test: the workers' Python is another version than the driver's; set PYSPARK_PYTHON" in result.stderr


SAVE = {
    "python": "spark.range(3).write.saveAsTable('{}')",
    "scala": 'spark.range(3).write.saveAsTable("{}")',
    "R": 'spark$range(3)$write()$saveAsTable("{}")',
}
"""A cell that makes a table, by language."""


@pytest.mark.parametrize("language", [pytest.param("python", marks=pytest.mark.long), "scala", "R"])
async def test_a_fault_behind_a_jobs_error(spark_lab: Lab, client: GatewayClient, language: str) -> None:
    """A cell whose job failed for what is no fault of its code is told that below the error, in any language; others aren't."""
    kernel = await client.start_kernel(f"spark_{language}_standalone")
    table = f"advice_{language}".lower()
    place = f"/shared/warehouse/{table}"
    for node in spark_lab.nodes:
        node.exec(["sh", "-c", f"mkdir -p {place}; touch {place}/of-before"]).check()
    try:
        result = await kernel.execute(SAVE[language].format(table), SESSION_SECONDS)
        assert result.status == "error"
        assert "LOCATION_ALREADY_EXISTS" in told(result)
        assert re.search(
            r"\.lab\.test: the table's folder is there, of a session before.*; remove the folder", below(result)
        )
        plain = await kernel.execute(SAVE[language].format("1 no table 1"), SESSION_SECONDS)
        assert plain.status == "error"
        assert ".lab.test: " not in below(plain)
    finally:
        for node in spark_lab.nodes:
            node.exec(["rm", "-rf", place]).check()


def below(result: Result) -> str:
    """Return what a cell shows below its error's own words: the last line of the error, and stderr."""
    return "\n".join([str(result.errors[-1]["traceback"][-1]).splitlines()[-1], result.stderr])


VIEWS = {
    "python": (
        "spark.sql('create view {} as select 1')",
        "print(*[row[1] for row in spark.sql('show views').collect()])",
    ),
    "scala": (
        'spark.sql("create view {} as select 1")',
        'println(spark.sql("show views").collect().map(_.getString(1)).mkString(" "))',
    ),
    "R": ('sql("create view {} as select 1")', 'cat(collect(sql("show views"))$viewName)'),
}
"""Cells that make a view, and that print the names of all, by language."""


@pytest.mark.long
async def test_kernels_with_hive_on_one_host(spark_lab: Lab, client: GatewayClient) -> None:
    """Kernels of one user on one host have a metastore each, also where the large files have a place of their own."""
    opts = "--conf spark.local.dir=/tmp --conf spark.sql.catalogImplementation=hive"
    env = {"KERNEL_REMOTE_HOST": spark_lab.nodes[0].name, "KERNEL_EXTRA_SPARK_OPTS": opts}
    kernels = {language: await client.start_kernel(f"spark_{language}_standalone", env=env) for language in VIEWS}
    for language, kernel in kernels.items():
        await say(kernel, VIEWS[language][0].format(f"of_{language}"))
    for language, kernel in kernels.items():
        assert (await say(kernel, VIEWS[language][1])).stdout.split() == [f"of_{language}".lower()]


@pytest.mark.long
async def test_a_metastore_that_is_anothers(spark_lab: Lab, client: GatewayClient) -> None:
    """Where a site has all kernels use one Derby, a cell says that it is open elsewhere, whatever the language."""
    home = "/tmp/one-derby"
    opts = f"--conf spark.sql.catalogImplementation=hive --driver-java-options -Dderby.system.home={home}"
    env = {"KERNEL_REMOTE_HOST": spark_lab.nodes[0].name, "KERNEL_EXTRA_SPARK_OPTS": opts}
    spark_lab.nodes[0].exec(["mkdir", "-p", home]).check()
    try:
        first = await client.start_kernel(STANDALONE, env=env)
        await say(first, "spark.sql('create view held as select 1')")
        for language in ("python", "scala", "R"):
            kernel = await client.start_kernel(f"spark_{language}_standalone", env=env)
            result = await kernel.execute(SAVE[language].format("of_nobody"), SESSION_SECONDS)
            assert result.status == "error"
            assert ".lab.test: another kernel or program has opened the same metastore" in below(result), language
            await kernel.delete()
    finally:
        spark_lab.nodes[0].exec(["rm", "-rf", home]).check()


MASTERS = {"spark": "spark-master", "yarn": "yarn-resourcemanager"}


@contextlib.contextmanager
def without_master(on: Cluster) -> Iterator[None]:
    """Have a cluster's master down meanwhile."""
    _set(on.machine, MASTERS[on.kind], up=False)
    try:
        yield
    finally:
        _set(on.machine, MASTERS[on.kind], up=True)


@pytest.mark.parametrize("spec", sampled((STANDALONE, YARN, "spark_R_standalone", "spark_R_yarn_client")))
@pytest.mark.long
async def test_a_master_that_is_down_and_comes_back(spark_lab: Lab, client: GatewayClient, spec: str) -> None:
    """Down at the start: said at once; back again: the next cell has its session, without a restart of the kernel."""
    on = cluster(spark_lab, role_of(spec))
    count = COUNT[language_of(spec)]
    with without_master(on):
        kernel = await client.start_kernel(spec)
        result = await first_cell(kernel, count)
        assert result.status == "error"
        assert "can't be reached" in told(result)
        assert on.machine.name in told(result)
    await asyncio.to_thread(on.wait_ready)
    assert (await say(kernel, count)).stdout.strip() == "1000"


@pytest.mark.parametrize("spec", sampled(("spark_scala_standalone", "spark_scala_yarn_client")))
@pytest.mark.long
async def test_a_master_that_is_down_for_scala(spark_lab: Lab, client: GatewayClient, spec: str) -> None:
    """Toree has no place for our words, so its start is refused with the reason; back again, the next start has its session."""
    on = cluster(spark_lab, role_of(spec))
    began = time.monotonic()
    with without_master(on):
        with pytest.raises(GatewayError) as refused:
            await client.start_kernel(spec)
        assert time.monotonic() - began < TOLD_SECONDS
        assert "can't be reached" in str(refused.value)
        assert on.machine.name in str(refused.value)
    await asyncio.to_thread(on.wait_ready)
    kernel = await client.start_kernel(spec)
    assert (await say(kernel, COUNT["scala"])).stdout.strip().endswith("1000")


def _set(machine: Node, daemon: str, *, up: bool) -> None:
    machine.exec(["/opt/lab/daemon.sh", "up" if up else "down", daemon], user="root").check()
