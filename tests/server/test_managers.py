"""Kernel managers of jupyter_client: what each of them does with a kernel on a host."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager

from .site import KERNEL, Site

SECONDS = 30.0


async def value(client: Any, code: str) -> str:
    """Run *code* and return what it prints, or the error's name and text."""
    said: list[str] = []

    def take(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            said.append(content["text"])
        elif message["msg_type"] == "error":
            said.append(f"{content['ename']}: {content['evalue']}")

    done = client.execute_interactive(code, output_hook=take, timeout=SECONDS)
    if asyncio.iscoroutine(done):
        await done
    return "".join(said).strip()


async def test_an_async_manager(site: Site) -> None:
    """Start, execute, interrupt, restart and shutdown do what they do with a local kernel, and leave nothing."""
    manager = AsyncKernelManager(kernel_name=KERNEL)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=SECONDS)
    assert (await value(client, "import os; x = 42; print(os.environ['NODE'])")).startswith("node")
    info = manager.get_connection_info()
    await manager.restart_kernel()
    await client.wait_for_ready(timeout=SECONDS)
    assert await value(client, "print(x)") == "NameError: name 'x' is not defined"
    assert manager.get_connection_info() == info
    await manager.restart_kernel(now=True)
    await client.wait_for_ready(timeout=SECONDS)
    assert await value(client, "print(1)") == "1"
    assert await manager.is_alive()
    client.stop_channels()
    file = Path(manager.connection_file)
    assert file.exists()
    await manager.shutdown_kernel()
    assert not manager.has_kernel
    assert not await manager.is_alive()
    assert not file.exists()
