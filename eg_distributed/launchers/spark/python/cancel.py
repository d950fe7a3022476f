"""Interrupts of a Python kernel that reach Spark's jobs: those that run, and those that an interrupted call begins later."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Any, Callable

_GROUP = "spark.jobGroup.id"
_AGAIN = 0.2
"""Seconds between two looks for jobs that an interrupted call has begun meanwhile: a plan that was ready, a loop in the JVM."""
_FOLLOWED = 5.0  # seconds for which they are looked for
_PATIENCE = 3.0  # seconds that the next message waits for an interrupt's own cancellation


class Cancellation:
    """Cancels jobs, in a thread of its own; owned by the kernel's Session. *context* returns the SparkContext, or None.

    Each cell's jobs are a group, so that what an interrupted cell still begins is told from what the next one runs.
    """

    def __init__(self, context: Callable[[], Any]) -> None:
        self._context = context
        self._cells = 0
        self._group = ""
        # A signal's handler may put into it whatever the interrupted thread was at: it takes no lock.
        self._wanted: queue.SimpleQueue[tuple[str, threading.Event]] = queue.SimpleQueue()
        self._pending: list[threading.Event] = []

    def begin(self) -> None:
        """Start the thread, for as long as the kernel lives."""
        threading.Thread(target=self._work, name="spark-cancel", daemon=True).start()

    def cell_begins(self) -> None:
        """Have the jobs of the cell that begins, or whose session has come, be a group, unless the user has named one."""
        context = self._context()
        if context is None:
            return
        with contextlib.suppress(Exception):  # a context that is ending has no jobs to name
            named = context.getLocalProperty(_GROUP)
            if named is not None and named != self._group:
                self._group = ""
                return
            self._cells += 1
            self._group = f"cell-{self._cells}"
            context.setLocalProperty(_GROUP, self._group)

    def soon(self) -> None:
        """Cancel what runs, from the thread: the caller is a signal's handler amid a call to the JVM."""
        if self._context() is not None:
            done = threading.Event()
            self._pending.append(done)
            self._wanted.put((self._group, done))

    def wait(self) -> None:
        """Return once all interrupts so far have had their effect: one that comes later would cancel the next cell's jobs."""
        deadline = time.monotonic() + _PATIENCE
        while self._pending:
            self._pending.pop(0).wait(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        followed: dict[str, float] = {}
        while True:
            with contextlib.suppress(queue.Empty):
                group, done = self._wanted.get(timeout=_AGAIN if followed else None)
                with contextlib.suppress(Exception):  # the JVM may be ending: then there is nothing left to cancel
                    self._context().cancelAllJobs()
                done.set()
                if group:
                    followed[group] = time.monotonic() + _FOLLOWED
            followed = {group: until for group, until in followed.items() if time.monotonic() < until}
            for group in followed:
                with contextlib.suppress(Exception):  # as above
                    self._context().cancelJobGroup(group)
