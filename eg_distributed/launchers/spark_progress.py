"""Progress of long Spark jobs, shown below the cell that runs them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from typing import Any, Callable, Optional

_FIRST, _EVERY = 3.0, 1.0
"""Seconds that a cell runs before anything is shown, and between two looks."""
_IDLE = 10.0  # seconds without a single task under way after which it is said that nothing moves
_OFF = ("0", "off", "false", "no")


class Progress:
    """Shows stages and tasks of the cell that runs, from a thread of its own; EG_SPARK_PROGRESS=off turns it off.

    *context* returns the SparkContext, or None.
    """

    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context
        self._on = os.environ.get("EG_SPARK_PROGRESS", "").lower() not in _OFF
        self._running: Optional[threading.Event] = None

    def cell_begins(self, kernel: Any) -> None:
        """A cell begins, on the kernel's main thread."""
        if self._on and kernel is not None and self._context() is not None:
            self._running = ended = threading.Event()
            parent = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else kernel._parent_header
            threading.Thread(
                target=self._watch, args=(kernel, parent, ended), daemon=True, name="spark-progress"
            ).start()

    def cell_ends(self) -> None:
        """The cell has ended: nothing more is shown for it."""
        if self._running is not None:
            self._running.set()
            self._running = None

    def _watch(self, kernel: Any, parent: Any, ended: threading.Event) -> None:
        began = time.monotonic()
        shown = ""
        identity = {"display_id": uuid.uuid4().hex}
        moved = began
        wait = _FIRST
        while not ended.wait(wait):
            wait = _EVERY
            text = ""
            with contextlib.suppress(Exception):  # a context that is ending has no progress to show
                text, busy = _state(self._context())
                moved = time.monotonic() if busy or not text else moved
                if text and time.monotonic() - moved > _IDLE:
                    text += (
                        " (no task runs: the cluster has no executor, no free core or no memory for this application)"
                    )
            if text and text != shown and not ended.is_set():
                kind = "update_display_data" if shown else "display_data"
                content = {"data": {"text/plain": text}, "metadata": {}, "transient": identity}
                kernel.session.send(kernel.iopub_socket, kind, content, parent=parent, ident=kernel._topic(kind))
                shown = text


def _state(context: Any) -> tuple[str, bool]:
    """Return a line on the stages that run, empty if none does, and whether any of their tasks is under way."""
    tracker = context.statusTracker()
    stages = [stage for stage in map(tracker.getStageInfo, sorted(tracker.getActiveStageIds())) if stage is not None]
    texts = [
        f"stage {stage.stageId}: {stage.numCompletedTasks} of {stage.numTasks} tasks done, {stage.numActiveTasks} running"
        + (f", {stage.numFailedTasks} failed" if stage.numFailedTasks else "")
        for stage in stages
    ]
    return "Spark " + "; ".join(texts) if texts else "", any(stage.numActiveTasks for stage in stages)
