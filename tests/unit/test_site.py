"""The pages of the docs: each is in the list that the site's sidebar is made from, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import commands

ROOT = Path(__file__).resolve().parents[2]
LISTED = re.findall(r"^- \[.+?\]\((\S+?\.md)\)$", (ROOT / "docs" / "README.md").read_text("utf-8"), re.MULTILINE)


def test_each_page_is_in_the_sidebar_once() -> None:
    """docs/README.md lists each page of docs/, and the repository's own pages that are no README."""
    pages = {path.resolve() for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md")}
    pages -= {ROOT / "README.md", ROOT / "docs" / "README.md"}
    pages.add(ROOT / "examples" / "README.md")

    assert sorted((ROOT / "docs" / name).resolve() for name in LISTED) == sorted(pages)


def test_the_reference_of_the_commands_is_current() -> None:
    """After a change of the commands: `nox -s docs`."""
    assert commands.main(["--check", str(ROOT / "docs" / "commands.md")]) == 0


@pytest.mark.parametrize("verb", ["hosts", "kernels", "end", "logs", "doctor", "adopt", "kernelspecs list"])
def test_each_command_is_in_the_reference(verb: str) -> None:
    """Each command has a heading with its whole path."""
    assert f"## `jupyter distributed {verb}`\n" in commands.page()


def test_a_page_that_is_out_of_date_is_reported(tmp_path: Path) -> None:
    """`--check` returns 1 until `--write` has written the page, and 2 for another call."""
    page = str(tmp_path / "commands.md")

    assert [commands.main(["--check", page]), commands.main(["--write", page]), commands.main(["--check", page])] == [
        1,
        0,
        0,
    ]
    assert commands.main([page]) == 2
