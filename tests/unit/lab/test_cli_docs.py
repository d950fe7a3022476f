import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from lab.cli import cli
from lab.reference import pages
from lab.topology import loads

ROOT = Path(__file__).parents[3]


def walk(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from walk(command)


def example_of(command: click.Command) -> str:
    return " ".join((command.help or "").partition("Example: ")[2].split())


EXAMPLES = sorted({example_of(command) for command in (cli, *walk(cli))})


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_parse(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example of the help is a call that the verb takes: names, options and files are right."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(example.replace('"$(', " ; ").replace(')"', " ; ").replace(";", " ; "))
    calls: list[list[str]] = [[]]
    for word in words:
        if word in {"&&", ";", ">"}:
            calls.append([])
        else:
            calls[-1].append(word)
    parsed = 0
    for call in calls:
        if not call or call[0] != "lab":
            continue
        command: click.Command = cli
        context = click.Context(cli, info_name="lab")
        arguments = call[1:]
        while isinstance(command, click.Group):
            name, found, arguments = command.resolve_command(context, arguments)
            assert found is not None
            command = found
            context = click.Context(command, parent=context, info_name=name)
        if "images load" not in " ".join(call):
            command.parse_args(context, list(arguments))
        if command.name == "add":
            check_fault(context.params)
        parsed += 1
    assert parsed


def check_fault(parameters: dict[str, Any]) -> None:
    from lab.cli.options import pairs
    from lab.faults import kind

    kind(parameters["kind"]).parse(pairs(parameters["options"]))


@pytest.mark.parametrize("page", pages.PAGES)
def test_the_reference_is_what_the_code_says(page: str) -> None:
    """After a change of verbs, topology or faults: `python -m lab.reference.pages --write docs`."""
    assert (ROOT / "docs" / page).read_text("utf-8") == pages.PAGES[page]()


def test_every_verb_is_in_the_guide() -> None:
    """docs/lab.md has a line for each verb."""
    guide = (ROOT / "docs" / "lab.md").read_text("utf-8")
    assert [name for name in cli.commands if f"`lab {name}" not in guide] == []


def test_the_guide_and_the_table_of_errors_agree() -> None:
    """Both list the same exit codes."""
    rows = [
        {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()}
        for text in ((ROOT / "docs" / name).read_text("utf-8") for name in ("lab.md", "lab-errors.md"))
    ]
    assert rows[0] == rows[1]


def test_the_topology_in_the_guide_is_one() -> None:
    """The lab.toml that docs/lab.md shows can be read."""
    text = (ROOT / "docs" / "lab.md").read_text("utf-8").partition("```toml\n")[2].partition("```")[0]
    topology = loads(text, "docs/lab.md")
    assert {name: group.count for name, group in topology.nodes.items()} == {"node": 2, "odd": 1}


def test_the_reference_checks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is out of date is named with the command that mends it."""
    assert pages.main(["--check", str(tmp_path)]) == 1
    assert "--write" in capsys.readouterr().err
    assert pages.main(["--write", str(tmp_path)]) == 0
    assert pages.main(["--check", str(tmp_path)]) == 0
    assert pages.main(["--frobnicate"]) == 2
