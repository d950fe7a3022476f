"""`localhost`, the default of `remote_hosts`: the gateway's own machine, without SSH."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lab import Node
from tests.integration.client import host_of
from tests.integration.conftest import NODES, ClientOf, MakeGateway
from tests.integration.looks import kernel_sockets
from tests.until import until_in_thread


@pytest.mark.lab(nodes=NODES)
async def test_localhost_needs_no_ssh(nodes: Sequence[Node], extra_gateway: MakeGateway, client_of: ClientOf) -> None:
    """A gateway whose only host is localhost runs, interrupts, restarts and ends kernels on itself, and logs in nowhere."""
    gateway = extra_gateway("alone", env={"EG_REMOTE_HOSTS": "localhost", "EG_REMOTE_USER": ""}, hosts=["localhost"])
    before = [node.read_logs().count("Accepted ") for node in nodes]
    client = client_of(gateway)
    kernel = await client.start_kernel()
    assert await kernel.evaluate("6 * 7") == 42
    assert await host_of(kernel) not in {node.name for node in nodes}
    running = await kernel.begin("import time; print('on', flush=True); time.sleep(60)")
    await running.printed("on")
    await kernel.interrupt()
    assert (await running.reply())["ename"] == "KeyboardInterrupt"
    await kernel.restart()
    assert await kernel.evaluate("'time' in dir()") is False
    await kernel.delete()
    await until_in_thread("the kernel's sockets go", lambda: not kernel_sockets(gateway))
    assert [node.read_logs().count("Accepted ") for node in nodes] == before
