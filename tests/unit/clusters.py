"""Clusters of tests, and kernels for them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from eg_distributed.cluster import Cluster
from eg_distributed.kernel import RemoteKernel
from eg_distributed.request import StartRequest
from tests.until import until

from .agents import DEADLINE, alive, standin


def request(kernel_id: str, hosts: str | tuple[str, ...], *behaviours: str, **params: Any) -> StartRequest:
    """Return a request for a stand-in kernel on one of *hosts*, separated by blanks."""
    names = tuple(hosts.split()) if isinstance(hosts, str) else hosts
    defaults: dict[str, Any] = {"argv": standin(*behaviours), "language": "python", "key": "k", "launch_timeout": 20.0}
    return StartRequest(kernel_id=kernel_id, hosts=names, **{**defaults, **params})


async def start(
    cluster: Cluster, kernel_id: str, hosts: str | tuple[str, ...], *behaviours: str, **params: Any
) -> RemoteKernel:
    """Start a stand-in kernel."""
    return await asyncio.wait_for(cluster.run(cluster.start(request(kernel_id, hosts, *behaviours, **params))), 30)


async def client(kernel: RemoteKernel, channel: str = "shell") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a kernel's channel as a Jupyter client does."""
    info = kernel.connection_info
    if info["transport"] == "tcp":
        return await asyncio.open_connection(info["ip"], info[f"{channel}_port"])
    return await asyncio.open_unix_connection(f"{info['ip']}-{info[f'{channel}_port']}")


async def answers(kernel: RemoteKernel, data: bytes = b"hello") -> bool:
    """Whether the kernel echoes *data*, over a connection of its own."""
    reader, writer = await client(kernel)
    writer.write(data)
    got = await asyncio.wait_for(reader.readexactly(len(data)), DEADLINE)
    writer.close()
    return got == data


def where(kernel: RemoteKernel) -> str:
    """Return the host of a kernel."""
    assert kernel.node is not None
    return kernel.node.name


async def gone(pid: int) -> None:
    """Wait until the process *pid* has ended."""
    await until(f"process {pid} has ended", lambda: not alive(pid))


def kernel_folders(folder: Path) -> list[Path]:
    """Return the folders of all kernels of agents below *folder*; some may go while they are looked for."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return list(folder.rglob("eg-distributed/*/k/*"))
