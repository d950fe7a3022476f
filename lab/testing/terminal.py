"""How a lab comes up, as lines on pytest's terminal: the first time it may take minutes."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """What is needed of pytest's terminal reporter."""

    def ensure_newline(self) -> None:
        """Begin a new line unless at one's beginning."""

    def write_line(self, line: str) -> None:
        """Write a line past pytest's capturing."""


class TerminalProgress:
    """A Progress: steps and notes as lines."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def step(self, text: str) -> None:
        """Print *text*."""
        self._reporter.ensure_newline()
        self._reporter.write_line(f"lab: {text}")

    def detail(self, text: str) -> None:
        """Drop *text*: one line a step is enough between tests."""

    def note(self, text: str) -> None:
        """Print *text*."""
        self.step(text)
