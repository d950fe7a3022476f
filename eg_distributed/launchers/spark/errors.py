"""What a launcher says when it can't start a kernel, or a session: the host, the cause, the remedy."""

from __future__ import annotations

import socket


class LaunchError(Exception):
    """A start that can't succeed; the text names host, cause and *remedy*, and is the last thing in the kernel's log."""

    def __init__(self, cause: str, remedy: str, host: str = "") -> None:
        self.host = host or socket.gethostname()
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{self.host}: {cause}; {remedy}")

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback, which would be all our own."""
        return [f"{type(self).__name__}: {self}"]
