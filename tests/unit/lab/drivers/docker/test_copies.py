import io
import tarfile
from pathlib import Path

import pytest

from lab.drivers.docker import copies
from lab.errors import LabError


class Container:
    """A container whose engine answers with one archive."""

    def __init__(self, *members: tarfile.TarInfo) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for member in members:
                tar.addfile(member, io.BytesIO(b"x" * member.size))
        self._data = buffer.getvalue()

    def get_archive(self, source: str) -> tuple[list[bytes], dict[str, str]]:
        return [self._data], {}


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return found


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A link that leads out of the target stays a link; a file behind it in the archive does not land where it leads."""
    (tmp_path / "out").mkdir()
    (tmp_path / "target").mkdir()
    link = member("d", tarfile.SYMTYPE, str(tmp_path / "out"))
    copies.copy_out(
        Container(link, member("d/file"), member("p", tarfile.FIFOTYPE)), "node1", "/d", tmp_path / "target"
    )
    assert list((tmp_path / "out").iterdir()) == []
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["d"]


def test_what_leads_out_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A name that climbs out of the target is refused with the machine and the path, and no traceback."""
    with pytest.raises(LabError, match="node1:/d can't be copied"):
        copies.copy_out(Container(member("../file")), "node1", "/d", tmp_path)
