"""Calls that have no time limit of their own, given one."""

from __future__ import annotations

import threading
from typing import Callable, TypeVar

T = TypeVar("T")


def within(seconds: float, function: Callable[[], T], otherwise: T) -> T:
    """Return what *function* returns, or *otherwise* if that takes longer; the call itself goes on, in a daemon thread."""
    answer = [otherwise]

    def call() -> None:
        answer[0] = function()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0]
