"""What Enterprise Gateway's environment does slower, or for a shorter time, than it could; used by our process proxy.

All of it is in libraries that Enterprise Gateway pins to old releases, and none offers a hook. The patches keep what the patched
functions promise; they are only about speed.
"""

from __future__ import annotations

import functools
from datetime import datetime
from typing import Any

from jupyter_client import jsonutil
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler


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


def renew_session_key(kernel_id: str, key: bytes) -> None:
    """Have the kernel's open websockets sign with *key* from now on; called on the gateway's loop after a restart.

    Enterprise Gateway's launchers make a new key at each start. jupyter_server reads it when a websocket is opened and never
    again, so that clients who stay connected over a restart would wait for ever.
    """
    for handler in ZMQChannelsHandler._open_sessions.values():
        if handler.kernel_id == kernel_id:
            handler.session.key = key
