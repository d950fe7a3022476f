"""The machines of a lab that kernels run on, as a benchmark sees them from outside: their processes and memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.peers.memory import of_containers, pss
from benchmarks.peers.servers import Host

LEFT_SECONDS = 5.0
_KERNELS = ("ipykernel_launcher", "launch_ipykernel")


@dataclass(frozen=True)
class Nodes:
    """*hosts*, the full ids of their containers, and the main process of the first one."""

    hosts: Sequence[Host]
    containers: Sequence[str]
    main_pid: int

    def memory(self) -> float:
        """Return the MiB of all their processes."""
        return pss(of_containers(self.containers))

    def kernels(self) -> list[psutil.Process]:
        """Return the processes of kernels, whoever has started them."""
        found = []
        for pid in of_containers(self.containers):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if any(each in word for word in process.cmdline() for each in _KERNELS):
                    found.append(process)
        return found

    async def end_what_is_left(self, seconds: float = LEFT_SECONDS) -> int:
        """Return how many processes of kernels are still there *seconds* after their end was asked for, and end them.

        What one contender leaves must not count as the next one's, nor slow it.
        """
        deadline = time.monotonic() + seconds
        while (left := self.kernels()) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(left)
