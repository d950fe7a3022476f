"""How the commands show what they found: tables, and how long ago something was."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["age", "table"]


def age(seconds: float) -> str:
    """Return *seconds* in the largest unit of which they have one."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(int(seconds), 0)} s"


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return *rows* below their *columns*, each as wide as it has to be."""
    widths = [max(len(row[column]) for row in [columns, *rows]) for column in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [columns, *rows]]
    return "\n".join(line.rstrip() for line in lines)
