"""Progress of long Spark jobs, shown below the cell that runs them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from typing import Any, Callable, Optional, Sequence

_FIRST, _EVERY = 3.0, 1.0
"""Seconds that a cell runs before anything is shown, and between two looks."""
_IDLE = 10.0  # seconds without a single task under way after which it is said that nothing moves
_SETTLED = 0.3  # seconds that Spark may take to know what the cell has been told already
_LAST = 1.0  # seconds for the last look, which the end of the cell waits for
_OFF = ("0", "off", "false", "no")
_STUCK = (
    "no task runs: the cluster has no executor, no free core or no memory for this application; wait, end other applications, "
    "or ask for less (--executor-memory, --executor-cores)"
)


class Progress:
    """Shows stages and tasks of the cell that runs, from a thread of its own.

    EG_SPARK_PROGRESS=off leaves of that what a user can't see otherwise: that nothing runs. *context* returns the SparkContext,
    or None.
    """

    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context
        self._on = os.environ.get("EG_SPARK_PROGRESS", "").lower() not in _OFF
        self._running: Optional[threading.Event] = None
        self._thread: Optional[threading.Thread] = None

    def cell_begins(self, kernel: Any) -> None:
        """A cell begins, on the kernel's main thread."""
        if kernel is not None and self._context() is not None:
            self._running = ended = threading.Event()
            parent = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else kernel._parent_header
            self._thread = threading.Thread(
                target=self._watch, args=(kernel, parent, ended), daemon=True, name="spark-progress"
            )
            self._thread.start()

    def cell_ends(self) -> None:
        """The cell has ended: what was shown for it is brought up to date, and nothing more comes."""
        if self._running is not None and self._thread is not None:
            self._running.set()
            self._thread.join(_LAST)
            self._running = self._thread = None

    def _watch(self, kernel: Any, parent: Any, ended: threading.Event) -> None:
        shown: list[str] = []
        identity = {"display_id": uuid.uuid4().hex}
        seen: list[int] = []

        def show(text: str) -> None:
            if text and shown[-1:] != [text]:
                kind = "update_display_data" if shown else "display_data"
                content = {"data": {"text/plain": text}, "metadata": {}, "transient": identity}
                kernel.session.send(kernel.iopub_socket, kind, content, parent=parent, ident=kernel._topic(kind))
                shown.append(text)

        moved = time.monotonic()
        wait = _FIRST
        while not ended.wait(wait):
            wait = _EVERY
            with contextlib.suppress(Exception):  # a context that is ending has no progress to show
                active = sorted(self._context().statusTracker().getActiveStageIds())
                text, busy = _state(self._context(), active)
                seen = active or seen
                moved = time.monotonic() if busy or not text else moved
                stuck = f"{socket.gethostname()}: {_STUCK}" if text and time.monotonic() - moved > _IDLE else ""
                if not ended.is_set():
                    show("\n".join(filter(None, [text if self._on else "", stuck])))
        if shown:
            with contextlib.suppress(Exception):  # as above
                show(_last(self._context(), seen) if self._on else "")


def _last(context: Any, ids: Sequence[int]) -> str:
    """Return the line on stages that have ended, once Spark's own news of that have arrived."""
    deadline = time.monotonic() + _SETTLED
    while True:
        text, busy = _state(context, ids)
        if not busy or time.monotonic() > deadline:
            return text
        time.sleep(0.02)


def _state(context: Any, ids: Sequence[int]) -> tuple[str, bool]:
    """Return a line on the stages of these *ids*, empty if there are none, and whether any of their tasks is under way."""
    stages = [stage for stage in map(context.statusTracker().getStageInfo, ids) if stage is not None]
    texts = [
        f"stage {stage.stageId}: {stage.numCompletedTasks} of {stage.numTasks} tasks done"
        + (f", {stage.numActiveTasks} running" if stage.numActiveTasks else "")
        + (f", {stage.numFailedTasks} failed" if stage.numFailedTasks else "")
        for stage in stages
    ]
    return "Spark " + "; ".join(texts) if texts else "", any(stage.numActiveTasks for stage in stages)
