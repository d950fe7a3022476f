"""Progress of long Spark jobs, shown below the cell that runs them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
import uuid
from typing import Any, Callable, Optional, Sequence

from ..reasons import stuck

_FIRST, _EVERY = 3.0, 1.0
"""Seconds that a cell runs before anything is shown, and between two looks."""
_IDLE = 10.0  # seconds without a single task under way after which it is said that nothing moves
_SETTLED = 0.3  # seconds that Spark may take to know what the cell has been told already
_LAST = 1.0  # seconds for the last look, which the end of the cell waits for
_ORDERED = re.compile(r"killed by driver|decommission|idle", re.IGNORECASE)
"""Why executors go that are sent away: dynamic allocation has its own reasons."""
_OFF = ("0", "off", "false", "no")


class _Cell:
    """One cell that runs, and the thread that watches it."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.told = threading.Event()
        """Set when the last word has been shown."""


class Progress:
    """Shows stages and tasks of the cell that runs, from a thread of its own.

    EG_SPARK_PROGRESS=off leaves of that what a user can't see otherwise: that nothing runs. *context* returns the SparkContext,
    or None.
    """

    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context
        self._on = os.environ.get("EG_SPARK_PROGRESS", "").lower() not in _OFF
        self._cell: Optional[_Cell] = None

    def cell_begins(self, kernel: Any) -> None:
        """A cell begins, on the kernel's main thread; it may be the one that makes the context."""
        if kernel is not None:
            self._cell = cell = _Cell()
            parent = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else kernel._parent_header
            threading.Thread(target=self._run, args=(kernel, parent, cell), daemon=True, name="spark-progress").start()

    def cell_ends(self) -> None:
        """The cell has ended: what was shown for it is brought up to date, and nothing more comes."""
        cell, self._cell = self._cell, None
        if cell is not None:
            cell.ended.set()
            cell.told.wait(_LAST)

    def _run(self, kernel: Any, parent: Any, cell: _Cell) -> None:
        try:
            self._watch(kernel, parent, cell.ended)
        finally:
            cell.told.set()

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
            with contextlib.suppress(
                Exception
            ):  # without a context, or with one that is ending, there is nothing to show
                active = sorted(self._context().statusTracker().getActiveStageIds())
                text, busy = _state(self._context(), active)
                seen = active or seen
                moved = time.monotonic() if busy or not text else moved
                reason = _why_stuck(self._context()) if text and time.monotonic() - moved > _IDLE else ""
                if not ended.is_set():
                    show("\n".join(filter(None, [text if self._on else "", reason])))
        if shown:
            with contextlib.suppress(Exception):  # as above
                show(_last(self._context(), seen) if self._on else "")


def _why_stuck(context: Any) -> str:
    """Return why nothing runs, as Spark knows of executors that were there; begins with the host, ends with the remedy."""
    ever, reasons, driver = True, list[str](), "spark.driver.host"
    with contextlib.suppress(Exception):  # another release's store: the general advice holds there, too
        conf = context.getConf()
        driver = f"{conf.get('spark.driver.host')}:{conf.get('spark.driver.port')}"
        listed = context._jsc.sc().statusStore().executorList(False)
        found = [listed.apply(number) for number in range(listed.size())]
        executors = [each for each in found if each.id() != "driver"]
        ever = bool(executors)
        gone = sorted(
            (each for each in executors if each.removeReason().isDefined()), key=lambda each: _number(each.id())
        )
        # The next one may be starting at this moment, whose end is as near.
        reasons = [
            reason for reason in (str(each.removeReason().get()) for each in gone) if not _ORDERED.search(reason)
        ]
    return f"{socket.gethostname()}: {stuck(ever, reasons, driver)}"


def _number(name: str) -> int:
    return int(name) if name.isdigit() else 0


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
