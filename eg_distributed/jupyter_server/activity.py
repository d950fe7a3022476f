"""What a kernel that was found again does just now: idle or busy, which it says of itself only when that changes."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_client.session import Session

from eg_distributed.clients.kept_output import note_question

__all__ = ["learn_state"]

_BUSY = 1.0
"""Seconds that an idle kernel has for its answer once it has shown, on its control channel, that it is there."""
_LATEST = 86_400.0  # seconds for which an answer is waited for, by a socket that does nothing else
_SILENT = 5.0  # seconds that it has where it shows nothing: kernels without a thread for control answer nothing while they work


async def learn_state(manager: Any, unknown: str) -> None:
    """Ask the kernel of *manager*, whose state is *unknown*, for its info: at once it answers only if it is idle.

    Nothing of it reaches clients but what any client's own asking does: each asks when it connects.
    """
    session = Session(config=manager.session.config, key=manager.session.key)
    shell, control = manager.connect_shell(), manager.connect_control()
    answered, shown = asyncio.Event(), asyncio.Event()
    is_late = False
    try:
        shell.on_recv(lambda _: answered.set())
        control.on_recv(lambda _: shown.set())
        for name, stream in (("shell", shell), ("control", control)):
            note_question(name, session.send(stream, "kernel_info_request"))
        waiting = [asyncio.ensure_future(answered.wait()), asyncio.ensure_future(shown.wait())]
        try:
            await asyncio.wait(waiting, timeout=_SILENT, return_when=asyncio.FIRST_COMPLETED)
            if shown.is_set():
                await asyncio.wait({waiting[0]}, timeout=_BUSY)
        finally:
            for task in waiting:
                task.cancel()
        if manager.execution_state == unknown:  # else it has said so itself
            is_late = not answered.is_set()
            manager.execution_state = "busy" if is_late else "idle"
        if is_late:
            _listen_on(manager, shell)
    finally:
        control.close()
        if not is_late:
            shell.close()


def _listen_on(manager: Any, shell: Any) -> None:
    """Take the kernel for idle when it answers after all: it was slow, or its cell is over, which it may have said before."""
    over = manager.loop.call_later(_LATEST, shell.close)

    def answer(_: object) -> None:
        manager.loop.remove_timeout(over)
        shell.close()
        if manager.execution_state == "busy":
            manager.execution_state = "idle"

    shell.on_recv(answer)
