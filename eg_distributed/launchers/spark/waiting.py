"""Calls that have no time limit of their own, given one."""

from __future__ import annotations

import threading
from typing import Callable, TypeVar

T = TypeVar("T")


def within(seconds: float, function: Callable[[], T], otherwise: T) -> T:
    """Return what *function* returns, or *otherwise* if that takes longer; the call itself goes on, in a daemon thread.

    The wait is for an event: a thread that goes on counts as ended once a signal has interrupted its `join` (before Python 3.13).
    """
    answer = [otherwise]
    done = threading.Event()

    def call() -> None:
        try:
            answer[0] = function()
        finally:
            done.set()

    threading.Thread(target=call, daemon=True).start()
    done.wait(seconds)
    return answer[0]
