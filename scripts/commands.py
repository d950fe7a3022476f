"""Write docs/commands.md, the reference of `jupyter distributed`, out of its parser: `python -m scripts.commands --write FILE`.

`nox -s docs` calls it, and `nox -s lint` with `--check`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from eg_distributed.app import make_parser

HEAD = """\
# The commands of `jupyter distributed`

Made by `nox -s docs` from the commands' own help. `python -m eg_distributed` is the same, where `jupyter` is not on the PATH. Run
them where the gateway or the Jupyter server runs, as its user: hosts, login and settings are then the same. `--help` (`-h`)
prints what stands here.

The exit code is 0; 1 if a host or a kernel failed; 2 if the command line was wrong; 130 after Ctrl-C. Answers go to stdout,
errors to stderr. `jupyter distributed hosts --json` and `kernels --json` print what [rest.schema.json](rest.schema.json)
describes.
"""
SHARED = ("hosts", "config", "json")
"""Options that mean the same in each command."""


def page() -> str:
    """Return docs/commands.md."""
    parts = [HEAD]
    shared: dict[str, str] = {}
    for path, parser, summary in walk(make_parser("jupyter distributed"), "jupyter distributed"):
        parser.prog = path
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        parts += [f"## `{path}`\n", f"{summary[:1].upper()}{summary[1:]}.\n", f"    {usage}\n"]
        shared |= {row(each): "" for each in parser._actions if each.dest in SHARED}
        rows = [row(each) for each in parser._actions if each.dest not in {"help", *SHARED}]
        if rows:
            parts.append("\n".join(("| argument | what |", "|---|---|", *rows, "")))
    parts.insert(1, "\n".join(("| where the usage has it | what |", "|---|---|", *shared, "")))
    return "\n".join(parts)


def walk(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield path, parser and summary of each command that does something."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for name, child in action.choices.items():
                deeper = list(walk(child, f"{path} {name}"))
                yield from deeper or [(f"{path} {name}", child, helps[name])]


def row(action: argparse.Action) -> str:
    """Return the table's row for an argument or option."""
    value = "" if action.nargs == 0 else str(action.metavar or "|".join(action.choices or ()) or action.dest.upper())
    names = ", ".join(sorted(action.option_strings, key=len))
    shown = " ".join(filter(None, (names, value))).replace("|", "\\|")
    return f"| `{shown}` | {' '.join((action.help or 'its name').split()).replace('|', chr(92) + '|')} |"


def main(arguments: Sequence[str]) -> int:
    """Write the page (`--write FILE`), or return 1 if it is out of date (`--check FILE`)."""
    if len(arguments) != 2 or arguments[0] not in {"--write", "--check"}:
        print("usage: python -m scripts.commands --write|--check FILE", file=sys.stderr)
        return 2
    path = Path(arguments[1])
    if arguments[0] == "--write":
        path.write_text(page(), "utf-8")
        return 0
    return 0 if path.exists() and path.read_text("utf-8") == page() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
