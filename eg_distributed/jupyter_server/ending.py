"""A server's end: it comes whatever one kernel makes of it, and leaves no kernel that is not to be kept.

jupyter_server ends its kernels all at once, and whatever that raises is raised by its end: its port is closed by then, its loop
goes on, and it has to be killed. A start that has failed is enough, of any kernel at all: jupyter_client counts it among those
under way for ever, and jupyter_server finds no such kernel. So is a kernel that is just being started, or started again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from typing import Any

from eg_distributed.link.deadlines import within

from .process import settings_for
from .provisioner import DistributedProvisioner

__all__ = ["begin"]

log = logging.getLogger(__name__)

_KERNELS = 20.0  # seconds, at most, for kernels to end, beside the time that they are given to heed that
_FILES = 2.0  # seconds, at most, for the files of kernels that end with the process
_STARTS = 10.0  # seconds, at most, for kernels that are just being started, or started again


def begin(app: Any) -> None:
    """Have the end of *app* come; see `extension`."""
    if getattr(getattr(app, "gateway_config", None), "gateway_enabled", False):
        return  # its kernels are a gateway's, and end one after the other
    kernels, keep = app.kernel_manager, settings_for(app.config).keep_kernels
    cleanup_kernels, cleanup, start_ioloop = app.cleanup_kernels, app._cleanup, app.start_ioloop

    @functools.wraps(cleanup_kernels)
    async def end_kernels() -> None:
        try:
            await _await_starts(kernels)
            _forget_failed(kernels)
        except Exception as error:  # of a manager that is not as jupyter_server's: its kernels have to end all the same
            log.error("not all starts could be waited for: %r", error, exc_info=error)
        try:
            await within(cleanup_kernels(), _patience(kernels))
        except Exception as error:  # whichever kernel it is of: the others have to end, and the server as well
            log.error("not all kernels could be ended as they should: %r", error, exc_info=error)
            await _await_others(kernels)

    @functools.wraps(cleanup)
    async def end() -> None:
        try:
            await within(cleanup(), _STARTS + _patience(kernels) + 2 * _KERNELS)
        except Exception as error:  # as above: what calls this would leave the loop running
            log.error("the server's end was not as it should be: %r", error, exc_info=error)

    @functools.wraps(start_ioloop)
    def run(*args: Any, **kwargs: Any) -> Any:
        result = start_ioloop(*args, **kwargs)
        if not keep:  # what is listed still; all of it after a SIGINT without a terminal, which only ends the loop
            _end_with_process(list(kernels._kernels.values()))
        return result

    app.cleanup_kernels, app._cleanup, app.start_ioloop = end_kernels, end, run


def _end_with_process(managers: list[Any]) -> None:
    """Have those of *managers*' kernels that are ours end with this process, whose loop has ended, and leave no file."""
    ours = [each for each in managers if isinstance(getattr(each, "provisioner", None), DistributedProvisioner)]
    for manager in ours:
        manager.provisioner.end_with_process()

    def remove_files() -> None:
        for manager in ours:
            manager.provisioner.recording.drop_now(manager.kernel_id)
            manager.cleanup_connection_file()

    if ours:
        removing = threading.Thread(target=remove_files, name="files of kernels", daemon=True)
        removing.start()
        removing.join(_FILES)  # a disk that hangs keeps no server from its end


def _patience(kernels: Any) -> float:
    """Return the seconds within which kernels have ended that are told to, and killed where they do not heed that."""
    waits = [0.0]
    for manager in kernels._kernels.values():
        try:
            wait = max(float(getattr(manager, "shutdown_wait_time", 0.0)), 0.0)
            provisioner = getattr(manager, "provisioner", None)
            waits.append(provisioner.get_shutdown_wait_time(wait) if provisioner is not None else wait)
        except Exception as error:  # of anybody's manager or provisioner, and what is to end has to be ended
            log.error("it is not known how long a kernel may take to end: %r", error, exc_info=error)
    return max(waits) + _KERNELS


def _forget_failed(kernels: Any) -> None:
    """Have starts that have failed not count among those under way."""
    pending = kernels._pending_kernels
    for kernel_id in [each for each, task in pending.items() if task.done() and each not in kernels]:
        del pending[kernel_id]


async def _await_starts(kernels: Any) -> None:
    """Wait for starts and restarts that are under way: of a kernel that is just being started nothing can be ended, or kept."""
    futures = [manager.ready for manager in kernels._kernels.values() if not manager.ready.done()]
    futures += [task for task in kernels._pending_kernels.values() if not task.done()]
    if futures:
        await asyncio.wait(
            {each if isinstance(each, asyncio.Future) else asyncio.wrap_future(each) for each in futures},
            timeout=_STARTS,
        )


async def _await_others(kernels: Any) -> None:
    """Wait for the ends that are under way beside one that has failed."""
    ending = {task for task in kernels._pending_kernels.values() if not task.done()}
    if ending:
        await asyncio.wait(ending, timeout=_KERNELS)
