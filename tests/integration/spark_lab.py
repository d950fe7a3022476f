"""What the tests of Spark kernels share: one lab with a standalone master and YARN, and a gateway with our sample kernelspecs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import pytest_asyncio

from eg_distributed import kernelspecs
from eg_distributed.kernelspecs import Site
from lab import Gateway, Lab
from lab.containers.engine import connect
from lab.errors import EnvironmentUnfit, LabNotFound
from lab.kernelspecs import KERNEL_PYTHON
from lab.spark.clusters import Application, Cluster, cluster
from tests.integration.client import GatewayClient, Kernel
from tests.integration.conftest import agents, kernel_files, processes, until

NAME = os.environ.get("LAB_SPARK_NAME", "spark")
JAVA = "/usr/lib/jvm/java-17-openjdk-amd64"
ENV = {"JAVA_HOME": JAVA, "TOREE_JAR": "/opt/toree/toree-assembly.jar"}
SESSION_SECONDS = 90.0
"""For a session and its first job on a machine of two cores that does other things as well."""
STAGING = "/shared/staging/*/.sparkStaging"
"""Where Spark puts what YARN's containers need, below a folder for each user."""
END_SECONDS = 3.0
"""What a shutdown may take."""
KILLED_SECONDS = 15.0
"""What the cluster may take to notice that a kernel was killed."""
ROLES = {"standalone": "spark", "yarn_client": "yarn"}


def role_of(spec: str) -> str:
    """Return the cluster that a kernelspec of ours runs on."""
    return next(role for suffix, role in ROLES.items() if spec.endswith(suffix))


@cache
def _made(name: str) -> Lab:
    return Lab.up(name, nodes=2, driver="docker", clusters=("spark", "yarn"))


@pytest.fixture(scope="session")
def spark_lab(request: pytest.FixtureRequest) -> Lab:
    """Two nodes with a worker and a NodeManager each; one lab for all modules that import this."""
    try:
        connect()
    except EnvironmentUnfit as error:
        if os.environ.get("LAB_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    new = not _made.cache_info().currsize
    lab = _made(NAME)
    if new and not os.environ.get("LAB_KEEP"):
        request.config.add_cleanup(lambda: (lab.down(), None)[1])
    return lab


def specs(lab: Lab, **env: str) -> dict[str, dict[str, Any]]:
    """Return our samples for *lab*, with more variables in *env*."""
    site = Site(
        spark_home="/opt/spark",
        master=cluster(lab, "spark").address,
        hadoop_conf_dir="/etc/hadoop",
        python=KERNEL_PYTHON,
        env={**ENV, **env},
    )
    return {name: kernelspecs.sample(name, site) for name in kernelspecs.names()}


@pytest.fixture(scope="session")
def spark_gateway(spark_lab: Lab) -> Iterator[Gateway]:
    """A gateway that offers our samples."""
    name = f"samples{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    gateway = spark_lab.add_gateway(name, kernelspecs=specs(spark_lab), env={"EG_KERNEL_LAUNCH_TIMEOUT": "60"})
    yield gateway
    if not os.environ.get("LAB_KEEP"):
        # Each module that imports this fixture has one of its own, of the same gateway: the first takes it away.
        with contextlib.suppress(LabNotFound):
            gateway.stop()
            gateway.remove()


@pytest_asyncio.fixture
async def spark_client(spark_lab: Lab, spark_gateway: Gateway) -> AsyncIterator[GatewayClient]:
    """A client of `spark_gateway`; afterwards nothing of its kernels is on a node or a cluster, or the test has failed."""
    async with GatewayClient(spark_gateway.url) as found:
        yield found
        started = [kernel.id for kernel in found.started.values()]
        await found.close_kernels()
        await nothing_left(spark_lab, started)


def applications(on: Cluster, kernel_id: str) -> list[Application]:
    """Return what the master or the ResourceManager knows by the kernel's id, which is the applications' name."""
    return [found for found in on.applications() if found.name == kernel_id]


def running(on: Cluster, kernel_id: str) -> list[Application]:
    """Return those that have not ended."""
    ended = {"FINISHED", "FAILED", "KILLED"}
    return [found for found in applications(on, kernel_id) if found.state not in ended]


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
    signs = ("spark_kernel.py", "deploy.SparkSubmit", "CoarseGrained", "ExecutorLauncher", "IRkernel", "pyspark.daemon")
    return any(sign in args for sign in (*signs, "YarnCoarseGrained", "ipykernel"))


async def nothing_left(lab: Lab, kernel_ids: list[str], seconds: float = KILLED_SECONDS) -> None:
    """Wait until neither the nodes nor the clusters have anything of kernels any more."""

    def look() -> list[str]:
        there = left(lab)
        for role in ROLES.values():
            there += [f"{role}: {app}" for each in kernel_ids for app in running(cluster(lab, role), each)]
        return there

    deadline = time.monotonic() + seconds
    while found := await asyncio.to_thread(look):
        if time.monotonic() > deadline:
            await asyncio.to_thread(_clean, lab)
            pytest.fail(f"left after {seconds:g} s: {found}")
        await asyncio.sleep(0.2)


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


async def interrupted(kernel: Kernel, code: str, printed: str, pause: float = 0.0) -> Any:
    """Run *code*, interrupt it once *printed* is out, and return the cell's result."""
    cell = await kernel.begin(code)
    await cell.printed(printed, SESSION_SECONDS)
    await asyncio.sleep(pause)
    await kernel.interrupt()
    return await cell.result(SESSION_SECONDS)


async def ended(on: Cluster, kernel_id: str, seconds: float) -> None:
    """Wait until the cluster has ended the kernel's applications."""
    await until("the application has ended", lambda: not running(on, kernel_id), timeout=seconds)


def driver(lab: Lab, kernel_id: str) -> Mapping[str, list[int]]:
    """Return the pids of the kernel's own processes, by node."""
    found: dict[str, list[int]] = {}
    for node in lab.nodes:
        listed = node.exec(["sh", "-c", f"grep -l {kernel_id} /proc/[0-9]*/environ 2>/dev/null"]).stdout.split()
        pids = [int(path.split("/")[2]) for path in listed]
        if pids:
            found[node.name] = pids
    return found


__all__ = ["agents", "spark_client", "spark_gateway", "spark_lab"]
