"""Kernels that are not ipykernel, as real processes: each runs where it is installed beside the tests, which need none of them.

`uv run --with xeus-python --with bash_kernel --with jupyter_client pytest tests/unit/test_other_kernels.py` has them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import queue
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from eg_distributed.cluster import Cluster
from eg_distributed.kernel import RemoteKernel
from tests.until import until

from .agents import DEADLINE, alive
from .clusters import gone, start

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jupyter_client") is None,
    reason="jupyter_client, the client of these tests, is not installed",
)


@dataclass(frozen=True)
class Program:
    """A kernel, and three cells for it."""

    module: str
    language: str
    define: str
    show: str
    wait: str
    takes_sockets: bool
    """False for one that ends where its connection file names UNIX sockets of the usual length."""
    takes_interrupts: bool = True
    """False for one that goes on with its cell, whoever starts it."""

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-m", self.module, "-f", "{connection_file}"]


PYTHON = ("x = 'defined'", "print(x)", "import time\nprint('waiting', flush=True)\nwhile True: time.sleep(0.1)")
BASH = ("x=defined", "echo $x", "echo waiting; sleep 300")
KERNELS = {
    "xeus-python": Program("xpython_launcher", "python", *PYTHON, takes_sockets=False, takes_interrupts=False),
    "bash_kernel": Program("bash_kernel", "bash", *BASH, takes_sockets=True),
}


def installed(name: str) -> Program:
    """Return the kernel of that name; skips the test where it is not installed."""
    program = KERNELS[name]
    if importlib.util.find_spec(program.module) is None:
        pytest.skip(f"{name} is not installed")
    return program


class Client:
    """A Jupyter client of one kernel."""

    def __init__(self, kernel: RemoteKernel) -> None:
        from jupyter_client.asynchronous import AsyncKernelClient  # not one of the tests' own dependencies

        self._client = AsyncKernelClient()
        self._client.load_connection_info({**kernel.connection_info, "key": "k"})

    async def ready(self) -> None:
        """Wait until the kernel answers, and what it prints is heard: a subscription takes its time, and tells nobody."""
        while True:
            self._client.kernel_info()
            await self.reply("")
            with contextlib.suppress(queue.Empty):
                await self._client.get_iopub_msg(timeout=0.5)
                return

    async def run(self, code: str, until_said: str = "") -> tuple[str, dict[str, Any]]:
        """Return what *code* prints and its reply; returns at once, without a reply, when *until_said* is printed."""
        wanted, said = self._client.execute(code), ""
        while True:
            message = await asyncio.wait_for(self._client.get_iopub_msg(), DEADLINE)
            if message["parent_header"].get("msg_id") != wanted:
                continue
            if message["msg_type"] == "stream":
                said += message["content"]["text"]
                if until_said and until_said in said:
                    return said, {}
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return said, await self.reply(wanted)

    async def reply(self, wanted: str) -> dict[str, Any]:
        """Return the reply to the message *wanted*, or to the last one if that is empty."""
        while True:
            message = await asyncio.wait_for(self._client.get_shell_msg(), DEADLINE)
            if not wanted or message["parent_header"].get("msg_id") == wanted:
                return dict(message["content"])


@contextlib.asynccontextmanager
async def client(kernel: RemoteKernel) -> AsyncIterator[Client]:
    """Connect to *kernel* until the block ends."""
    made = Client(kernel)
    made._client.start_channels(hb=False, stdin=False)
    try:
        await made.ready()
        yield made
    finally:
        made._client.stop_channels()


@pytest.mark.parametrize("transport", ["auto", "ipc", "tcp"])
@pytest.mark.parametrize("name", KERNELS)
async def test_a_kernel_lives_as_any_other(cluster: Cluster, name: str, transport: str) -> None:
    """A kernel of another make starts, runs cells, is interrupted in one, starts anew and ends, and leaves nothing."""
    program = installed(name)
    if transport == "ipc" and not program.takes_sockets:
        pytest.skip(f"{name} takes no UNIX socket with a path of more than 31 bytes")
    given = {"argv": program.argv, "language": program.language, "transport": transport}
    kernel = await start(cluster, "k1", "localhost", **given)
    async with client(kernel) as ours:
        assert (await ours.run(program.define))[1]["status"] == "ok"
        assert (await ours.run(program.show))[0].strip() == "defined"
        await ours.run(program.wait, until_said="waiting")
        assert await cluster.run(kernel.signal(signal.SIGINT))
        if program.takes_interrupts:
            await ours.reply("")
            assert (await ours.run(program.show))[0].strip() == "defined"
    first = kernel.pid
    assert first is not None
    kernel = await start(cluster, "k1", "localhost", **given)
    await gone(first)
    async with client(kernel) as ours:
        assert "defined" not in (await ours.run(program.show))[0]
    second = kernel.pid
    assert second is not None
    assert alive(second)
    await cluster.run(kernel.stop())
    await until("the kernel has ended", lambda: not alive(second))
