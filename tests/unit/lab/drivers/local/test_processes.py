import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.drivers.local import processes
from lab.drivers.local.processes import MARK
from lab.processes import Process, identify

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

SLEEP = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Path]:
    """A machine's folder whose processes are ended with the test."""
    folder = tmp_path / "machines" / "node1"
    folder.mkdir(parents=True)
    yield folder
    processes.end_all(folder, [folder], grace=0)


def start(machine: Path, argv: list[str] = SLEEP, *, marked: bool = True) -> Process:
    """Start a process and wait until it says that it runs."""
    env = {**os.environ, **({MARK: str(machine)} if marked else {})}
    child = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, start_new_session=True)
    child.returncode = 0
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.stdout.close()
    found = identify(child.pid)
    assert found is not None
    return found


def test_a_pid_is_no_identity() -> None:
    """A process with another start time is somebody else's and gets no signal."""
    own = identify(os.getpid())
    assert own is not None
    assert own.status
    stranger = Process(own.pid, own.started + 1)
    assert stranger.status == ""
    stranger.signal(signal.SIGKILL)


def test_the_mark_finds_what_left_its_session(machine: Path) -> None:
    """Marked processes are found in whichever session, by the machine's folder and by the lab's, and no others."""
    marked = start(machine)
    assert marked in processes.belonging(machine)
    assert marked in processes.belonging(machine.parent)
    assert marked not in processes.belonging(machine.parent / "node")
    assert processes.belonging(machine.parent / "node2") == set()


def test_a_child_without_the_mark_belongs_to_its_parent(machine: Path) -> None:
    """A kernel with an environment of its own is found as an heir, and still ended when its parent is gone first."""
    script = (
        "import subprocess, sys, time;"
        "c = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN);"
        'print("up", flush=True); time.sleep(60)\'], env={});'
        "time.sleep(60)"
    )
    start(machine, [sys.executable, "-c", script])
    assert len(processes.belonging(machine)) == 2
    assert processes.end_all(machine, [machine], grace=0.3) == 2
    assert processes.belonging(machine) == set()


def test_a_stopped_process_is_ended_too(machine: Path) -> None:
    """A paused machine goes away within its grace."""
    marked = start(machine)
    processes.signal_all(machine, signal.SIGSTOP)
    processes.end_all(machine, [machine], grace=5)
    assert marked.status == ""


def test_nothing_there_is_fine(tmp_path: Path) -> None:
    """Ending a machine that isn't there ends nothing."""
    assert processes.end_all(tmp_path / "none", [tmp_path / "none"]) == 0
