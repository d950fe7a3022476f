"""Numbers, times, sizes and ports of ssh_config, as OpenSSH reads them."""

from __future__ import annotations

import re
import socket

from .words import Invalid

__all__ = ["parse_number", "parse_port", "parse_size", "parse_time"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_MOST = 2**31 - 1
_MOST_BYTES = 2**63 - 1
_SMALLEST_LIMIT = 16


def parse_number(text: str, most: int = _MOST) -> int:
    """Return a whole number from zero to *most*; raises Invalid."""
    # Not isdigit(), which takes `²` and digits of all scripts.
    if not re.fullmatch(r"\s*[+-]?[0-9]+", text, re.ASCII) or not 0 <= int(text) <= most:
        raise Invalid(f"{text} is not a number")
    return int(text)


def parse_time(text: str) -> int:
    """Return the seconds of `90`, `10s` or `1m30s`; raises Invalid."""
    found = re.findall(r"\s*(\+?[0-9]+)([smhdwSMHDW]?)", text, re.ASCII)
    seconds = sum(int(number) * _UNITS[unit.lower()] for number, unit in found)
    if not re.fullmatch(r"(\s*\+?[0-9]+[smhdwSMHDW]?)+", text, re.ASCII) or seconds > _MOST:
        raise Invalid(f"{text} is not a time")
    return seconds


def parse_size(text: str) -> int:
    """Return the bytes of RekeyLimit's `1G`, `1.5M`, `default`, or a number; raises Invalid."""
    if text == "default":
        return 0
    found = re.fullmatch(
        r"\s*\+?([0-9]{0,18})(?:\.([0-9]*))?(?:([BKMGTPEbkmgtpe])(?:[^A-Za-z0-9].*)?)?", text, re.ASCII
    )
    if found is None or not (found[1] or found[2]):
        raise Invalid(f"{text} is not a number of bytes")
    scale: int = 1024 ** "bkmgtpe".index((found[3] or "b").lower())
    fraction = int(found[2] or 0) * scale // 10 ** len(found[2] or "") if found[3] else 0
    size = int(found[1] or 0) * scale + fraction
    if size > _MOST_BYTES or 0 < size < _SMALLEST_LIMIT:
        raise Invalid(f"{text} is too {'large' if size > _MOST_BYTES else 'small'}")
    return size


def parse_port(text: str) -> int:
    """Return a port by number or by the name of its service; raises Invalid."""
    try:
        port = parse_number(text, 65535)
    except Invalid:
        try:
            port = socket.getservbyname(text, "tcp")
        except (OSError, ValueError):  # the latter for a name that can't be encoded
            port = 0
    if not port:
        raise Invalid(f"{text} is not a port")
    return port
