"""Which kernels can listen on UNIX sockets, as this gateway has seen it: their language is only a first guess."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_KNOWN = 1000
"""Kernelspecs that are remembered; the one that was seen longest ago goes first."""


class Transports:
    """What is known of kernels, by the argv of their kernelspec; one for a gateway, owned by its cluster."""

    def __init__(self) -> None:
        self._takes_sockets: OrderedDict[tuple[str, ...], bool] = OrderedDict()

    def choose(self, asked: str, language: str, argv: Sequence[str]) -> str:
        """Return the transport of a kernel that is *asked* to have one, or `auto`.

        With `auto`, Python's kernels get UNIX sockets, unless one of that *argv* could not take them; others get loopback ports.
        """
        if asked != "auto":
            return asked
        return "ipc" if language.lower() == "python" and self._takes_sockets.get(tuple(argv), True) else "tcp"

    def is_proven(self, argv: Sequence[str]) -> bool:
        """Return True if a kernel of *argv* is known to take UNIX sockets: ipykernel is, and what has run on them."""
        is_ours = any(word == "{launcher}/spark.py" for word in argv)  # which runs ipykernel as well
        return is_ours or any("ipykernel" in word for word in argv) or self._takes_sockets.get(tuple(argv), False)

    def note(self, argv: Sequence[str], *, takes_sockets: bool) -> None:
        """Remember whether a kernel of *argv* ran on UNIX sockets."""
        self._takes_sockets[tuple(argv)] = takes_sockets
        self._takes_sockets.move_to_end(tuple(argv))
        while len(self._takes_sockets) > _KNOWN:
            self._takes_sockets.popitem(last=False)
