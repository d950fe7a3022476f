"""What `nox -s release` refuses, and what of a bill of materials does not depend on who made it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from scripts.release import ROOT, Refused, bill, compare, is_current, is_dated, notes, version

CHANGES = """\
# Changes

## 0.2.0 (unreleased)

- News.

## 0.1.0 (2026-12-01)

### Added

- All of it.
"""


def member(root: Path, name: str, number: str) -> None:
    """Write a pyproject.toml with that version."""
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'[project]\nname = "x"\nversion = "{number}"\n')


def test_product_and_lab_have_one_version() -> None:
    """They are released together."""
    assert version(ROOT)


@pytest.mark.parametrize(
    ("product", "lab", "cause"),
    [
        ("1.2.3", "1.2.4", "versions differ"),
        ("1.2", "1.2", "not a version"),
        ("1.2.3.dev1", "1.2.3.dev1", "not a vers"),
    ],
)
def test_versions_that_cannot_be_released_are_refused(tmp_path: Path, product: str, lab: str, cause: str) -> None:
    """Versions that differ, or that semantic versioning does not have, are named."""
    member(tmp_path, "pyproject.toml", product)
    member(tmp_path, "lab/pyproject.toml", lab)

    with pytest.raises(Refused, match=cause):
        version(tmp_path)


def test_the_notes_are_the_changelogs_section() -> None:
    """From its heading to the next version's."""
    assert notes(CHANGES, "0.1.0") == "## 0.1.0 (2026-12-01)\n\n### Added\n\n- All of it.\n"
    assert [is_dated(notes(CHANGES, each)) for each in ("0.2.0", "0.1.0")] == [False, True]


def test_a_version_without_a_section_is_refused() -> None:
    """Nothing is released that the changelog is silent about."""
    with pytest.raises(Refused, match=r"no section '0\.3\.0'"):
        notes(CHANGES, "0.3.0")
    with pytest.raises(Refused, match="says nothing"):
        notes("# Changes\n\n## 0.1.0 (unreleased)\n\n", "0.1.0")


def test_the_projects_changelog_has_a_section_for_its_version() -> None:
    """Also between releases."""
    assert notes((ROOT / "CHANGELOG.md").read_text("utf-8"), version(ROOT))


def test_builds_that_differ_are_refused() -> None:
    """The error names the file; so does it if one was not built."""
    files = {f"{name}-1.0{suffix}": "ab" for name in ("x", "y") for suffix in (".tar.gz", "-py3-none-any.whl")}
    compare(files, dict(files))

    with pytest.raises(Refused, match=r"differ in x-1\.0\.tar\.gz"):
        compare(files, {**files, "x-1.0.tar.gz": "cd"})
    with pytest.raises(Refused, match="were to be built"):
        compare({"x-1.0.tar.gz": "ab"}, {"x-1.0.tar.gz": "ab"})


def exported(**more: Any) -> dict[str, Any]:
    """Return what uv writes, as far as it matters here."""
    urls = ("https://files.pythonhosted.org/a.whl", "https://packages.site.example/a.whl")
    component = {"name": "a", "externalReferences": [{"type": "distribution", "url": url} for url in urls]}
    return {"metadata": {"timestamp": "now"}, "components": [component], **more}


def test_a_bill_of_materials_does_not_depend_on_who_made_it() -> None:
    """Time and serial number come of the commit, and addresses of an index of one's own are left out."""
    made = bill(exported(serialNumber="urn:uuid:1"), "1790000000")

    assert made == bill(exported(serialNumber="urn:uuid:2"), "1790000000")
    assert made["metadata"]["timestamp"] == "2026-09-21T14:13:20Z"
    assert "site.example" not in str(made)
    assert "pythonhosted" in str(made)


def test_a_front_end_that_is_older_than_its_sources_is_not_released(tmp_path: Path) -> None:
    """Nor is one that has not been built at all."""
    (tmp_path / "src").mkdir()
    (tmp_path / "labextension").mkdir()
    source, built = tmp_path / "src" / "index.ts", tmp_path / "labextension" / "package.json"
    source.touch()
    assert not is_current(tmp_path)

    built.touch()
    os.utime(source, (1000, 1000))
    assert is_current(tmp_path)

    os.utime(built, (999, 999))
    assert not is_current(tmp_path)
