"""Jupyter events of hosts: that one is out of reach, or back; that a kernel has moved, is lost, or could not be restarted.

Whoever listens at `/api/events/subscribe` gets them: our front-end extension, which shows them to people, and any other program.
They say no more than `/api/kernels` does; each is a difference between two looks at that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from jupyter_core.utils import ensure_async
from tornado.ioloop import PeriodicCallback
from tornado.web import HTTPError

__all__ = ["SCHEMA", "begin"]

SCHEMA: Final = "https://eg-distributed.invalid/events/host/v1"
"""The schema's id, which is a name and no address."""
_ACTIONS: Final = ("out_of_reach", "back", "left", "moved", "lost", "restart_refused")
_LOOK: Final = 1.0
"""Seconds between two looks at all kernels; each costs their models."""
_UNKNOWN, _DEAD = "unknown", "dead"

DEFINITION: Final[dict[str, Any]] = {
    "$id": SCHEMA,
    "version": "1",
    "title": "What happened to a host, or to kernels there",
    "description": (
        "out_of_reach: the host does not answer; its kernels are kept. back: it answers again. left: it does not answer, and "
        "no kernel of this server is there any more. moved: a kernel is on this host now. lost: a kernel has been given up "
        "with its host. restart_refused: a kernel was not restarted, and is as it was."
    ),
    "personal-data": False,
    "type": "object",
    "required": ["action", "host", "kernels", "message"],
    "properties": {
        "action": {"type": "string", "enum": list(_ACTIONS), "description": "What happened."},
        "host": {"type": "string", "description": "The host, by the name that remote_hosts has."},
        "kernels": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Ids of the kernels that it is about.",
        },
        "message": {"type": "string", "description": "The same for people, in a sentence or two."},
        "since": {"type": "string", "description": "Since when the host has not answered, as ISO 8601."},
        "previous_host": {"type": "string", "description": "Where a kernel was that moved."},
    },
}
_Said = Mapping[str, str]
"""What a kernel's model has as `distributed`: host, state and, of a silent host, since."""
Emit = Callable[..., None]


class Watch:
    """Compares what the server's kernels are said to be with what was said of them before."""

    def __init__(self, kernels: Any, emit: Emit) -> None:
        self._kernels = kernels
        self._emit = emit
        self._seen: dict[str, _Said] = {}
        """By the kernel's id."""
        self._away: dict[str, list[str]] = {}
        """Of hosts that do not answer, which kernels are there."""

    def look(self) -> None:
        """Tell what has changed since the last call; called on the server's loop."""
        found = {kernel_id: said for kernel_id in self._kernels.list_kernel_ids() if (said := self._model(kernel_id))}
        for kernel_id, said in found.items():
            self._compare(kernel_id, self._seen.get(kernel_id, said), said)
        away: dict[str, list[str]] = {}
        for kernel_id, said in found.items():
            if said["state"] == _UNKNOWN:
                away.setdefault(said["host"], []).append(kernel_id)
        for host in away.keys() - self._away.keys():
            since = found[away[host][0]].get("since", "")
            text = f"{host} has not answered since {_clock(since)}. Its kernels and their output are kept."
            self._emit("out_of_reach", host, away[host], text, since=since)
        for host in self._away.keys() - away.keys():
            there = [each for each, said in found.items() if said["host"] == host and said["state"] != _DEAD]
            if there:
                self._emit("back", host, there, f"{host} is back, with its kernels.")
            else:
                self._emit(
                    "left", host, self._away[host], f"{host} did not answer, and has no kernel of this server any more."
                )
        self._seen, self._away = found, away

    def _model(self, kernel_id: str) -> _Said | None:
        try:
            said = self._kernels.kernel_model(kernel_id).get("distributed")
        except (HTTPError, KeyError, AttributeError):  # it starts, or ends, in this moment
            return None
        return said if said and {"host", "state"} <= said.keys() else None

    def _compare(self, kernel_id: str, before: _Said, now: _Said) -> None:
        old, host = before["host"], now["host"]
        if host != old:
            self._emit(
                "moved", host, [kernel_id], f"A kernel of {old} has been started anew on {host}.", previous_host=old
            )
        elif before["state"] == _UNKNOWN and now["state"] == _DEAD:
            self._emit(
                "lost", host, [kernel_id], f"{host} has not answered for too long. A kernel there has been given up."
            )

    def refused(self, kernel_id: str, error: Exception) -> None:
        """Tell that a kernel was not restarted, if it is one of ours."""
        said = self._model(kernel_id)
        if said is not None:
            self._emit("restart_refused", said["host"], [kernel_id], f"The kernel was not restarted. {error}")


def _clock(since: str) -> str:
    """Return an ISO time as people read it, in this machine's zone."""
    try:
        return datetime.fromisoformat(since).astimezone().strftime("%H:%M:%S %Z")
    except ValueError:
        return "some time ago"


def begin(app: Any) -> None:
    """Have *app*, a ServerApp, emit the events; called before it serves HTTP."""
    app.event_logger.register_event_schema(DEFINITION)

    def emit(action: str, host: str, kernels: list[str], message: str, **more: str) -> None:
        data = {"action": action, "host": host, "kernels": kernels, "message": message, **more}
        app.event_logger.emit(schema_id=SCHEMA, data=data)

    watch = Watch(app.kernel_manager, emit)
    restart_kernel = app.kernel_manager.restart_kernel

    @functools.wraps(restart_kernel)
    async def restart_and_tell(kernel_id: str, *args: Any, **kwargs: Any) -> None:
        try:
            await ensure_async(restart_kernel(kernel_id, *args, **kwargs))
        except Exception as error:  # told, and raised as it came
            watch.refused(kernel_id, error)
            raise

    app.kernel_manager.restart_kernel = restart_and_tell
    app.io_loop.add_callback(PeriodicCallback(watch.look, _LOOK * 1000).start)
