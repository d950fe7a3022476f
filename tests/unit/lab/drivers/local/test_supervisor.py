"""The supervisor of a local machine's daemons, with real processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.drivers.local.programs import SUPERVISOR
from lab.ports import free_port
from tests.until import block_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs Linux")

SERVER = """
import os, socket, subprocess, sys
work, port = sys.argv[1:]
child = subprocess.Popen(["sleep", "300"], cwd=work, start_new_session=True)
with socket.create_server(("127.0.0.1", int(port))) as server:
    print("listening", child.pid, flush=True)
    while True:
        server.accept()
"""


def lives(pid: int) -> bool:
    """Say whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Supervised:
    """A machine's main process (a `sleep`) with one supervised daemon, which has begun a process of its own."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        self.folder, self.work = folder, folder / "work"
        self.port = free_port()
        daemon = {
            "argv": [sys.executable, "-c", SERVER, str(self.work), str(self.port)],
            "env": dict(os.environ),
            "cwd": str(folder),
            "fresh": [str(self.work)],
            "work": str(self.work),
            "listens": ["127.0.0.1", self.port],
            **facts,
        }
        (folder / "daemons.json").write_text(json.dumps({"it": daemon}))
        argv = [sys.executable, "-I", "-S", SUPERVISOR, "run", str(folder), "--", "sleep", "300"]
        self.main = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def pids(self) -> tuple[int, int]:
        """Return the daemon's pid and its child's, once it listens."""

        def look() -> tuple[int, int] | None:
            try:
                words = (self.folder / "it.log").read_text().split()
                return int((self.folder / "it.pid").read_text()), int(words[1])
            except (OSError, IndexError):
                return None

        return block_until("it listens", look)

    def move(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of the supervisor's file."""
        argv = [sys.executable, "-I", "-S", SUPERVISOR, words[0], str(self.folder), *words[1:]]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    found = Supervised(tmp_path)
    yield found
    found.main.kill()
    found.main.wait()
    block_until(
        "all is over", lambda: not (tmp_path / "it.pid").exists() or not lives(int((tmp_path / "it.pid").read_text()))
    )


def test_a_daemon_that_dies_is_started_again(supervised: Supervised) -> None:
    """What it began ends with it, its folder of work is new, and the log of the run before is kept."""
    daemon, child = supervised.pids()
    (supervised.work / "left").touch()
    os.kill(daemon, signal.SIGKILL)
    block_until("what it began has ended", lambda: not lives(child))
    block_until("it is another one", lambda: supervised.pids()[0] != daemon)
    assert not (supervised.work / "left").exists()
    assert str(child) in (supervised.folder / "it.log.1").read_text()


def test_a_daemon_is_kept_down_and_let_up(supervised: Supervised) -> None:
    """`down` ends it and what it began, `up` returns when its port accepts; down twice says that there is none."""
    daemon, child = supervised.pids()
    assert supervised.move("down", "it").returncode == 0
    assert not lives(daemon)
    assert not lives(child)
    again = supervised.move("down", "it")
    assert (again.returncode, again.stderr) == (69, "no it runs here\n")
    assert supervised.move("up", "it").returncode == 0
    assert supervised.pids()[0] != daemon


def test_what_it_began_may_stay(supervised: Supervised) -> None:
    """With `stay` the daemon's own processes live on as orphans."""
    daemon, child = supervised.pids()
    assert supervised.move("down", "it", "stay").returncode == 0
    assert not lives(daemon)
    assert lives(child)
    os.kill(child, signal.SIGKILL)


def test_all_ends_with_the_machine(supervised: Supervised) -> None:
    """When the machine's server is gone, so are its daemons; `up` has nobody to tell, and is fine."""
    daemon, child = supervised.pids()
    supervised.main.kill()
    supervised.main.wait()
    block_until("they have ended", lambda: not lives(daemon) and not lives(child))

    def silent() -> bool:
        return supervised.move("up", "it").returncode == 0

    block_until("nothing supervises any more", silent)


def test_it_waits_for_its_master(tmp_path: Path) -> None:
    """A daemon with a master is not started before the master listens."""
    port = free_port()
    found = Supervised(tmp_path, after=["127.0.0.1", port])
    try:
        block_until("the supervisor is there", (tmp_path / "control").exists)
        assert found.move("up", "it").returncode == 0
        assert not (tmp_path / "it.pid").exists()
        master = [sys.executable, "-c", SERVER, str(tmp_path), str(port)]
        with subprocess.Popen(master, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            child = int(process.stdout.readline().split()[1])
            daemon = found.pids()[0]
            process.kill()
            os.kill(child, signal.SIGKILL)
    finally:
        found.main.kill()
        found.main.wait()
    block_until("it ends with its machine", lambda: not lives(daemon))
