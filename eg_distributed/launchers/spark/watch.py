"""What a cell that waits for the session is told: that it waits, and, of YARN, for what."""

from __future__ import annotations

import re
import sys
import time
from typing import Any, Callable, Optional

from .options import SparkOptions
from .yarn import FINAL, ResourceManagers

_FIRST, _EVERY = 4.0, 2.0
"""Seconds until the first word, and between two questions to the ResourceManager."""
_LAUNCHED = "AM container is launched"
"""What YARN says of an application that has its room and is starting."""
_STARTING = re.compile(
    r"Application is Activated, waiting for resources to be assigned for AM\Z"
    r"|Application is added to the scheduler and is not yet activated\Z"
)
"""What YARN says of any application for a moment. Where it goes on saying so, it has no room."""
_LOOKS = 3  # in a row that find that, before it is said to be for lack of room
_REMEDY = "wait, interrupt the cell, or ask the cluster's operator for room in the queue"


class Watch:
    """One wait of one cell; *options* may be unknown at first."""

    def __init__(self, options: Callable[[], Optional[SparkOptions]]) -> None:
        self._options = options
        self._began = time.monotonic()
        self._next = self._began + _FIRST
        self._said = ""
        self._starting = 0

    def look(self) -> None:
        """Say what is new, if it is time to."""
        now = time.monotonic()
        options = self._options()
        if now < self._next or options is None:
            return
        self._next = now + _EVERY
        said = self._state(options)
        if said and said != self._said:
            self._said = said
            print(said, file=sys.stderr, flush=True)

    def _state(self, options: SparkOptions) -> str:
        if not options.on_yarn:
            return "waiting for the Spark session …"
        managers = ResourceManagers.of(options.env)
        living = [a for a in (managers.applications(options.attempt_tag) or []) if a.get("state") not in FINAL]
        if not living:
            return "waiting for the Spark session …"
        application = living[0]
        reason = _reason(application)
        where = f"YARN application {application['id']} in queue {application.get('queue', '?')}"
        self._starting = self._starting + 1 if _STARTING.search(reason) else 0
        starts = not reason or _LAUNCHED in reason or 0 < self._starting < _LOOKS
        if application["state"] != "ACCEPTED" or starts:
            return f"{where} is {application['state']} …"
        return f"{where} is ACCEPTED and waits for room: {reason} ({_REMEDY})"


def _reason(application: dict[str, Any]) -> str:
    """Return what YARN says of an application, without the figures of its queue that follow: half a page of them."""
    said = re.sub(r"^\[.*?\]\s*", "", str(application.get("diagnostics") or ""))
    return re.sub(r"\s*Details\s*:.*", "", said, flags=re.DOTALL).strip().rstrip(".; ")
