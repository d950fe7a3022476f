"""Write the pages of the product's reference: `python -m scripts.pages --write docs`.

The commands of `jupyter distributed` come from their parser, errors from their classes. `nox -s docs` calls it, and `nox -s lint`
with `--check`. (The lab's pages are made by `lab.reference`, the settings' by `eg_distributed.settings`.)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from eg_distributed.app import make_parser
from eg_distributed.errors import DistributedError
from lab.reference.pages import main as write_or_check

COMMANDS = """\
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


def commands() -> str:
    """Return docs/commands.md."""
    parts = [COMMANDS]
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


ERRORS = """\
# Errors

Made by `nox -s docs` from the classes of `eg_distributed.errors`. An error names the host, what happened, and what to do. It is
the answer to the HTTP request with the status below, in JupyterLab the text of the dialog, and a line of the log. What its words
mean is in [When something is wrong](troubleshooting.md). The lab has [errors of its own](lab-errors.md).

In Python each has `host` (None where no host has to do with it), `cause` and `remedy`. A start that fails on one host with a
`HostError` goes on to the next; `NoHostAvailable` has them all in `errors`.

| HTTP | error | is a | meaning |
|---|---|---|---|
"""


def kinds(base: type[DistributedError] = DistributedError) -> Iterator[type[DistributedError]]:
    """Yield the kinds of errors below *base* that the module defines, each behind the one that it is a kind of."""
    for kind in base.__subclasses__():
        if kind.__module__ == base.__module__:
            yield kind
            yield from kinds(kind)


def errors() -> str:
    """Return docs/errors.md."""
    rows = []
    for kind in kinds():
        (base,) = kind.__bases__
        meaning = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
        meaning = re.sub(r"\*(\w+)\*", r"`\1`", meaning).replace("|", "\\|")
        rows.append(f"| {kind.http_status} | `{kind.__name__}` | `{base.__name__}` | {meaning} |\n")
    return ERRORS + "".join(rows)


PAGES: Mapping[str, Callable[[], str]] = {"commands.md": commands, "errors.md": errors}


def main(arguments: Sequence[str]) -> int:
    """Write the pages (`--write FOLDER`), or name those that are out of date and return 1 (`--check FOLDER`)."""
    return write_or_check(arguments, PAGES, "scripts.pages")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
