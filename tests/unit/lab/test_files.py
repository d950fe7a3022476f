"""Files that are written whole or not at all."""

import os
from pathlib import Path

import pytest

from lab.files import PRIVATE, SHARED, replacing, write


def test_a_file_is_written_for_this_user_alone_unless_asked_otherwise(tmp_path: Path) -> None:
    """The permissions are right from the first byte on, and nothing lies beside the file at the end."""
    umask = os.umask(0o022)
    try:
        write(tmp_path / "own", "a ü\n")
        write(tmp_path / "all", b"\0", SHARED)
    finally:
        os.umask(umask)
    assert (tmp_path / "own").read_text("utf-8") == "a ü\n"
    assert (tmp_path / "own").stat().st_mode & 0o777 == PRIVATE
    assert (tmp_path / "all").stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "own"]


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_half_a_file_is_none(tmp_path: Path, error: BaseException) -> None:
    """What fails or is interrupted on the way leaves the old version, and no rest."""
    place = tmp_path / "x.json"
    write(place, "old")

    def fail() -> None:
        with replacing(place) as file:
            file.write(b"ne")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_a_reader_sees_the_old_version_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """The new file is no `*.json` before that, either."""
    place = tmp_path / "x.json"
    write(place, "old")
    with replacing(place) as file:
        file.write(b"new")
        file.flush()
        assert place.read_text() == "old"
        assert list(tmp_path.glob("*.json")) == [place]
        assert len(list(tmp_path.iterdir())) == 2
    assert place.read_text() == "new"


def test_no_folder_comes_back_with_a_file(tmp_path: Path) -> None:
    """A late writer must not bring the folder of a removed lab back."""
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "gone" / "x", "")
    assert list(tmp_path.iterdir()) == []
