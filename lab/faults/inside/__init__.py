"""What runs inside nodes, sent there as source: standard library only, Python 3.9 and later, no import of the rest."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

HAND = ("steps", "files", "places", "programs", "sshd", "victims", "hand")
"""The modules of the hand, each behind those that it imports."""


@cache
def source(name: str) -> str:
    """Return the source of one of this folder's programs; called by the catalogue."""
    return (Path(__file__).parent / f"{name}.py").read_text()


@cache
def bundle() -> str:
    """Return the hand as one text, for `python -c`; called by `reach`.

    Its modules' imports of each other fall away, since all names are in one place then: so no two of them may define the same.
    """
    parts = [
        re.sub(r"(?m)^from (lab\.faults\.inside|__future__)[^\n(]*(\([^)]*\))?\n", "", source(name)) for name in HAND
    ]
    return "\n".join(["from __future__ import annotations", *parts])
