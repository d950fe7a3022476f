"""The page on what errors mean quotes errors that there are, and those that an operator has to mend are all there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import eg_distributed
from eg_distributed import errors

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


def every(kind: type[Exception]) -> list[type[Exception]]:
    """Return *kind* and all that are of it."""
    return [kind, *(each for child in kind.__subclasses__() for each in every(child))]


def quotes() -> list[str]:
    return [quote for quote in _QUOTE.findall(PAGE.read_text("utf-8")) if quote != "…"]


def pattern(told: str) -> str:
    """Return a regular expression for the parts of *told* between its values, in order, in one text."""
    return "[^\n]*".join(re.escape(part.strip()) for part in _plain(told).split("…") if part.strip(" .:()"))


_ERRORS = {
    "DistributedError",
    "KernelStartFailed",
    *(each.__name__ for each in every(errors.HostError) if each.__name__ in errors.__all__),
}
"""What an operator has to mend. What a client or a kernelspec asks for wrongly (RequestInvalid, StartError, LaunchError) is told
with its remedy to the one who asked; a kernel's own end has its last lines."""
_OF_DOCTOR = ("app", "link/examination.py")
"""The doctor's words stand in its own report."""


def causes() -> list[str]:
    """Return the causes of all errors that an operator has to mend, as far as they are literals where they are raised."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        if file.relative_to(PACKAGE).as_posix().startswith(_OF_DOCTOR):
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ERRORS and node.args:
                told = _told(node.args[0])
                if told is not None and pattern(told):
                    found.append(told)
    return sorted(set(found))


@pytest.mark.parametrize("cause", causes())
def test_each_cause_that_an_operator_mends_is_on_the_page(cause: str) -> None:
    """Every error of a host, or of a start on one, is quoted: from its beginning, or a part of it that is its own."""
    is_quoted = any(
        re.search(pattern(quote), _plain(cause)) or re.match(pattern(cause), _plain(quote))
        for quote in quotes()
        if pattern(quote)
    )
    assert is_quoted, f"docs/troubleshooting.md says nothing of {cause!r}"


@pytest.mark.parametrize("quote", quotes())
def test_each_quote_of_the_page_is_what_the_code_says(quote: str) -> None:
    """Every text in quotation marks stands in the code, with the page's “…” where the code fills a value in."""
    # A value may be empty, or text around a value be formatted: the parts between values have to be one literal's, in order.
    parts = [re.escape(part.strip()) for part in _plain(quote).split("…") if part.strip(" .:")]
    is_told = re.search("[^\n]*".join(parts), told_by_the_code()) is not None
    assert is_told, f"no error says {quote!r}"
