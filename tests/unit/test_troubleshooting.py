"""The page on what errors mean quotes errors that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import eg_distributed

PACKAGE = Path(eg_distributed.__file__).parent
PAGE = PACKAGE.parent / "docs" / "troubleshooting.md"
_QUOTE = re.compile(r"“([^”]+)”")
_FORMAT = re.compile(r"%[-+#0 .\d]*[sdrfgx]")


def _told(node: ast.AST) -> str | None:
    """Return what a literal of the source says, with “…” for each value that is filled in; None if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_told(part) or "…" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "…"
    return None


def _plain(text: str) -> str:
    """Return *text* without what formatting puts around a value, in lower case: an error's first letter is made large."""
    return re.sub(r"'…'|…[%s]*", "…", " ".join(_FORMAT.sub("…", text).split())).lower()


@cache
def told_by_the_code() -> str:
    """Return all that the code can say, a literal a line."""
    trees = [ast.parse(file.read_text("utf-8")) for file in PACKAGE.rglob("*.py")]
    return "\n".join(_plain(told) for tree in trees for node in ast.walk(tree) if (told := _told(node)) is not None)


def quotes() -> list[str]:
    return [quote for quote in _QUOTE.findall(PAGE.read_text("utf-8")) if quote != "…"]


@pytest.mark.parametrize("quote", quotes())
def test_each_quote_of_the_page_is_what_the_code_says(quote: str) -> None:
    """Every text in quotation marks stands in the code, with the page's “…” where the code fills a value in."""
    # A value may be empty, or text around a value be formatted: the parts between values have to be one literal's, in order.
    parts = [re.escape(part.strip()) for part in _plain(quote).split("…") if part.strip(" .:")]
    is_told = re.search("[^\n]*".join(parts), told_by_the_code()) is not None
    assert is_told, f"no error says {quote!r}"
