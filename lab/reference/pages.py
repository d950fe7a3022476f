"""The generated parts of the docs: verbs, topology, faults. `python -m lab.reference.pages --write docs`; a test compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from lab.cli.options import DURATION, Driver

_MADE_BY: Final = "Made by `python -m lab.reference.pages --write docs`; a test compares."

_COMMON: Final = {"name", "as_json"}
"""Options that mean the same for every verb."""

_TABLES: Final = {
    "NodeGroup": "[nodes.GROUP]",
    "GatewayGroup": "[gateways.GROUP]",
    "User": "[users.NAME]",
    "Auth": "[auth]",
    "Limits": "limits, a table of a group",
    "KernelspecEntry": "[kernelspecs.NAME]",
    "FaultStep": "[[faults]]",
}
"""Where in the file the schema's definitions are written."""


# -- verbs -------------------------------------------------------------------------------------------------------------


def verbs() -> str:
    """Return docs/lab-verbs.md: every verb as its help has it."""
    from lab.cli.root import cli

    lines = ["# The verbs of `lab`", "", _MADE_BY, ""]
    lines += [
        "Each option can be an environment variable as well: `LAB_VERB_OPTION`, as `--help` says. Not shown: `--name NAME`",
        "(`-n`, `LAB_NAME`, default `lab`), `--json` (`LAB_JSON`: one JSON document on stdout) and `--help` (`-h`).",
        "",
    ]
    for path, command in _walk(cli, "lab"):
        usage = " ".join([path, *command.collect_usage_pieces(click.Context(command))])
        lines += [f"## `{path}`", "", f"    {usage}", "", *_paragraphs(command.help or "")]
        options = [each for each in command.params if isinstance(each, click.Option) and each.name not in _COMMON]
        if options:
            lines += ["| option | what |", "|---|---|"]
            lines += [f"| `{_names(option)}` | {_cell(option.help or '')} |" for option in options]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _walk(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from _walk(command, f"{path} {name}")


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())
        yield from ([f"    {words.removeprefix('Example: ')}", ""] if words.startswith("Example: ") else [words, ""])


def _names(option: click.Option) -> str:
    words = [*sorted(option.opts, key=len), *option.secondary_opts]
    if not option.is_flag:
        words[-1] += f" {option.metavar or _value(option)}"
    return ", ".join(words)


def _value(option: click.Option) -> str:
    """Return what stands for an option's value."""
    if isinstance(option.type, click.Choice | Driver):
        return "\\|".join(map(str, option.type.choices))
    return "DURATION" if option.type is DURATION else str(option.name).upper()


# -- topology ----------------------------------------------------------------------------------------------------------


def topology() -> str:
    """Return docs/lab-topology.md, out of the published schema."""
    from lab.topology import schema

    found = schema()
    lines = [
        "# lab.toml",
        "",
        _MADE_BY,
        "",
        "`lab up FILE` makes a lab be what the file says, `lab up FILE --dry-run` shows what would change, and",
        "`lab validate FILE` only reads it. [lab.example.toml](lab.example.toml) has everything once;",
        "[lab.schema.json](lab.schema.json) is the schema (`lab schema` prints it), from which editors complete. A key that",
        "there isn't is refused with the nearest that there is. Durations are seconds or `15s`, `2m`, `8h`; sizes are bytes",
        "or `512m`, `2g`.",
        "",
        "## At the top",
        "",
        *_keys(found),
    ]
    for name, definition in found["$defs"].items():
        title = _TABLES.get(name, name)
        lines += [f"## {title}" if title.startswith("limits") else f"## `{title}`", "", definition["description"], ""]
        lines += _keys(definition)
    return "\n".join(lines).rstrip() + "\n"


def _keys(table: Mapping[str, Any]) -> list[str]:
    lines = ["| key | type | default | what |", "|---|---|---|---|"]
    required = table.get("required", ())
    for key, told in table["properties"].items():
        default = "must be there" if key in required else _code(told["default"]) if "default" in told else ""
        example = f" For example {_code(told['examples'][0])}." if told.get("examples") else ""
        lines.append(f"| `{key}` | {_type(told)} | {default} | {_cell(told.get('description', '') + example)} |")
    return [*lines, ""]


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def _type(told: Mapping[str, Any]) -> str:
    """Return a key's type in words."""
    if "enum" in told:
        return " or ".join(_code(value) for value in told["enum"])
    if "$ref" in told:
        return "table"
    if "anyOf" in told:
        patterns = [each["pattern"] for each in told["anyOf"] if "pattern" in each]
        if patterns:
            return "duration" if "ms|" in patterns[0] else "size"
        return " or ".join(dict.fromkeys(_type(each) for each in told["anyOf"]))
    if told.get("type") == "array":
        return f"list of {_type(told.get('items', {}))}"
    if told.get("type") == "object":
        return "table"
    kind = told.get("type", "any")
    words = ", ".join(kind) if isinstance(kind, list) else str(kind)
    return f"{words} from {told['minimum']} to {told['maximum']}" if "minimum" in told else words


# -- faults ------------------------------------------------------------------------------------------------------------


_HEADINGS = {"spark": "Spark and YARN"}


def faults() -> str:
    """Return docs/lab-faults.md, out of the catalogue."""
    from lab.faults import catalogue

    documents = [each.as_dict() for each in catalogue()]
    lines = [
        "# The faults",
        "",
        _MADE_BY,
        "",
        "`lab fault add FAULT NODE… [--for 15s] [--option k=v …]`; [lab.md](lab.md#faults) says how they are added, listed and",
        "healed. Mechanisms are tried from left to right; what none can do fails with the reason (exit code 6) and changes",
        "nothing.",
        "",
    ]
    for group in dict.fromkeys(each["group"] for each in documents):
        lines += [
            f"## {_HEADINGS.get(group, group)}",
            "",
            "| fault | what | seen from outside | options | by | in |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_fault(each) for each in documents if each["group"] == group]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _fault(told: Mapping[str, Any]) -> str:
    options = "; ".join(
        f"`{option['name']}{'=' + _word(option['default']) if option['default'] not in (None, '', []) else ''}` {option['help']}"
        for option in told["options"]
    )
    cells = [
        f"`{told['name']}`" + (" (momentary)" if told["momentary"] else ""),
        told["summary"],
        told["shows"],
        options,
        ", ".join(told["mechanisms"]),
        ", ".join(told["drivers"]),
    ]
    return f"| {' | '.join(map(_cell, cells))} |"


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "lab-verbs.md": verbs,
    "lab-topology.md": topology,
    "lab-faults.md": faults,
}


def main(
    arguments: Sequence[str], pages: Mapping[str, Callable[[], str]] = PAGES, module: str = "lab.reference.pages"
) -> int:
    """Write the pages (`--write FOLDER`), or name those that are out of date (`--check FOLDER`); called by hand and by tests.

    Another *module* that makes *pages* of its own calls it as well.
    """
    if len(arguments) != 2 or arguments[0] not in {"--write", "--check"}:
        sys.stderr.write(f"usage: python -m {module} --write|--check FOLDER\n")
        return 2
    stale = 0
    for name, page in pages.items():
        path = Path(arguments[1], name)
        if arguments[0] == "--write":
            path.write_text(page(), "utf-8")
        elif not path.exists() or path.read_text("utf-8") != page():
            sys.stderr.write(f"{path} is out of date: python -m {module} --write {arguments[1]}\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
