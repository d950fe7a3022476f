"""Processes: the identity that labs keep on disk, and what psutil says of a process."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lab.processes import Process, argv, environment, identify, look

pytestmark = pytest.mark.skipif(not psutil.LINUX, reason="needs /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a name that /proc/PID/stat is hard to read with, until its stdin ends."""
    argv = [sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()", ") S 1 (", ""]
    env = os.environ | {"KERNEL_ID": "a=b ü"}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def ticks(pid: int) -> int:
    """Return the start time as the kernel tells it, which is what labs of earlier releases have on disk."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_start_time_is_the_kernel_s_own(child: subprocess.Popen[bytes]) -> None:
    """To the tick, for every process that there is: what an earlier release wrote down still means the same process."""
    for pid in (os.getpid(), os.getppid(), child.pid):
        assert identify(pid) == Process(pid, ticks(pid))
    for pid, facts in look(psutil.pids()).items():
        try:
            assert facts.started == ticks(pid)
        except FileNotFoundError:
            continue  # it has ended meanwhile


def test_a_clock_that_is_set_changes_no_identity(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boot time moves with the clock, even while a process is looked at; its start time in ticks stays."""
    before = identify(child.pid)
    assert before is not None
    boot = psutil.boot_time()
    times = itertools.chain([boot, boot + 1], itertools.repeat(boot + 3600.0))
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: next(times))
    assert identify(child.pid) == before
    assert before.status


def test_an_ended_process_has_no_status(child: subprocess.Popen[bytes]) -> None:
    """A zombie still has its number, but it is over; then there is nothing."""
    found = identify(child.pid)
    assert found is not None
    assert found.status
    assert not found.is_stopped
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert look([child.pid])[child.pid].is_over
    assert found.status == ""
    child.wait()
    assert identify(child.pid) is None
    assert found.status == ""


def test_what_a_process_was_started_with_is_read_back(child: subprocess.Popen[bytes]) -> None:
    """Its command line and its environment, whatever characters are in them; nothing of one that is gone."""
    assert argv(child.pid)[-2] == ") S 1 ("
    assert environment(child.pid)["KERNEL_ID"] == "a=b ü"
    child.kill()
    child.wait()
    assert argv(child.pid) == []
    assert environment(child.pid) == {}


@pytest.mark.parametrize("pid", [0, -1, 4194304999])
def test_a_number_that_no_process_can_have_is_none(pid: int) -> None:
    """Half a note may hold any number."""
    assert identify(pid) is None
    assert Process(pid, 0).status == ""
    assert argv(pid) == []
    assert environment(pid) == {}
