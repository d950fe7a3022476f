"""Check that files in languages without a compiler here can be parsed: `python scripts/syntax.py FILE.R … FILE.java …`.

`nox -s lint` calls it. R runs on Spark nodes only and Java is compiled there, so that a typing error would be seen as late as in
`nox -s spark`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tree_sitter import Node
from tree_sitter_language_pack import SupportedLanguage, get_parser

LANGUAGES: dict[str, SupportedLanguage] = {".R": "r", ".java": "java"}
"""The parser of each suffix."""


def errors(path: Path) -> Iterator[str]:
    """Yield a message for each place of the file *path* that its language does not allow."""
    tree = get_parser(LANGUAGES[path.suffix]).parse(path.read_bytes())
    for node in _wrong(tree.root_node):
        row, column = node.start_point
        what = f"{node.type!r} is missing" if node.is_missing else "cannot be parsed"
        yield f"{path}:{row + 1}:{column + 1}: {what}"


def _wrong(node: Node) -> Iterator[Node]:
    if node.is_error or node.is_missing:
        yield node
    elif node.has_error:
        for child in node.children:
            yield from _wrong(child)


def main(arguments: Sequence[str]) -> int:
    """Print what is wrong with the files *arguments*; return 1 if anything is."""
    found = [message for name in arguments for message in errors(Path(name))]
    print("\n".join(found) or f"{len(arguments)} files: all can be parsed", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
