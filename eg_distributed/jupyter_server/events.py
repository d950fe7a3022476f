"""Jupyter events of hosts: that one is out of reach, or back; that a kernel has moved, is lost, or could not be restarted.

Whoever listens at `/api/events/subscribe` gets them: our front-end extension, which shows them to people, and any other program.
They say no more than `/api/kernels` does, and nothing that a kernel has printed; most are a difference between two looks at that.
A kernel that starts is unknown there as well, so an outage is what has a `since`.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from tornado.ioloop import PeriodicCallback
from tornado.web import HTTPError

__all__ = ["SCHEMA", "begin"]

log = logging.getLogger(__name__)

SCHEMA: Final = "https://eg-distributed.invalid/events/host/v1"
"""The schema's id, which is a name and no address."""
_ACTIONS: Final = ("out_of_reach", "back", "left", "moved", "lost", "restart_refused", "restart_failed")
_LOOK: Final = 1.0
"""Seconds between two looks at all kernels; each costs their models."""
_ALIVE, _DEAD = "alive", "dead"

DEFINITION: Final[dict[str, Any]] = {
    "$id": SCHEMA,
    "version": "1",
    "title": "What happened to a host, or to kernels there",
    "description": (
        "out_of_reach: the host does not answer; its kernels are kept. back: it answers again. left: it does not answer, and "
        "no kernel of this server is there any more. moved: a kernel runs on this host now. lost: a kernel has been given up "
        "with its host. restart_refused: a kernel was not restarted, and is as it was. restart_failed: it has ended, and was "
        "not started again."
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
        """The last word on each kernel that is listed, by its id; there is none while it starts anew."""
        self._homes: dict[str, str] = {}
        """The host on which each of them was last alive."""
        self._lost: set[str] = set()
        """Those that were told to be lost."""
        self._away: dict[str, list[str]] = {}
        """Of hosts that do not answer, which kernels are there."""

    def look(self) -> None:
        """Tell what has changed since the last call; called on the server's loop."""
        now = {each: said for each in self._kernels.list_kernel_ids() if (said := self.said(each))}
        for kernel_id, said in now.items():
            self._compare(kernel_id, said)
        away: dict[str, list[str]] = {}
        for kernel_id, said in now.items():
            if "since" in said:
                away.setdefault(said["host"], []).append(kernel_id)
        for host in away.keys() - self._away.keys():
            since = now[away[host][0]]["since"]
            text = f"{host} has not answered since {_clock(since)}. Its kernels and their output are kept."
            self._emit("out_of_reach", host, away[host], text, since=since)
        for host in self._away.keys() - away.keys():
            there = [each for each, said in now.items() if said["host"] == host and each not in self._lost]
            if there:
                self._emit("back", host, there, f"{host} is back.")
            else:
                text = f"No kernel of this server is on {host} any more, which had not answered."
                self._emit("left", host, self._away[host], text)
        self._seen, self._away = now, away
        for kept in (self._homes.keys() - now.keys(), self._lost - now.keys()):
            for kernel_id in set(kept):
                self._homes.pop(kernel_id, None)
                self._lost.discard(kernel_id)

    def said(self, kernel_id: str) -> _Said | None:
        """Return the last word on a kernel that is listed; None for one that is not ours."""
        try:
            said = self._kernels.kernel_model(kernel_id).get("distributed")
        except (HTTPError, KeyError, AttributeError):  # it starts, or ends, in this moment
            said = None
        return said if said and {"host", "state"} <= said.keys() else self._seen.get(kernel_id)

    def _compare(self, kernel_id: str, said: _Said) -> None:
        host, home = said["host"], self._homes.get(kernel_id)
        if said["state"] == _ALIVE:
            self._homes[kernel_id] = host
            self._lost.discard(kernel_id)
            if home not in (None, host):
                text = f"A kernel that was on {home} has been started anew on {host}."
                self._emit("moved", host, [kernel_id], text, previous_host=home)
        elif said["state"] == _DEAD and kernel_id not in self._lost and self._is_lost(kernel_id):
            self._lost.add(kernel_id)
            self._emit("lost", host, [kernel_id], f"{host} has not answered for too long. A kernel there was given up.")

    def _is_lost(self, kernel_id: str) -> bool:
        """Return True if the kernel was given up with its host."""
        try:
            return bool(getattr(self._kernels.get_kernel(kernel_id).provisioner, "is_lost", False))
        except KeyError:
            return False

    def not_restarted(self, kernel_id: str, before: _Said, error: Exception) -> None:
        """Tell that a kernel of ours, of which *before* was said, was not restarted."""
        try:
            lives = self._kernels.get_kernel(kernel_id).has_kernel
        except KeyError:
            lives = False
        host = before["host"]
        if lives:
            said = " ".join(str(error).split())  # it may be in lines
            self._emit("restart_refused", host, [kernel_id], f"The kernel was not restarted, and is as it was. {said}")
        else:
            text = f"The kernel that was on {host} has ended, and was not started again. The server's log says why."
            self._emit("restart_failed", host, [kernel_id], text)


def _clock(since: str) -> str:
    """Return an ISO time as people read it, in this machine's zone."""
    try:
        return datetime.fromisoformat(since).astimezone().strftime("%H:%M:%S %Z")
    except ValueError:
        return "some time ago"


def begin(app: Any) -> None:
    """Have *app*, a ServerApp, emit the events; called before it serves HTTP."""
    if getattr(getattr(app, "gateway_config", None), "gateway_enabled", False):
        return  # its kernels are a gateway's
    if inspect.iscoroutinefunction(inspect.unwrap(app.kernel_manager.kernel_model)):
        log.info("hosts have no events here: this server's kernel manager tells of a kernel only when it is waited for")
        return
    app.event_logger.register_event_schema(DEFINITION)

    def emit(action: str, host: str, kernels: list[str], message: str, **more: str) -> None:
        data = {"action": action, "host": host, "kernels": kernels, "message": message, **more}
        try:
            app.event_logger.emit(schema_id=SCHEMA, data=data)
        except Exception:  # of whoever listens: neither a look nor a restart is to fail by it
            log.exception("an event of %s was not told", host)

    watch = Watch(app.kernel_manager, emit)
    restart_kernel = app.kernel_manager.restart_kernel

    @functools.wraps(restart_kernel)
    async def restart_and_tell(kernel_id: str, *args: Any, **kwargs: Any) -> Any:
        before = watch.said(kernel_id)
        try:
            return await restart_kernel(kernel_id, *args, **kwargs)
        except Exception as error:  # told, and raised as it came
            if before is not None:
                watch.not_restarted(kernel_id, before, error)
            raise

    app.kernel_manager.restart_kernel = restart_and_tell
    app.io_loop.add_callback(PeriodicCallback(watch.look, _LOOK * 1000).start)
