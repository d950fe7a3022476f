"""A process is its pid and its start time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from eg_distributed.agent import processes

SLEEPER = [sys.executable, "-ISc", "import sys; print(1, flush=True); sys.stdin.read()"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own that lives until its stdin ends."""
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_is_told_from_another_with_its_pid(sleeper: subprocess.Popen[bytes]) -> None:
    """The same pid with another start time is another process, and is not signalled."""
    started = processes.start_time(sleeper.pid)
    assert started is not None
    assert started == processes.start_time(sleeper.pid)
    assert processes.is_running(sleeper.pid, started)
    other = started + "0"
    assert not processes.is_running(sleeper.pid, other)
    assert not processes.signal_process(sleeper.pid, other, signal.SIGKILL, group=True)
    assert sleeper.poll() is None


def test_a_zombie_runs_no_more(sleeper: subprocess.Popen[bytes]) -> None:
    """A process that has ended and waits to be reaped counts as gone."""
    started = processes.start_time(sleeper.pid) or ""
    assert processes.signal_process(sleeper.pid, started, signal.SIGKILL, group=True)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_time(sleeper.pid) is None
    assert not processes.is_running(sleeper.pid, started)
    assert processes.group_members(sleeper.pid) == []


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_no_process_has_such_a_pid(pid: int) -> None:
    """A record without a pid never leads to a signal to one's own group, or to everybody."""
    assert not processes.is_running(pid, "x")
    assert not processes.signal_process(pid, processes.start_time(pid) or "", signal.SIGKILL, group=True)


def test_a_command_with_brackets_is_read(tmp_path: object) -> None:
    """The command's name in /proc may hold blanks and brackets."""
    path = os.path.join(str(tmp_path), "a) R 1 (b")  # noqa: PTH118
    os.symlink(sys.executable, path)  # noqa: PTH211
    with subprocess.Popen([path, *SLEEPER[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = processes.start_time(process.pid)
        assert started is not None
        assert started.rpartition(":")[2].isdigit()
        process.kill()


def test_the_members_of_a_group_are_known(sleeper: subprocess.Popen[bytes]) -> None:
    """What is left of a group is found, and ended at once."""
    assert processes.group_members(sleeper.pid) == [sleeper.pid]
    assert processes.end_group(sleeper.pid)
    assert sleeper.wait() == -signal.SIGKILL
    assert not processes.end_group(sleeper.pid)


def test_a_command_line_is_known_while_a_program_is_executed() -> None:
    """A process that executes one program after another is never without a command line, as long as it runs."""
    script = '[ "$1" -gt 0 ] && exec sh -c "$0" "$0" "$(($1 - 1))"; exit 0'
    looks = 0
    with subprocess.Popen(["/bin/sh", "-c", script, script, "1500"]) as child:
        while (process := processes.look(child.pid)) is not None:
            assert b"exec sh" in processes.command_lines([process])[child.pid] or processes.look(child.pid) is None
            looks += 1
    assert looks > 100
