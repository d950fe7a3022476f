"""The JSON schema in the docs: `python -m lab.topology --write docs/lab.schema.json`; with no arguments that is what it does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lab.topology.schema import FILE, text


def main(arguments: Sequence[str]) -> int:
    """Write the schema (`--write FILE`) or say whether it is up to date (`--check FILE`); called by nox and by hand."""
    mode, name = arguments or ("--write", str(FILE))
    if mode == "--write":
        Path(name).write_text(text(), "utf-8")
    elif Path(name).read_text("utf-8") != text():
        sys.stderr.write(f"{name} is out of date: run `nox -s docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
