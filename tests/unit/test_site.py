"""The pages of the docs: each is in the list that the site's sidebar is made from, and what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eg_distributed import errors
from scripts import pages

ROOT = Path(__file__).resolve().parents[2]
LISTED = re.findall(r"^- \[.+?\]\((\S+?\.md)\)$", (ROOT / "docs" / "README.md").read_text("utf-8"), re.MULTILINE)


def test_each_page_is_in_the_sidebar_once() -> None:
    """docs/README.md lists each page of docs/, and the repository's own pages that are no README."""
    pages = {path.resolve() for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md")}
    pages -= {ROOT / "README.md", ROOT / "docs" / "README.md"}
    pages.add(ROOT / "examples" / "README.md")

    assert sorted((ROOT / "docs" / name).resolve() for name in LISTED) == sorted(pages)


@pytest.mark.parametrize("page", pages.PAGES)
def test_a_page_that_is_made_from_code_is_current(page: str) -> None:
    """After a change of commands or errors: `nox -s docs`."""
    assert (ROOT / "docs" / page).read_text("utf-8") == pages.PAGES[page]()


@pytest.mark.parametrize("verb", ["hosts", "kernels", "end", "logs", "doctor", "adopt", "kernelspecs list"])
def test_each_command_is_in_the_reference(verb: str) -> None:
    """Each command has a heading with its whole path."""
    assert f"## `jupyter distributed {verb}`\n" in pages.commands()


def test_each_error_is_in_the_reference() -> None:
    """Each class of errors has a row."""
    listed = re.findall(r"^\| \d+ \| `(\w+)`", pages.errors(), re.MULTILINE)

    assert sorted(listed) == sorted(set(errors.__all__) - {"DistributedError"})


def test_pages_that_are_out_of_date_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` returns 1 until `--write` has written the pages, and 2 for another call."""
    folder = str(tmp_path)

    assert pages.main(["--check", folder]) == 1
    assert "--write" in capsys.readouterr().err
    assert pages.main(["--write", folder]) == 0
    assert pages.main(["--check", folder]) == 0
    assert pages.main([folder]) == 2
