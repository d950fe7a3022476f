"""What the hand does to files on a node, and undoes."""

from pathlib import Path

import pytest

from lab.faults.inside import hand
from lab.faults.inside.clock import code


def test_blocks_of_several_faults_share_a_file(tmp_path: Path) -> None:
    """Each is taken out on its own, in any order, and what others wrote stays."""
    path = tmp_path / "rc"
    path.write_text("old line\n")
    hand.block(str(path), "mark-a", "echo a")
    hand.block(str(path), "mark-b", "echo b\necho bb")
    path.write_text(path.read_text() + "new line\n")
    hand.unblock(str(path), "mark-a")
    assert "echo a" not in path.read_text()
    assert "echo bb" in path.read_text()
    hand.unblock(str(path), "mark-b")
    hand.unblock(str(path), "mark-b")
    assert path.read_text() == "old line\nnew line\n"


def test_a_file_that_a_block_made_goes_with_it(tmp_path: Path) -> None:
    """With the folders that were made for it, unless somebody wrote into it."""
    path = tmp_path / "one" / "two" / "rc"
    hand.block(str(path), "mark", "echo")
    hand.unblock(str(path), "mark")
    assert list(tmp_path.iterdir()) == []
    hand.block(str(path), "mark", "echo")
    path.write_text(path.read_text() + "mine\n")
    hand.unblock(str(path), "mark")
    assert path.read_text() == "mine\n"


def test_what_is_put_aside_comes_back_over_what_stands_there(tmp_path: Path) -> None:
    """And putting back twice does no harm."""
    path = tmp_path / "python3"
    path.symlink_to("python3.11")
    hand.aside(str(path), "mark")
    path.write_text("stand-in")
    hand.back(str(path), "mark")
    hand.back(str(path), "mark")
    assert path.readlink() == Path("python3.11")
    with pytest.raises(hand.StepFailed, match="there is no"):
        hand.aside(str(tmp_path / "nothing"), "mark")


def test_commented_lines_are_known_by_their_mark(tmp_path: Path) -> None:
    """Comments of others stay comments."""
    path = tmp_path / "sshd_config"
    text = "#Subsystem old\nSubsystem\tsftp /x\nUsePAM yes\n"
    path.write_text(text)
    hand.comment(str(path), "mark", r"Subsystem\s+sftp")
    assert path.read_text() == "#Subsystem old\n#mark Subsystem\tsftp /x\nUsePAM yes\n"
    with pytest.raises(hand.StepFailed, match="no line"):
        hand.comment(str(path), "mark", "Nothing")
    hand.uncomment(str(path), "mark")
    assert path.read_text() == text


def test_an_undo_goes_on_behind_a_failure(tmp_path: Path) -> None:
    """As much as possible is healed, and the first failure is told; an apply stops there."""
    path = tmp_path / "file"
    steps = [["false"], ["@write", str(path), "x"]]
    assert "false" in hand.carry_out(steps, {}, undoing=False)
    assert not path.exists()
    assert "false" in hand.carry_out(steps, {}, undoing=True)
    assert path.read_text() == "x"


def test_the_environment_is_as_big_as_asked_for(tmp_path: Path) -> None:
    """In lines that pam_env takes: short ones."""
    path = tmp_path / "environment"
    path.write_text("LANG=C\n")
    hand.environment(str(path), "lab-fault-abcd", "100")
    lines = path.read_text().splitlines()
    assert sum(map(len, lines)) > 100 * 1024
    assert max(map(len, lines)) < 1100
    hand.unblock(str(path), "lab-fault-abcd")
    assert path.read_text() == "LANG=C\n"


@pytest.mark.parametrize(("name", "size"), [("clock_gettime", 34), ("gettimeofday", 30), ("time", 29)])
def test_a_clocks_code_ends_with_its_return(name: str, size: int) -> None:
    """The jumps in it are computed for exactly this length."""
    piece = code(name, -3600)
    assert len(piece) == size
    assert piece[-1:] == b"\xc3"
