"""Words and patterns of ssh_config, taken apart as OpenSSH does it (misc.c, match.c)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["Invalid", "lower", "matches", "matches_list", "split_keyword", "split_words"]

_BLANKS = " \t\r\n"
_LONGEST = 1022
"""Characters of a pattern in a list, beyond which ssh takes the list for none that matches."""
_CAPITALS = {capital: capital + 32 for capital in range(ord("A"), ord("Z") + 1)}


class Invalid(ValueError):
    """A line that says nothing that could be used."""


def lower(text: str) -> str:
    """Return *text* in lower case as C has it: letters beyond ASCII stay what they are."""
    return text.translate(_CAPITALS)


def split_keyword(line: str) -> tuple[str, str]:
    """Return the keyword of *line* in lower case, and the rest; no keyword for an empty line or a comment.

    Raises Invalid for a keyword that stands alone.
    """
    line = line.partition("\0")[0]  # a line is a string of C's
    line = line[:1] + line[1:].rstrip(f"{_BLANKS}\f")
    keyword, rest = _delimited(line)
    if keyword == "" and rest is not None:  # blanks before it
        keyword, rest = _delimited(rest)
    if not keyword or keyword[0] in "\n#":
        return "", ""
    rest = (rest or "").lstrip(_BLANKS)
    if not rest:
        raise Invalid(f"{keyword} has no value")
    return lower(keyword), rest


def _delimited(text: str) -> tuple[str | None, str | None]:
    """Return the first token and what follows it, as OpenSSH's strdelim; None for a quote without an end, and at the end."""
    found = re.search(f'[{_BLANKS}"=]', text)
    if found is None:
        return text, None
    start, rest = text[: found.start()], text[found.end() :]
    if found[0] == '"':
        inside, quote, rest = rest.partition('"')
        return (start + inside, rest.lstrip(_BLANKS)) if quote else (None, None)
    rest = rest.lstrip(_BLANKS)
    if found[0] != "=" and rest.startswith("="):
        rest = rest[1:].lstrip(_BLANKS)
    return start, rest


def split_words(text: str, *, comments: bool = True) -> list[str]:
    """Split as OpenSSH's argv_split does: quotes of both kinds, few escapes, and *comments* end the line; raises Invalid."""
    words: list[str] = []
    index, end = 0, len(text)
    while index < end:
        if text[index] in " \t":
            index += 1
            continue
        if comments and text[index] == "#":
            break
        word, quote = "", ""
        while index < end:
            char = text[index]
            if (
                char == "\\"
                and index + 1 < end
                and (text[index + 1] in "'\"\\" or (not quote and text[index + 1] == " "))
            ):
                index += 1
                word += text[index]
            elif not quote and char in " \t":
                break
            elif not quote and char in "'\"":
                quote = char
            elif quote and char == quote:
                quote = ""
            else:
                word += char
            index += 1
        if quote:
            raise Invalid("a quote is not closed")
        words.append(word)
    return words


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern[str]:
    # Only * and ? mean anything to OpenSSH. Stars in a row are one, as there: of many, `re` would try every division.
    parts = {"*": ".*", "?": "."}
    return re.compile(
        "".join(parts.get(char) or re.escape(char) for char in re.sub(r"\*+", "*", pattern)),
        re.DOTALL,
    )


def matches(name: str, pattern: str) -> bool:
    """Return True if *pattern*, in which `*` and `?` stand for other characters, means *name*."""
    return _pattern(pattern).fullmatch(name) is not None


def matches_list(name: str, patterns: str) -> bool:
    """Do as `matches_one` for comma-separated *patterns*; False if one of them is too long for ssh."""
    listed = patterns.split(",")
    return all(len(pattern.removeprefix("!")) <= _LONGEST for pattern in listed) and matches_one(name, listed)


def matches_one(name: str, patterns: Iterable[str]) -> bool:
    """Return True if one of the *patterns* matches, and none of those behind a `!`."""
    matched = False
    for pattern in patterns:
        if pattern.startswith("!"):
            if matches(name, pattern[1:]):
                return False
        elif matches(name, pattern):
            matched = True
    return matched
