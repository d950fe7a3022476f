"""What holds for all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Have SIGINT do what it does at a terminal: a shell's background job ignores it, and so would what tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
