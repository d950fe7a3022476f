"""What the server itself reads of a kernel's messages, which any cell can write. Needs no server and no ZMQ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

DELIM = b"<IDS|MSG>"
"""What stands between the addresses and the message proper."""
_PARENT = 3  # parts behind it: signature, header, parent
Header = dict[str, Any]
"""The header of a message."""
_MOST = 64 * 1024
"""Bytes of a header that is read; those of clients have some hundred."""


def parent_of(parts: Sequence[bytes]) -> bytes:
    """Return the header, as JSON, of the request that the message in *parts* belongs to; empty where there is none."""
    if DELIM not in parts:
        return b""
    place = parts.index(DELIM) + _PARENT
    return parts[place] if place < len(parts) else b""


def header_of(packed: bytes) -> Header:
    """Return the header in *packed*, empty for what is none."""
    if len(packed) > _MOST:
        return {}
    try:
        header = json.loads(packed)
    except (ValueError, RecursionError):
        return {}
    # One that has no such id, or a header in it, is none to jupyter_client, which raises for it.
    is_header = isinstance(header, dict) and isinstance(header.get("msg_id"), str) and "header" not in header
    return header if is_header else {}
