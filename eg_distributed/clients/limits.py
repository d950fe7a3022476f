"""How large a websocket's messages may be, and a word in the log about one that is larger.

tornado takes 10 MiB, which a file in an upload widget soon has, and closes the connection without a word; neither Enterprise
Gateway nor jupyter_server has an option for it. The handler is given by the adapter, so this module needs no server.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


class _Limit(int):
    """The limit of one websocket, which logs each message that exceeds it.

    tornado compares a message's size with it as soon as the header is there, and closes the connection; the size is known nowhere
    else. Rejected: a copy of the method that reads frames, and a look at each message's header, which all messages would pay for.
    """

    whose = ""

    def __lt__(self, size: int) -> bool:
        exceeded = int(self) < size
        if exceeded:
            log.warning(
                "%s: a client's message has %d bytes, at most %d are allowed: its websocket is closed "
                "(Distributed.websocket_message_limit)",
                self.whose,
                size,
                self,
            )
        return exceeded

    def __gt__(self, size: int) -> bool:
        return int(self) > size


def limit_messages(handler: Any, limit: int) -> None:
    """Have *handler*'s websockets take messages of *limit* bytes; a setting of tornado's by the server's operator wins.

    Called by the adapter with the settings, which is before any of its kernels can have a websocket.
    """

    def max_message_size(self: Any) -> int:
        """Return the size up to which a message is taken; asked by tornado for each websocket when it is opened."""
        allowed = _Limit(self.settings.get("websocket_max_message_size", limit))
        allowed.whose = f"kernel {getattr(self, 'kernel_id', '?')}"
        return allowed

    handler.max_message_size = property(max_message_size)
