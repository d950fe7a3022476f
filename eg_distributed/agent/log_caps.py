"""Kernels' logs are kept below their cap: one look at all logs of a disk, in one thread, whatever their number.

A thread for each log made a tenth of all that an agent with a hundred idle kernels did.
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Mapping

from ..clock import monotonic
from .aside import aside
from .kernels import EXITED, LOG_CAP, Kernel

CHECK = 10.0
"""Seconds between two looks at the logs' sizes."""


class LogCaps:
    """Looks at the logs of an agent's *kernels*; owned by the agent, which calls `tick`."""

    def __init__(self, kernels: Mapping[str, Kernel]) -> None:
        self._kernels = kernels
        self._looked = monotonic()
        self._looking: dict[Path, asyncio.Task[None]] = {}  # by what may hang: it holds up its own logs alone

    def tick(self) -> None:
        """Look, if it is time; called each second."""
        now = monotonic()
        if now - self._looked < CHECK:
            return
        self._looked = now
        folders: dict[Path, list[Kernel]] = {}
        for kernel in self._kernels.values():
            if kernel.has_log and kernel.state != EXITED:
                # The agent's own folder for all logs in it: each is in its kernel's folder there.
                own = kernel.directory.parent if kernel.log.parent == kernel.directory else kernel.log.parent
                folders.setdefault(own, []).append(kernel)
        for folder, kernels in folders.items():
            if folder not in self._looking:
                self._looking[folder] = task = asyncio.ensure_future(self._look(folder, kernels))
                task.add_done_callback(functools.partial(self._note_over, folder))

    def _note_over(self, folder: Path, _: asyncio.Task[None]) -> None:
        self._looking.pop(folder, None)

    @staticmethod
    async def _look(folder: Path, kernels: list[Kernel]) -> None:
        try:
            # Without a deadline: nothing waits for it, and the next look is made when this one is over.
            large = await aside(("cap", folder), None, _large, [kernel.log for kernel in kernels])
        except OSError:  # no thread can be had now
            return
        for kernel in kernels:
            if kernel.log in large:
                await kernel.cap_log()


def _large(logs: list[Path]) -> set[Path]:
    found = set()
    for log in logs:
        try:
            if log.stat().st_size > LOG_CAP:
                found.add(log)
        except OSError:
            continue  # it is gone, or not there yet
    return found
