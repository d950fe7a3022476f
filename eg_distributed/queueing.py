"""What a start knows of its place among those of its host, and how long its gateway waits for that."""

from __future__ import annotations

import asyncio
import logging

from .errors import KernelStartTimeout
from .protocol import Queued

log = logging.getLogger(__name__)

_LONGEST = 3600.0
"""Seconds that a start waits at most, however its queue moves. One that is full moves faster, as long as its agent is honest."""
_SAID_AGAIN = 30.0  # seconds between two lines of the log for one start


class Place:
    """One kernel's place in the queue of the host on which it is being started; owned by its handle, on the cluster's loop.

    A start's time-outs count from when its host begins with it. Until then it is waited for as long as the queue moves.
    """

    def __init__(self, kernel_id: str) -> None:
        self._kernel = kernel_id
        self.before = -1  # starts that come before it; -1: it does not wait
        self.seconds = 0.0
        """How long it has waited so far, on one host or several; no part of the launch timeout."""
        self._begun = 0  # turns that have come there
        self._since = self._heard_at = self._moved_at = self._said_at = 0.0  # in the loop's time
        self._host = ""
        self._is_known = False  # this host has told of a queue
        self._silence = self._patience = 0.0

    def begin(self, host: str, silence: float, patience: float) -> None:
        """Ask *host*, which is given up after *silence* seconds without a word, or *patience* without a turn for anyone."""
        self._host, self._silence, self._patience = host, silence, patience
        self._is_known, self.before = False, -1

    def hear(self, told: Queued) -> None:
        """Take what the host says of it."""
        now = asyncio.get_running_loop().time()
        if not self._is_known or told.begun != self._begun:
            self._begun, self._moved_at = told.begun, now
        if told.before >= 0 and (self.before < 0 or now - self._said_at >= _SAID_AGAIN):
            self._said_at = now
            log.info("kernel %s: waiting for its turn on %s, %d before it", self._kernel, self._host, told.before)
        if self.before < 0 <= told.before:
            self._since = now
        elif told.before < 0 <= self.before:
            self.seconds += now - self._since
        self._is_known, self._heard_at, self.before = True, now, told.before

    def leave(self) -> None:
        """Wait no more: the request was answered, or given up."""
        if self.before >= 0:
            self.seconds += asyncio.get_running_loop().time() - self._since
            self.before = -1

    def patience(self) -> float:
        """Return the seconds for which the host's answer is to be waited for from now on, although it is overdue.

        None are left, which is 0 or less, if the host told of no queue, or says nothing any more. Raises KernelStartTimeout if
        the queue does not move.
        """
        now = asyncio.get_running_loop().time()
        left = self._heard_at + self._silence - now if self._is_known else 0.0
        if self.before < 0 or left <= 0:
            return left
        if now - self._since >= _LONGEST:
            raise KernelStartTimeout(
                f"the kernel did not get its turn within {_LONGEST:g} s, in which others did: {self.before} starts are before it",
                host=self._host,
                remedy="start it on another host; see what runs and starts there: `jupyter distributed kernels`",
            )
        moves = self._moved_at + self._patience - now
        if moves <= 0:
            raise KernelStartTimeout(
                f"the kernel did not get its turn: {self.before} starts are before it there, and none has begun for "
                f"{self._patience:g} s",
                host=self._host,
                remedy="see what runs and starts there: `jupyter distributed kernels`; raise KERNEL_LAUNCH_TIMEOUT where a start "
                "takes longer than that",
            )
        return min(left, moves)
