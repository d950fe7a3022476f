"""Progress on stderr: a spinner on a terminal, plain lines elsewhere, from the same calls."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console


class Progress(Protocol):
    """Who hears what a long operation is doing; the CLI shows it, tests may collect it."""

    def step(self, text: str) -> None:
        """Say what begins now; the step before it is thereby done."""

    def detail(self, text: str) -> None:
        """Say how far the current step has come; may be dropped."""

    def note(self, text: str) -> None:
        """Say something that stays."""


class Silent:
    """Hears nothing: the default of the Python API."""

    def step(self, text: str) -> None:
        """Drop *text*."""

    def detail(self, text: str) -> None:
        """Drop *text*."""

    def note(self, text: str) -> None:
        """Drop *text*."""


class StderrProgress:
    """Steps with their durations (seconds). rich looks at NO_COLOR and at whether stderr is a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._status = self._console.status("") if self._console.is_terminal else None
        self._current = ""
        self._began = 0.0
        # Asked once: while the spinner turns, rich stands in for sys.stderr.
        unicode = (self._console.encoding or "").lower().replace("-", "") == "utf8"
        self._done, self._failed = ("✓", "✗") if unicode else ("ok", "failed")

    def step(self, text: str) -> None:
        """Finish the current step and begin *text*."""
        self._finish(self._done)
        self._current, self._began = text, time.monotonic()
        if self._status is None:
            self._line(f"... {text}")
        else:
            self._status.update(text)
            self._status.start()

    def detail(self, text: str) -> None:
        """Show *text* behind the spinner; off a terminal it would only be noise."""
        if self._status is not None and self._current:
            self._status.update(f"{self._current} [dim]{text[:60].replace('[', '(')}[/dim]")

    def note(self, text: str) -> None:
        """Print *text* as a line of its own."""
        self._line(text)

    def close(self, *, ok: bool) -> None:
        """Finish the last step; the CLI calls this on every way out."""
        self._finish(self._done if ok else self._failed)

    def _finish(self, mark: str) -> None:
        if self._status is not None:
            self._status.stop()
        if self._current:
            self._line(f"{mark} {self._current} ({time.monotonic() - self._began:.1f} s)")
        self._current = ""

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
