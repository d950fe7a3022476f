"""What the docs show in fenced blocks is what programs take: files can be read, commands are parsed, settings are known."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from traitlets.config import Config

from eg_distributed.app import make_parser
from eg_distributed.balancing import HostView, LoadBalancer
from eg_distributed.settings import Distributed
from lab.cli import cli
from lab.topology import loads
from tests.snippets import Snippet, matches, printed, script, snippets

ROOT = Path(__file__).resolve().parents[2]


def indented(page: Path) -> Iterator[Snippet]:
    """Yield the lines of *page* that are code by their indentation, but for the usages of generated references."""
    if page.name not in {"lab-verbs.md", "commands.md"}:
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            if line.startswith("    ") and line.strip():
                yield Snippet(page, number, "indented", (), line.strip())


PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
SNIPPETS = [block for page in PAGES for block in (*snippets(page), *indented(page))]


def of(*languages: str) -> pytest.MarkDecorator:
    """Parametrize a test by the blocks in these languages."""
    return pytest.mark.parametrize("block", [each for each in SNIPPETS if each.language in languages], ids=str)


@of("json")
def test_json_can_be_read(block: Snippet) -> None:
    """Each JSON block is a document, or the inside of an object."""
    text = block.text.strip()
    json.loads(text if text[0] in "{[" else "{" + text + "}")


@of("toml")
def test_a_lab_toml_can_be_read(block: Snippet) -> None:
    """Each TOML block is a whole lab.toml with known keys, hosts and faults."""
    assert loads(block.text, str(block)).nodes


@of("python")
def test_python_can_be_read_and_its_settings_are_known(block: Snippet) -> None:
    """Each Python block can be parsed; what it sets of `c.Distributed` is a setting that takes this value."""
    ast.parse(block.text)
    lines = [line for line in block.text.splitlines() if line.startswith("c.Distributed.")]
    config = Config()
    for line in lines:
        exec(line, {"c": config})
    assert set(config.Distributed) <= set(Distributed.class_trait_names(config=True))
    Distributed(config=config, for_provisioner=True)


def calls(text: str, program: str) -> Iterator[list[str]]:
    """Yield the commands on those lines of *text* that have *program*, as words; one within another is one of its own."""
    for line in text.replace("\\\n", " ").replace("…", "").splitlines():
        if program not in line:
            continue
        inner = re.findall(r"\$\(([^()]*)\)", line)
        for part in (re.sub(r"\$\([^()]*\)", "_", line), *inner):
            found = shlex.shlex(part, posix=True, punctuation_chars=True)
            found.whitespace_split = True
            words: list[str] = []
            for word in (*found, ";"):
                if set(word) <= set("&|;<>(){}"):
                    yield words
                    words = []
                else:
                    words.append(word)


def commands(*program: str) -> list[Any]:
    """Return the arguments of each call of *program* in a block of the docs that is run, or that shows a terminal."""
    found = []
    for block in SNIPPETS:
        if block.language in {"", "sh", "indented"}:
            for words in calls(block.text, " ".join(program) + " "):
                words = words[2:] if words[:2] == ["uv", "run"] else words
                if words[: len(program)] == list(program) and len(words) > len(program):
                    arguments = words[len(program) :]
                    found.append(pytest.param(arguments, id=f"{block} {' '.join(arguments)}"))
    return found


@pytest.mark.parametrize("arguments", commands("jupyter", "distributed"))
def test_a_command_is_taken(arguments: list[str]) -> None:
    """Each call of `jupyter distributed` in the docs has known verbs and options."""
    assert make_parser("jupyter distributed").parse_args(arguments).command


@pytest.mark.parametrize("arguments", commands("lab"))
def test_a_verb_of_the_lab_is_taken(arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each call of `lab` in the docs has known verbs and options; files that it names are taken to be there."""
    monkeypatch.chdir(tmp_path)
    arguments = [Path(word).name if word.endswith(".toml") else word for word in arguments]
    for word in arguments:
        if word.endswith(".toml"):
            Path(word).touch()
    command: click.Command = cli
    context = click.Context(cli, info_name="lab")
    while isinstance(command, click.Group):
        name, verb, arguments = command.resolve_command(context, arguments)
        assert verb is not None
        command, context = verb, click.Context(verb, parent=context, info_name=name)
    command.parse_args(context, list(arguments))


def test_the_balancer_of_the_how_to_picks() -> None:
    """It takes the fullest host that has room."""
    (text,) = (block.text for block in SNIPPETS if "LoadBalancer" in block.text and block.language == "python")
    names: dict[str, type[LoadBalancer]] = {}
    exec(text, names)

    picked = names["Fullest"](("a", "b", "c")).pick([HostView("a", 10), HostView("b", 9), HostView("c", 3)])
    assert picked.name == "b"


# -- the reader of blocks ------------------------------------------------------------------------------------------

PAGE = """\
A list:

```sh run
echo one
```

```text output
one
```

```toml file=~/a/b.toml
key = 1
```

```sh
rm -rf never
```

```sh run
cat ~/a/b.toml
```
"""


@pytest.fixture
def blocks(tmp_path: Path) -> list[Snippet]:
    """The blocks of a page."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    return list(snippets(page))


def test_a_pages_script_has_what_is_run_and_what_is_written(blocks: list[Snippet]) -> None:
    """Blocks without a word behind their language are not run."""
    text = script(blocks)

    assert "rm -rf" not in text
    assert "cat > ~/a/b.toml <<'END_OF_2'\nkey = 1\nEND_OF_2\n" in text
    assert text.index("echo one") < text.index("key = 1") < text.index("cat ~/a/b.toml")


def test_a_blocks_output_ends_where_the_next_one_begins(blocks: list[Snippet]) -> None:
    """Each block's output is told apart by the line that was printed before it."""
    first, last = blocks[0], blocks[-1]
    output = f"-- {first} --\none\ntwo\n-- {last} --\nkey = 1\n"

    assert printed(output, first) == "one\ntwo"
    assert printed(output, last) == "key = 1\n"


@pytest.mark.parametrize(
    ("expected", "output", "is_match"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\nb", "b\na\n", False),
        ("a …", "a  1.3 s", True),
        ("a\n…\nc", "a\nb\nc", True),
        ("a", "ab", False),
        ("", "anything", True),
    ],
)
def test_output_is_compared_by_lines_in_order(expected: str, output: str, is_match: bool) -> None:
    """`…` stands for anything in a line; blanks count as one."""
    assert matches(expected, output) is is_match
