"""Expansion of `$NAME`, `${NAME}` and `${NAME:-default}` in kernelspec values: once, and never in what a client sent."""

from __future__ import annotations

import re
import shlex
from typing import Mapping

_REFERENCE = re.compile(
    r"\$(?:(?P<escaped>\$)|(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\})"
)

OPTIONS = ("SPARK_OPTS", "__TOREE_SPARK_OPTS__", "LAUNCH_OPTS", "TOREE_OPTS", "__TOREE_OPTS__")
"""Variables whose text a launcher splits into words, or a `run.sh` has a shell evaluate."""
_HELD = re.compile("\0(\\d+)\0")


def expand_all(spec_env: Mapping[str, str], own: Mapping[str, str], data: Mapping[str, str]) -> dict[str, str]:
    """Return a kernelspec's values expanded from the login's *own* environment and from *data*, the client's.

    OPTIONS come last and see the others, as they would in the shell that exports them all. Raises ValueError, as `_options` does.
    """
    known = {**own, **data}
    plain = {name: expand(value, known) for name, value in spec_env.items() if name not in OPTIONS}
    clients = {name: plain[name] for name in plain if _names(spec_env[name]) & data.keys()}
    operators = {name: value for name, value in {**own, **plain}.items() if name not in clients}
    expanded = {}
    for name, value in spec_env.items():
        expanded[name] = plain[name] if name in plain else _options(name, value, operators, {**clients, **data})
    return expanded


def _options(name: str, text: str, operators: Mapping[str, str], clients: Mapping[str, str]) -> str:
    """Return the option text *text* expanded, with whatever a client sent inside one word, quoted where it needs to be.

    Pasted, a client's blanks would part it into words of the kernelspec's own, which nobody holds against what clients may say.
    Raises ValueError for a text that can't be split, and for a client's value that would be an option.
    """
    held: list[str] = []

    def hold(value: str) -> str:
        if not value or (shlex.quote(value) == value and not value.startswith("-")):
            return value  # it is one word wherever it stands
        held.append(value)
        return f"\0{len(held) - 1}\0"

    expanded = expand(text, {**operators, **{name: hold(value) for name, value in clients.items()}})
    if not _HELD.search(expanded):
        return expanded
    words = []
    try:
        templates = shlex.split(expanded)
    except ValueError as error:
        raise ValueError(f"{name} can't be split into words ({error}); balance its quotes in the kernelspec") from error
    for template in templates:
        words.append(_HELD.sub(lambda match: held[int(match[1])], template))
        if template.startswith("\0") and words[-1].startswith("-"):
            raise ValueError(
                f"a value of the client's, {words[-1]!r}, would be an option in {name}; send another value"
            )
    return shlex.join(words)


def _names(value: str) -> set[str]:
    return {match["plain"] or match["braced"] or "" for match in _REFERENCE.finditer(value)}


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
