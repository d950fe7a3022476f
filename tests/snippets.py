"""Fenced blocks of a Markdown page, and what their info strings ask for.

    ```sh run            a command that is run; all of a page are run in one shell, which ends at the first that fails
    ```text output       what the block before prints: these lines in this order, `…` standing for anything
    ```python file=NAME  (or another language) is written to NAME

GitHub and the site show the first word as the language and pass over the rest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """One fenced block."""

    page: Path
    line: int
    """Of its first line of text, in the page."""
    language: str
    words: tuple[str, ...]
    """What follows the language."""
    text: str

    @property
    def file(self) -> str:
        """The file that it is written to; empty if it is none."""
        return next((word.removeprefix("file=") for word in self.words if word.startswith("file=")), "")

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def snippets(page: Path) -> Iterator[Snippet]:
    """Yield the fenced blocks of *page*, in its order."""
    text = page.read_text("utf-8")
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        yield Snippet(page, text.count("\n", 0, match.start("text")) + 1, language, tuple(words), match["text"])


def script(blocks: Sequence[Snippet]) -> str:
    """Return a bash script that does what *blocks* say; it prints a line with `marker` before each."""
    lines = ["set -euo pipefail"]
    for place, block in enumerate(blocks):
        if block.file:
            # `~` is expanded where it is not quoted.
            home, name = ("~/", block.file[2:]) if block.file.startswith("~/") else ("", block.file)
            end = f"END_OF_{place}"
            lines += [f"cat > {home}{shlex.quote(name)} <<'{end}'", block.text + end]
        elif "run" in block.words:
            lines += [f"echo {shlex.quote(marker(block))}", block.text.rstrip()]
    return "\n".join(lines) + "\n"


def marker(block: Snippet) -> str:
    """Return the line that the script prints before *block* is run."""
    return f"-- {block} --"


def printed(output: str, block: Snippet) -> str:
    """Return what *block* has printed, of a script's whole *output*."""
    return output.partition(marker(block) + "\n")[2].partition("\n-- ")[0]


def matches(expected: str, output: str) -> bool:
    """Return True if *output* has the lines of *expected* in their order; `…` is anything in a line, alone any lines."""
    found = iter(" ".join(line.split()) for line in output.splitlines())
    for line in filter(None, (" ".join(line.split()) for line in expected.splitlines())):
        if line != "…":
            pattern = ".*".join(map(re.escape, line.split("…")))
            if not any(re.fullmatch(pattern, each) for each in found):
                return False
    return True
