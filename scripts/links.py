"""Check the links of the project's pages: that files and headings which they name are there. No network.

`python scripts/links.py FILE.md …`; `nox -s lint` calls it. Addresses elsewhere are left alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1[`~]*\s*?$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")


def anchor(heading: str) -> str:
    """Return the anchor of a *heading*, by GitHub's rule; the site's are made by it, too (docs/conf.py)."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return what a link to a heading of the Markdown *text* may have behind its `#`, by GitHub's rule."""
    text = _blanked(_FENCE, text)
    found = set(_ANCHOR.findall(text))
    for match in _HEADING.finditer(text):
        base = anchor(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", match[1]))
        name, count = base, 0
        while name in found:
            count += 1
            name = f"{base}-{count}"
        found.add(name)
    return found


def links(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and target of each link in the Markdown *text*, but for those in code."""
    text = _blanked(_CODE, _blanked(_FENCE, text))
    for match in _LINK.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match[1] or match[2]


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """Return *text* with nothing but line ends where *pattern* is found, so that line numbers stay."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def broken(page: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield a message for each link of *page* to something that is not there, or not below *root*."""
    for line, target in links(page.read_text("utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
            continue
        path, _, anchor = unquote(target).partition("#")
        goal = (page.parent / path).resolve() if path else page.resolve()
        if not goal.is_relative_to(root.resolve()) or not goal.exists():
            yield f"{page}:{line}: {target}: the repository has no such file"
        elif anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text("utf-8")):
            yield f"{page}:{line}: {target}: {goal.name} has no such heading"


def main(arguments: Sequence[str]) -> int:
    """Print the broken links of the pages *arguments*; return 1 if there are any."""
    found = [message for page in arguments for message in broken(Path(page))]
    print("\n".join(found) or f"{len(arguments)} pages: all links lead somewhere", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
