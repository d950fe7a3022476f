"""What a launcher says when it can't start a kernel, or a session: the host, the cause, the remedy."""

from __future__ import annotations

import os
import shlex
import socket

_LOG = "see the kernel's log"


def logs_command() -> str:
    """Return the command that prints this kernel's log, where its gateway runs."""
    return f"`jupyter distributed logs {shlex.quote(os.environ.get('KERNEL_ID') or 'KERNEL')}`"


class LaunchError(Exception):
    """A start that can't succeed; the text names host, cause and *remedy*, and is the last thing in the kernel's log.

    A remedy that says "see the kernel's log" gets the command that prints it.
    """

    def __init__(self, cause: str, remedy: str, host: str = "") -> None:
        self.host = host or socket.gethostname()
        remedy = remedy.replace(_LOG, f"{_LOG} ({logs_command()})")
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{self.host}: {cause}; {remedy}")

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in place of a traceback, which would be all our own."""
        return [f"{type(self).__name__}: {self}"]
