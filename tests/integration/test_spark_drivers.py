"""Where the drivers of Spark kernels run, and what becomes of their applications when they end badly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from lab import Lab, Node
from lab.drivers.spark_kernelspecs import NEEDS
from lab.spark.clusters import cluster
from tests.integration.client import GatewayClient, Kernel
from tests.integration.spark_lab import (
    COUNT,
    KILLED_SECONDS,
    SPECS,
    driver,
    language_of,
    nothing_left,
    role_of,
    running,
    sampled,
    say,
)
from tests.until import until_in_thread

pytestmark = pytest.mark.timeout(400)
PLACE = {
    "python": "import os, socket; print(os.getpid(), socket.gethostname())",
    "scala": 'println(ProcessHandle.current.pid + " " + java.net.InetAddress.getLocalHost.getHostName)',
    "R": 'cat(Sys.getpid(), Sys.info()[["nodename"]])',
}
"""What prints the kernel's own pid and host, by language."""
NOTICED_SECONDS = 90.0
"""For a cluster to miss a machine that is gone: 20 s without a word of it, and looks between."""


async def place_of(lab: Lab, kernel: Kernel) -> tuple[int, Node]:
    """Return the kernel's own pid and its node."""
    pid, host = (await say(kernel, PLACE[language_of(kernel.kernelspec)])).stdout.strip().splitlines()[-1].split(" ")
    return int(pid), lab.node(host.partition(".")[0])


async def application_of(lab: Lab, kernel: Kernel) -> str:
    """Have the kernel make its session; return the id of its application."""
    assert (await say(kernel, COUNT[language_of(kernel.kernelspec)])).stdout.strip().endswith("1000")
    (application,) = await asyncio.to_thread(running, cluster(lab, role_of(kernel.kernelspec)), kernel.id)
    return application.id


async def over(lab: Lab, kernel: Kernel, application: str, seconds: float) -> None:
    """Wait until this application of the kernel has ended; the gateway may have started the kernel again, and so another."""
    on = cluster(lab, role_of(kernel.kernelspec))
    await until_in_thread(
        f"{application} has ended", lambda: application not in [app.id for app in running(on)], seconds=seconds
    )


@pytest.mark.parametrize("spec", sampled(SPECS))
async def test_a_killed_kernel_leaves_nothing(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """SIGKILL of the kernel: no JVM, no executor, no application and no staging folder after 15 s."""
    kernel = await spark_client.start_kernel(spec)
    application = await application_of(spark_lab, kernel)
    pid, node = await place_of(spark_lab, kernel)
    assert pid in driver(spark_lab, kernel.id)[node.name]
    node.exec(["kill", "-9", str(pid)]).check()
    # The gateway restarts it, as it does with every kernel that died: the one before has left, all the same.
    await over(spark_lab, kernel, application, KILLED_SECONDS)
    await kernel.delete()
    await nothing_left(spark_lab)


@pytest.mark.parametrize(
    "spec",
    sampled(("spark_python_standalone", "spark_python_yarn_client", "spark_scala_standalone", "spark_R_yarn_client")),
)
async def test_drivers_are_spread_and_pinned(spark_lab: Lab, spark_client: GatewayClient, spec: str) -> None:
    """Balancing and pins hold for Spark kernels of each language as for others."""
    kernels = await spark_client.start_kernels(2, spec)
    names = sorted([(await place_of(spark_lab, kernel))[1].name for kernel in kernels])
    assert names == sorted(node.name for node in spark_lab.nodes)
    await spark_client.close_kernels()
    for name in names:
        kernel = await spark_client.start_kernel(spec, env={"KERNEL_REMOTE_HOST": name})
        assert (await place_of(spark_lab, kernel))[1].name == name
        await kernel.delete()


@pytest.fixture
def mortal(spark_lab: Lab) -> Iterator[Node]:
    """A node that a test may kill; afterwards it is new, and in its clusters again. Asked for last: others look at all nodes."""
    node = spark_lab.node("node1")
    yield node
    spark_lab.reset(node.name)
    for role in NEEDS.values():
        cluster(spark_lab, role).wait_ready()


@pytest.mark.parametrize("spec", sampled(("spark_python_standalone", "spark_python_yarn_client")))
@pytest.mark.long
async def test_a_dead_nodes_application_ends(
    spark_lab: Lab, spark_client: GatewayClient, mortal: Node, spec: str
) -> None:
    """The driver's node loses its power: the application ends when the cluster notices, and its executors with it.

    What it had staged goes when the node is back: its agent finds the kernel's end to be seen to.
    """
    kernel = await spark_client.start_kernel(spec, env={"KERNEL_REMOTE_HOST": mortal.name})
    application = await application_of(spark_lab, kernel)
    await asyncio.to_thread(mortal.kill)
    await over(spark_lab, kernel, application, NOTICED_SECONDS)
    other = next(node for node in spark_lab.nodes if node.name != mortal.name)

    def executors() -> list[str]:
        listed = other.exec(["ps", "-eo", "args="]).check().stdout.splitlines()
        return [args for args in listed if application in args and "CoarseGrained" in args]

    await until_in_thread("its executors have ended", lambda: not executors(), seconds=KILLED_SECONDS)
    await asyncio.to_thread(mortal.start)
    await kernel.delete()
    await nothing_left(spark_lab)
