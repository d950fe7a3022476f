"""Expansion of `$NAME`, `${NAME}` and `${NAME:-default}` in kernelspec values: once, and never in what a client sent."""

from __future__ import annotations

import re
from typing import Mapping

_REFERENCE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\})"
)


def expand(value: str, environment: Mapping[str, str]) -> str:
    """Return *value* with its references replaced from *environment*; what was put in is not looked at again.

    As in a shell, an unset name becomes its default or nothing, `:-` also takes over for an empty value, and `$$`, which a
    kernelspec already needs for Enterprise Gateway's own templates, is one `$`. Any other `$` stays as it is.
    """

    def replacement(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name = match["plain"] or match["braced"]
        found = environment.get(name, "")
        return found or match["default"] or ""

    return _REFERENCE.sub(replacement, value)
