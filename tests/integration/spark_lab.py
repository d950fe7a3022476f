"""What the tests of Spark kernels share: one lab with a standalone master and YARN, and a gateway with our sample kernelspecs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio

from eg_distributed import kernelspecs
from lab import Gateway, Lab
from lab.drivers.spark_kernelspecs import ENV, NEEDS, SITE
from lab.spark.clusters import Application, Cluster, cluster
from tests.integration.client import GatewayClient, Kernel, Result
from tests.integration.fixtures import down
from tests.integration.looks import agents, kernel_files, processes
from tests.until import until_in_thread

NAME = os.environ.get("LAB_SPARK_NAME", "spark")
SESSION_SECONDS = 90.0
"""For a session and its first job on a machine of two cores that does other things as well."""
END_SECONDS = 9.0
"""What a shutdown may take here. Promised are 3 s, which `benchmarks.spark` measures where nothing else runs."""
ANSWER_SECONDS = 15.0
"""What a cell without Spark may take here while the session is being made beside it, and an interrupt of what only sleeps:
alone on a machine it is under a second, while a wait for the session or for the cell's own end is longer than this."""
STAGING = "/shared/staging/*/.sparkStaging"
"""Where Spark puts what YARN's containers need, below a folder for each user."""
KILLED_SECONDS = 15.0
"""What the cluster may take to notice that a kernel was killed."""
LANGUAGES = ("python", "scala", "R")
SPECS = tuple(f"spark_{language}_{end}" for language in LANGUAGES for end in NEEDS)
SAMPLES = ("spark_python_yarn_client", "spark_scala_standalone", "spark_R_yarn_client")
"""Each language once, each cluster at least once: what `nox -s spark` tries; the others are tried by `nox -s spark_long`."""


def sampled(specs: Iterable[str]) -> list[Any]:
    """Return kernelspecs as parameters of a test that is `long` but for those of SAMPLES; each has itself as its id."""
    return [pytest.param(spec, id=spec, marks=() if spec in SAMPLES else pytest.mark.long) for spec in specs]


COUNT = {
    "python": "print(spark.range(1000).count())",
    "scala": "println(spark.range(1000).count())",
    "R": "cat(count(spark$range(1000)))",
}
"""A job that prints 1000, by language."""
_FOLDERS = {
    "python": "print(*sc.parallelize(range(2), 2).map(lambda _: __import__('os').getcwd()).collect())",
    "scala": 'println(sc.parallelize(1 to 2, 2).map(_ => System.getProperty("user.dir")).collect.mkString(" "))',
    "R": "cat(unlist(spark.lapply(list(1, 2), function(x) getwd())))",
}
"""A closure that tells the working folder of the process that it runs in."""


def role_of(spec: str) -> str:
    """Return the cluster that a kernelspec of ours runs on."""
    return next(role for suffix, role in NEEDS.items() if spec.endswith(suffix))


def language_of(spec: str) -> str:
    """Return the language of a kernelspec of ours, as its name has it."""
    return spec.split("_")[1]


@pytest.fixture(scope="session")
def spark_lab(engine: Any) -> Iterator[Lab]:
    """Two nodes with a worker and a NodeManager each; one lab for the whole session, removed even when making it fails."""
    try:
        yield Lab.up(NAME, nodes=2, driver="docker", clusters=("spark", "yarn"))
    finally:
        if not os.environ.get("LAB_KEEP"):
            down(NAME)


def specs(**env: str) -> dict[str, dict[str, Any]]:
    """Return our samples for the lab, with more variables in *env*."""
    site = dataclasses.replace(SITE, env={**ENV, **env})
    return {name: kernelspecs.sample(name, site) for name in kernelspecs.names()}


@pytest.fixture(scope="session")
def spark_gateway(spark_lab: Lab) -> Iterator[Gateway]:
    """A gateway that offers our samples."""
    name = f"samples{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    gateway = spark_lab.add_gateway(name, kernelspecs=specs(), env={"EG_KERNEL_LAUNCH_TIMEOUT": "60"})
    yield gateway
    if not os.environ.get("LAB_KEEP"):
        gateway.stop()
        gateway.remove()


@pytest_asyncio.fixture
async def spark_client(spark_lab: Lab, spark_gateway: Gateway) -> AsyncIterator[GatewayClient]:
    """A client of `spark_gateway`; afterwards nothing of its kernels is on a node or a cluster, or the test has failed."""
    async with client_that_leaves_nothing(spark_lab, spark_gateway) as found:
        yield found


@contextlib.asynccontextmanager
async def client_that_leaves_nothing(lab: Lab, gateway: Gateway) -> AsyncIterator[GatewayClient]:
    """Connect to *gateway*; at the end delete the client's kernels, and wait until nothing of them is left in *lab*."""
    async with GatewayClient(gateway.url) as found:
        yield found
        await found.close_kernels()
        await nothing_left(lab)


def applications(on: Cluster, kernel_id: str) -> list[Application]:
    """Return what the master or the ResourceManager knows by the kernel's id, which is the applications' name."""
    return [found for found in on.applications() if found.name == kernel_id]


def running(on: Cluster, name: str = "") -> list[Application]:
    """Return those of that name (a kernel's id), or of any, that have not ended."""
    ended = {"FINISHED", "FAILED", "KILLED"}
    return [app for app in on.applications() if app.state not in ended and name in ("", app.name)]


def left(lab: Lab, kernel_id: str = "") -> list[str]:
    """Return what is on the nodes of kernels: processes that mention *kernel_id*, drivers' folders, staging."""
    found = []
    for node in lab.nodes:
        for pid, args in processes(node).items():
            if _is_kernels(args):
                found.append(f"{node.name}: process {pid} {args[:160]}")
        found += [f"{node.name}: {folder}" for folder in kernel_files(node)]
        script = f"ls -d /tmp/eg-distributed-spark-* /tmp/eg-spark-* {STAGING}/application_* 2>/dev/null"
        found += [f"{node.name}: {folder}" for folder in node.exec(["sh", "-c", script]).stdout.split()]
    return found


def _is_kernels(args: str) -> bool:
    """Whether a process is a kernel's: its interpreter, its JVM, its executors, or YARN's container for it."""
    signs = (
        "python/kernel.py",
        "deploy.SparkSubmit",
        "CoarseGrained",
        "ExecutorLauncher",
        "IRkernel",
        "pyspark.daemon",
    )
    return any(sign in args for sign in (*signs, "ipykernel"))


async def nothing_left(lab: Lab, seconds: float = KILLED_SECONDS) -> None:
    """Wait until neither the nodes nor the clusters have anything of kernels any more: the lab is this session's alone."""

    def look() -> list[str]:
        return [*left(lab), *(f"{role}: {app}" for role in NEEDS.values() for app in running(cluster(lab, role)))]

    found: list[str] = []

    def gone() -> bool:
        found[:] = look()
        return not found

    try:
        await until_in_thread("nothing is left of kernels", gone, seconds, pause=0.2)
    except AssertionError as error:
        await asyncio.to_thread(_clean, lab)
        raise AssertionError(f"left after {seconds:g} s: {found}") from error


def _clean(lab: Lab) -> None:
    """Take away what a failed test left, so that the next one starts clean."""
    for node in lab.nodes:
        pids = [str(pid) for pid, args in processes(node).items() if _is_kernels(args)]
        node.exec(["kill", "-9", *pids], user="root")
        if folders := kernel_files(node):
            node.exec(["kill", "-9", *map(str, agents(node))], user="root")
            node.exec(["rm", "-rf", *folders], user="root")
        node.exec(
            ["sh", "-c", f"rm -rf /tmp/eg-distributed-spark-* /tmp/eg-spark-* {STAGING}/*"],
            user="root",
        )


async def say(kernel: Kernel, code: str, timeout: float = SESSION_SECONDS) -> Result:
    """Run a cell that has to succeed."""
    result = await kernel.execute(code, timeout)
    assert result.status == "ok", (result.errors, result.stdout)
    return result


async def on_executors(lab: Lab, kernel: Kernel) -> Application:
    """Assert that the kernel's jobs and closures run on executors of the one application that has its name; return that.

    Drivers run on the same nodes as executors, so a host's name alone proves nothing. An executor works in a folder of its
    application's own.
    """
    on, language = cluster(lab, role_of(kernel.kernelspec)), language_of(kernel.kernelspec)
    assert (await say(kernel, COUNT[language])).stdout.strip().endswith("1000")
    folders = (await say(kernel, _FOLDERS[language])).stdout.strip().splitlines()[-1].split(" ")
    (application,) = await asyncio.to_thread(running, on, kernel.id)
    assert len(folders) == 2
    assert all(f"/{application.id}/" in folder for folder in folders), (application, folders)
    assert application.nodes
    assert set(application.nodes) <= {node.name for node in lab.nodes}
    if on.kind == "yarn":
        assert application.containers >= 2  # the application master's, and an executor's
    return application


async def appeared(lab: Lab, file: str, timeout: float = SESSION_SECONDS) -> None:
    """Wait until *file* is on a node, and take it away."""

    def look() -> bool:
        return any([node.exec(["rm", file], user="root").exit_code == 0 for node in lab.nodes])  # noqa: C419 -- of each

    await until_in_thread(f"{file} is there", look, seconds=timeout)


async def ended(on: Cluster, kernel_id: str, seconds: float) -> None:
    """Wait until the cluster has ended the kernel's applications."""
    await until_in_thread("the application has ended", lambda: not running(on, kernel_id), seconds=seconds)


def driver(lab: Lab, kernel_id: str) -> Mapping[str, list[int]]:
    """Return the pids of the kernel's own processes, by node."""
    found: dict[str, list[int]] = {}
    for node in lab.nodes:
        listed = node.exec(["sh", "-c", f"grep -l {kernel_id} /proc/[0-9]*/environ 2>/dev/null"]).stdout.split()
        pids = [int(path.split("/")[2]) for path in listed]
        if pids:
            found[node.name] = pids
    return found
