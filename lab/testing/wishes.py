"""What a test asks of the lab: the marker, read and checked."""

from __future__ import annotations

from typing import Any, Final

import pytest

from lab.names import nearest
from lab.testing.visit import Wish

MARKER: Final = "lab"
_KNOWN: Final = ("nodes", "roles", "leaks", "alone")


def wish_of(item: pytest.Item, own: set[str]) -> Wish:
    """Read the marker of *item*, which uses the plugin's fixtures *own*; raise pytest.UsageError if it says what can't be.

    A test without the marker has the lab for itself, unless `nodes` says as it goes on how many it needs.
    """
    marker = item.get_closest_marker(MARKER)
    if marker is None:
        return Wish(0 if "nodes" in own and "gateway" not in own else None)
    for name in marker.kwargs:
        if name not in _KNOWN:
            near = nearest(name, _KNOWN)
            hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(_KNOWN)}"
            raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.lab has no {name!r}: {hint}")
    count = marker.kwargs.get("nodes", marker.args[0] if marker.args else 1)
    if len(marker.args) > 1 or not (count == "all" or (isinstance(count, int) and count > 0)):
        raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.lab(nodes=…) takes a number from 1 on, or 'all'")
    roles, leaks = (_texts(marker.kwargs.get(name, ())) for name in ("roles", "leaks"))
    return Wish(None if count == "all" else count, roles, leaks, bool(marker.kwargs.get("alone", False)))


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
