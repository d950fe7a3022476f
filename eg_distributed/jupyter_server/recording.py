"""The record of one kernel: made of what its provisioner knows, written and removed where a disk that hangs holds up none."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from eg_distributed.aside import aside
from eg_distributed.kernel import RemoteKernel
from eg_distributed.link.deadlines import within

from .process import Keeper
from .request import added_for
from .store import Record, Store

__all__ = ["Recording", "goes_on"]

log = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds, at most, that a start or an end waits for the record


def goes_on(kernel: RemoteKernel) -> None:
    """Do nothing when *kernel* has ended, which a restarter sees: a kernel with an `on_exit` outlives this process."""


class Recording:
    """Keeps the record of the kernel of *manager*, a kernel manager, for *keeper*; None: there is none to be kept."""

    def __init__(self, manager: Any, spec: Any, keeper: Keeper | None) -> None:
        self.keeper = keeper
        self.is_written = False
        """Whether the server's next process finds the kernel again."""
        self._manager = manager
        self._spec = spec
        self._dropping: set[asyncio.Task[None]] = set()

    @property
    def _store(self) -> Store | None:
        return self.keeper.store if self.keeper is not None else None

    def make(
        self,
        kernel: RemoteKernel,
        handed: tuple[Mapping[str, Any], Mapping[str, str]],
        launched: bool,
        allowed: Iterable[str],
    ) -> Record | None:
        """Return the record of *kernel* as it is now; None where it is on no host.

        *handed* is the environment that it was started with, and this process's own then; *allowed* says what of it may reach it.
        """
        node, manager = kernel.node, self._manager
        if node is None:
            return None
        launch = {name: value for name, value in (manager._launch_args or {}).items() if name != "env"}
        return Record(
            kernel=kernel.id,
            name=manager.kernel_name,
            spec=self._spec.to_dict(),
            resource_dir=self._spec.resource_dir,
            host=node.name,
            attempt=kernel.attempt,
            connection=kernel.connection_info,
            agent=kernel.agent_kept,
            elsewhere=list(kernel.elsewhere),
            launched=launched,
            launch={name: value for name, value in launch.items() if _is_plain(value)},
            env=added_for(*handed, allowed),
        )

    async def write(self, kernel: RemoteKernel, record: Record | None) -> None:
        """Have *kernel* found again by the server's next process; called when it has started, and when it was found."""
        store = self._store
        if store is None or record is None:
            return
        write = functools.partial(store.write, record)
        try:
            async with store.turns:
                await within(aside(("record", record.kernel, record.attempt), write), _PATIENCE)
        except (OSError, ValueError, TypeError, asyncio.TimeoutError) as error:
            log.warning(
                "kernel %s: it ends with this server, since its record cannot be written (%s: %r): see that the folder can be "
                "written to, and restart the kernel",
                record.kernel, store.folder, error,
            )  # fmt: skip
            return
        self.is_written = True
        if kernel.on_exit is None:
            kernel.on_exit = goes_on

    async def drop(self, kernel_id: str) -> None:
        """Have no later process look for the kernel."""
        self.is_written = False
        store = self._store
        if store is None:
            return
        drop = functools.partial(store.drop, kernel_id)
        try:
            async with store.turns:
                await within(aside(("drop record", kernel_id), drop), _PATIENCE)
        except (OSError, asyncio.TimeoutError) as error:
            log.warning("kernel %s: its record in %s stays: %r", kernel_id, store.folder, error)

    def drop_now(self, kernel_id: str) -> None:
        """Do as `drop`, at the end of a process that has no loop any more."""
        self.is_written = False
        if (store := self._store) is not None:
            with contextlib.suppress(OSError):  # it is found, and forgotten, by the next process
                store.drop(kernel_id)

    def drop_soon(self, kernel_id: str) -> None:
        """Do as `drop`, if there is a loop to do it on."""
        if self.is_written:
            with contextlib.suppress(RuntimeError):  # at the process's end, say
                task = asyncio.get_running_loop().create_task(self.drop(kernel_id))
                self._dropping.add(task)
                task.add_done_callback(self._dropping.discard)


def _is_plain(value: Any) -> bool:
    """Return True if *value* is the same after a way through JSON; what a kernel was started with may be anything."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError, RecursionError):
        return False
