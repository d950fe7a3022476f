"""What the hand does to files on a node, and undoes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.faults.inside import HAND, bundle, files, hand, hungmount, source, victims
from lab.faults.inside.clock import code
from lab.faults.inside.steps import StepFailed, stat
from tests.until import block_until


def test_blocks_of_several_faults_share_a_file(tmp_path: Path) -> None:
    """Each is taken out on its own, in any order, and what others wrote stays."""
    path = tmp_path / "rc"
    path.write_text("old line\n")
    files.block(str(path), "mark-a", "echo a")
    files.block(str(path), "mark-b", "echo b\necho bb")
    path.write_text(path.read_text() + "new line\n")
    files.unblock(str(path), "mark-a")
    assert "echo a" not in path.read_text()
    assert "echo bb" in path.read_text()
    files.unblock(str(path), "mark-b")
    files.unblock(str(path), "mark-b")
    assert path.read_text() == "old line\nnew line\n"


def test_a_file_that_a_block_made_goes_with_it(tmp_path: Path) -> None:
    """With the folders that were made for it, unless somebody wrote into it."""
    path = tmp_path / "one" / "two" / "rc"
    files.block(str(path), "mark", "echo")
    files.unblock(str(path), "mark")
    assert list(tmp_path.iterdir()) == []
    files.block(str(path), "mark", "echo")
    path.write_text(path.read_text() + "mine\n")
    files.unblock(str(path), "mark")
    assert path.read_text() == "mine\n"


def test_a_made_file_goes_with_the_last_fault_that_uses_it(tmp_path: Path) -> None:
    """Whichever of them made it, and whichever heals first."""
    path = tmp_path / "one" / "rc"
    for order in (("a", "b"), ("b", "a")):
        for mark in ("a", "b"):
            files.block(str(path), f"lab-fault-{mark}", "echo")
        for mark in order:
            files.unblock(str(path), f"lab-fault-{mark}")
        assert list(tmp_path.iterdir()) == []


def test_what_is_put_aside_comes_back_over_what_stands_there(tmp_path: Path) -> None:
    """And putting back twice does no harm."""
    path = tmp_path / "python3"
    path.symlink_to("python3.11")
    files.aside(str(path), "mark")
    path.write_text("stand-in")
    files.back(str(path), "mark")
    files.back(str(path), "mark")
    assert path.readlink() == Path("python3.11")
    with pytest.raises(StepFailed, match="there is no"):
        files.aside(str(tmp_path / "nothing"), "mark")


def test_what_vanishes_lies_where_it_may(tmp_path: Path) -> None:
    """A folder goes with all that is in it; a path that leads out of what is allowed, by a link too, is refused."""
    home, other = tmp_path / "home", tmp_path / "other"
    (home / "cache" / "deep").mkdir(parents=True)
    (other / "deep").mkdir(parents=True)
    (home / "way").symlink_to(other)
    for path in (other / "deep", home, home / ".." / "other", home / "way" / "deep", Path("/")):
        with pytest.raises(StepFailed, match="is not below"):
            files.vanish(str(path), "mark", str(home))
    with pytest.raises(StepFailed, match="there is no"):
        files.vanish(str(home / "nothing"), "mark", str(home))
    files.vanish(str(home / "cache"), "mark", str(home))
    files.vanish(str(home / "way"), "mark", str(home))
    assert list(home.iterdir()) == []
    assert (other / "deep").is_dir()
    files.vanish(str(other / "deep"), "mark", str(home), str(other))
    assert list(other.iterdir()) == []


def test_commented_lines_are_known_by_their_mark(tmp_path: Path) -> None:
    """Comments of others stay comments."""
    path = tmp_path / "sshd_config"
    text = "#Subsystem old\nSubsystem\tsftp /x\nUsePAM yes\n"
    path.write_text(text)
    files.comment(str(path), "mark", r"Subsystem\s+sftp")
    assert path.read_text() == "#Subsystem old\n#mark Subsystem\tsftp /x\nUsePAM yes\n"
    with pytest.raises(StepFailed, match="no line"):
        files.comment(str(path), "mark", "Nothing")
    files.uncomment(str(path), "mark")
    assert path.read_text() == text


def test_one_process_is_stopped_and_goes_on(tmp_path: Path) -> None:
    """The one that a part of its command line names; more than one, none, or the one that looks for it is refused."""
    name = f"victim-{tmp_path.name}"
    with victim(name) as process:
        try:
            victims.stop_named(str(tmp_path), name)
            becomes(process.pid, "Tt")
            with pytest.raises(StepFailed, match="does not run"):
                victims.stop_named(str(tmp_path), str(process.pid))
            victims.continue_named(str(tmp_path))
            victims.continue_named(str(tmp_path))
            becomes(process.pid, "RS")
            with victim(name) as second:
                with pytest.raises(StepFailed, match="2 processes match"):
                    victims.kill_named(name, "KILL")
                second.kill()
            victims.kill_named(name, "TERM")
            assert process.wait(20) == -15
        finally:
            process.kill()
    with pytest.raises(StepFailed, match="0 processes match"):
        victims.named(name)


def victim(name: str) -> subprocess.Popen[bytes]:
    """Start a process with *name* in its command line, which the system shows a moment after Popen has returned."""
    argv = [sys.executable, "-c", "print(flush=True); input()", name]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def becomes(pid: int, states: str) -> None:
    """Wait until the kernel's letter for a process is one of *states*."""
    block_until(f"process {pid} is in one of the states {states}", lambda: (found := stat(pid)) and found[1] in states)


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
    files.environment(str(path), "lab-fault-abcd", "100")
    lines = path.read_text().splitlines()
    assert sum(map(len, lines)) > 100 * 1024
    assert max(map(len, lines)) < 1100
    files.unblock(str(path), "lab-fault-abcd")
    assert path.read_text() == "LANG=C\n"


@pytest.mark.parametrize(("name", "size"), [("clock_gettime", 34), ("gettimeofday", 30), ("time", 29)])
def test_a_clocks_code_ends_with_its_return(name: str, size: int) -> None:
    """The jumps in it are computed for exactly this length."""
    piece = code(name, -3600)
    assert len(piece) == size
    assert piece[-1:] == b"\xc3"


def test_a_hung_mount_speaks_the_kernels_protocol(tmp_path: Path) -> None:
    """What it reads and answers has the sizes that FUSE has, and tells of the folder as it is."""
    assert (hungmount.ASKED.size, hungmount.ANSWER.size, hungmount.STARTED.size) == (40, 16, 64)
    told = hungmount.attributes(tmp_path.stat())
    assert len(told) == 104
    assert int.from_bytes(told[76:80], sys.byteorder) == tmp_path.stat().st_mode


def test_the_hand_is_one_text_that_needs_nothing_else() -> None:
    """Its modules share one set of names when it runs on a node, so no name may be defined twice."""
    text = bundle()
    assert "lab.faults" not in "\n".join(line for line in text.splitlines() if "import" in line)
    names = [name for part in HAND for name in re.findall(r"(?m)^(?:def|class) (\w+)|^([A-Z]+)\b", source(part))]
    assert len(set(names)) == len(names)
    done = subprocess.run(
        [sys.executable, "-I", "-c", text, '[["true"], ["@need", "/nowhere"]]', "{}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert json.loads(done.stdout) == {"failed": "this node has no /nowhere"}
