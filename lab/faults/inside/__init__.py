"""What runs inside nodes, sent there as source: standard library only, Python 3.9 and later, no import of the rest."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def source(name: str) -> str:
    """Return the source of one of this folder's programs; called by the catalogue and by `reach`."""
    return (Path(__file__).parent / f"{name}.py").read_text()
