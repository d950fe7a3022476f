"""The file of what is still to be ended: bounded, private, and believed only where it is well formed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from eg_distributed.unended import Unended, find_unended, read_unended, runtime_folders, write_unended


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Attempts come back as they were, from a file that is its user's alone; nothing to end is no file."""
    path = tmp_path / "unended.json"
    attempts = [Unended("node1", "k1", "a1", 1.5, "It hangs.", 7.5), Unended("node2", "k2", "a2", 2.0)]
    write_unended(path, attempts)
    assert read_unended(path) == attempts
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_unended(path, [])
    write_unended(path, [])
    assert not path.exists()


def test_the_oldest_are_left_out(tmp_path: Path) -> None:
    """A thousand are kept, however many there are."""
    path = tmp_path / "unended.json"
    write_unended(path, [Unended("node1", f"k{number}", "a", float(number)) for number in range(1500)])
    found = read_unended(path)
    assert (len(found), found[0].kernel, found[-1].kernel) == (1000, "k500", "k1499")


@pytest.mark.parametrize("letter", ["x", "\0", "ü", "\U0001f40c", "\udcff"], ids=ascii)
def test_the_largest_file_is_read(tmp_path: Path, letter: str) -> None:
    """A thousand attempts with the longest names of hosts and with endless causes, in any letters, come back."""
    path = tmp_path / "unended.json"
    attempts = [
        Unended("h" * 253, f"{number:036}", "a" * 36, 1.7e9 + 0.123456, letter * 5000) for number in range(1000)
    ]
    write_unended(path, attempts)
    found = read_unended(path)
    assert [each.kernel for each in found] == [each.kernel for each in attempts]
    assert {each.cause for each in found} == {letter * 300}


def test_names_that_are_too_long_together_cost_the_oldest(tmp_path: Path) -> None:
    """What would be more than may be read again leaves out the oldest, and not all."""
    path = tmp_path / "unended.json"
    write_unended(path, [Unended("\0" * 1000, f"k{number}", "a", 1.0) for number in range(1000)])
    found = read_unended(path)
    assert 0 < len(found) < 1000
    assert found[-1].kernel == "k999"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '[["node1", "k1", "a1"]]',
        '[["node1", "k1", 7, 1.0]]',
        '[["node1", "k1", "a1", true]]',
        '[["node1", "k1", "a1", 1.0, 7, 2.0]]',
        '[["node1", "k1", "a1", 1.0, "", NaN]]',
        '[["node1", "k1", "a1", 1.0, "", 2.0, 3.0]]',
        f'[["node1", "k1", "a1", {10**400}]]',
        "[" * 200_000,
    ],
)
def test_a_malformed_file_is_said(tmp_path: Path, content: str) -> None:
    """Whatever else is in the file is an error, and never half of a list."""
    path = tmp_path / "unended.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"\w"):
        read_unended(path)


def test_names_have_bounds(tmp_path: Path) -> None:
    """A name that is longer than any of ours is malformed."""
    path = tmp_path / "unended.json"
    path.write_text(json.dumps([["n" * 2000, "k1", "a1", 1.0]]))
    with pytest.raises(ValueError, match="too long"):
        read_unended(path)


def test_a_file_of_an_older_release_is_read(tmp_path: Path) -> None:
    """It says neither cause nor next try."""
    path = tmp_path / "unended.json"
    path.write_text('[["node1", "k1", "a1", 1.5]]')
    assert read_unended(path) == [Unended("node1", "k1", "a1", 1.5)]


def test_files_of_all_gateways_are_found(tmp_path: Path) -> None:
    """Those in folders that are this user's alone; one that cannot be read is told by its path, and hides no other."""
    mine, open_to_others, missing = tmp_path / "mine", tmp_path / "open", tmp_path / "missing"
    mine.mkdir(mode=0o700)
    open_to_others.mkdir(mode=0o755)
    one = Unended("node1", "k1", "a1", 1.0, "It hangs.", 2.0)
    write_unended(mine / "unended-1.json", [one])
    (mine / "unended-2.json").write_text("{")
    write_unended(open_to_others / "unended-3.json", [one])
    found, errors = find_unended([mine, open_to_others, missing])
    assert found == [one]
    assert list(errors) == [str(mine / "unended-2.json")]
    assert runtime_folders(str(mine)) == [mine]
