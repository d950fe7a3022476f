"""What verbs print: JSON and tables on stdout, notes and progress on stderr, times as people say them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from lab.progress import StderrProgress


def show(document: Any) -> None:
    """Print *document* as JSON on stdout."""
    click.echo(json.dumps(document, indent=2, default=str))


def note(text: str) -> None:
    """Say *text* on stderr: progress, not data."""
    click.echo(text, err=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], indent: str = "") -> None:
    """Print aligned columns on stdout; an empty cell is `-`, so that every line has as many words as the header."""
    lines = [list(header), *[["-" if cell in {None, ""} else str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        click.echo(indent + "  ".join(cells).rstrip())


@contextlib.contextmanager
def progress() -> Iterator[StderrProgress]:
    """Give a progress on stderr, and finish its last step on every way out."""
    shown = StderrProgress()
    done = False
    try:
        yield shown
        done = True
    finally:
        shown.close(ok=done)


def age(since: float) -> str:
    """Return how long ago *since* (UNIX seconds) was, in one unit."""
    return span(time.time() - since) if since else ""


def left(until: float | None) -> str:
    """Return how far away *until* (UNIX seconds) is: `never`, `over`, or `in 5m`."""
    if until is None:
        return "never"
    seconds = until - time.time()
    return f"in {span(seconds)}" if seconds > 0 else "over"


def span(seconds: float) -> str:
    """Return a duration in the biggest unit that it fills: `90s` is `1m`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
