"""What Enterprise Gateway's environment does slowly, or wrongly, on every kernel's way; put right by our process proxy.

All of it is in Enterprise Gateway's own handlers, or in libraries that it pins to old releases, and none offers a hook. The
patches keep what the patched functions promise.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from types import MethodType
from typing import Any

from enterprise_gateway.services.kernels.remotemanager import RemoteMappingKernelManager
from jupyter_client import jsonutil
from jupyter_server.services.kernels.handlers import KernelActionHandler, ZMQChannelsHandler
from tornado.web import HTTPError

from eg_distributed.clients import sessions

log = logging.getLogger(__name__)


def turn_nagle_off() -> None:
    """Have websockets send at once: Nagle's algorithm and delayed ACKs add 40 ms to a cell.

    tornado names `open` as the place for this; jupyter_server's handler does not do it.
    """
    original = ZMQChannelsHandler.open

    @functools.wraps(original)
    def open_without_delay(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.set_nodelay(True)
        return original(self, *args, **kwargs)

    ZMQChannelsHandler.open = open_without_delay


def parse_dates_quickly() -> None:
    """Read the dates in messages with the standard library where it can.

    jupyter_client 6 gives each of a message's dates to dateutil, which guesses formats: a third of the gateway's time for a
    cell, where a message is read once for the client and once more to note the activity.
    """
    guess = jsonutil._dateutil_parse

    @functools.wraps(guess)
    def parse(text: str) -> datetime:
        try:
            return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        except ValueError:
            guessed: datetime = guess(text)
            return guessed

    jsonutil._dateutil_parse = parse


class _PerRequest:
    """A method that a request may replace for itself, not for all: what is assigned is seen in the assigning task alone."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self._replaced: ContextVar[Any] = ContextVar("replaced", default=None)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self._original
        return self._replaced.get() or MethodType(self._original, instance)

    def __set__(self, instance: Any, value: Any) -> None:
        self._replaced.set(value)


def keep_environments_apart() -> None:
    """Have each request start its kernel with its own `env`.

    Enterprise Gateway's handler replaces the kernel manager's `start_kernel` for the time of a request, and puts back what it
    found there. Of two requests at once, one finds the other's, and leaves it: later kernels then run as that user.
    """
    if not isinstance(vars(RemoteMappingKernelManager).get("start_kernel"), _PerRequest):
        RemoteMappingKernelManager.start_kernel = _PerRequest(RemoteMappingKernelManager.start_kernel)


def say_why_restarts_fail() -> None:
    """Have the answer to a restart that failed have the status of its error, and say host, cause and remedy, as a start's does.

    jupyter_server's handler answers 500, "Exception restarting kernel", and a traceback without its last line, which counts.
    """
    restart = RemoteMappingKernelManager.restart_kernel
    write, set_status = KernelActionHandler.write, KernelActionHandler.set_status
    # Each request is a task, and so a context, of its own.
    failed: ContextVar[HTTPError | None] = ContextVar("failed", default=None)

    @functools.wraps(restart)
    async def restart_noting_failure(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            await restart(self, *args, **kwargs)
        except HTTPError as error:
            failed.set(error)
            raise

    @functools.wraps(write)
    def write_with_reason(self: Any, chunk: Any) -> None:
        error = failed.get()
        if error is not None and (reason := error.reason or error.log_message):
            answer = json.loads(chunk)
            answer["message"] += f": {reason}"
            chunk = json.dumps(answer)
        write(self, chunk)

    @functools.wraps(set_status)
    def set_status_of_error(self: Any, status_code: int, reason: str | None = None) -> None:
        error = failed.get()
        set_status(self, status_code if error is None else error.status_code, reason)

    RemoteMappingKernelManager.restart_kernel = restart_noting_failure
    KernelActionHandler.write, KernelActionHandler.set_status = write_with_reason, set_status_of_error


def renew_session_key(kernel_id: str, key: bytes) -> None:
    """Have the kernel's open websockets sign with *key* from now on; called on the gateway's loop after a restart.

    Enterprise Gateway's launchers make a new key at each start. jupyter_server reads it when a websocket is opened and never
    again, so that clients who stay connected over a restart would wait for ever.
    """
    for connection in sessions.of_kernel(kernel_id):
        connection.ends.session.key = key
