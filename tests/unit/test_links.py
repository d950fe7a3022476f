from pathlib import Path

import pytest

from scripts import links

PAGE = """\
# The title

See [below](#a-heading-with-code), [a file](other.md), [its heading](other.md#twice-1), [elsewhere](https://example.org/x),
[itself][ref], ![a picture](folder/), and `[no link](nowhere.md)`.

## A *heading*, with `code`!

```
[no link](nowhere.md)
# no heading
```

[ref]: page.md
"""
OTHER = "# Twice\n\n# Twice\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page whose links all lead somewhere."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.md").write_text(OTHER)
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_links_that_lead_somewhere_are_not_reported(page: Path) -> None:
    """Files, folders, headings and addresses elsewhere are fine, and what stands in code is not a link."""
    assert list(links.broken(page, page.parent)) == []
    assert len(list(links.links(PAGE))) == 6


def test_headings_have_githubs_anchors() -> None:
    """An anchor is the heading in lower case with dashes, without punctuation, and with a number from the second one on."""
    assert links.anchors(PAGE) == {"the-title", "a-heading-with-code"}
    assert links.anchors(OTHER) == {"twice", "twice-1"}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("(other.md)", "(gone.md)", "page.md:3: gone.md: the repository has no such file"),
        ("#twice-1", "#twice-2", "page.md:3: other.md#twice-2: other.md has no such heading"),
        ("(#a-heading", "(#no-heading", "page.md:3: #no-heading-with-code: page.md has no such heading"),
        (": page.md", ": gone.md", "page.md:13: gone.md: the repository has no such file"),
        ("(folder/)", "(../)", "page.md:4: ../: the repository has no such file"),
    ],
)
def test_links_that_lead_nowhere_are_reported(page: Path, before: str, after: str, message: str) -> None:
    """A link to a file or a heading that is not in the repository is reported with its line."""
    page.write_text(PAGE.replace(before, after))

    assert [line.removeprefix(f"{page.parent}/") for line in links.broken(page, page.parent)] == [message]
