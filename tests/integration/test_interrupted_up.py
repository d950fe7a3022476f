"""`lab up` that is not let finish: ^C and SIGKILL at random moments, twice at once, on a full disk. Nothing may stay behind.

The moments come from a seed, which is printed; LAB_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab
from lab.drivers.docker.engine import connect
from lab.drivers.local import processes
from lab.drivers.local.driver import LocalDriver
from lab.errors import EnvironmentUnfit
from lab.names import LABEL
from lab.state import StateFolder
from tests.until import block_until

NAME = f"it-cut-{os.getpid() % 10000}"
SEED = int(os.environ.get("LAB_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
NODES = 2
SECONDS = 120.0
"""How long any one call may take; an interrupted one has to end in a quarter of it."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(params=["docker", "local"])
def driver(request: pytest.FixtureRequest) -> str:
    """Either driver, where this machine can run it."""
    kind = str(request.param)
    if kind == "docker":
        request.getfixturevalue("engine")
        return kind
    try:
        processes.require_proc()
    except EnvironmentUnfit as error:
        pytest.skip(str(error))
    return kind


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name of the test's own, of which nothing is there before; whatever is left goes, so that one failure stays one."""
    chosen = f"{NAME}-{abs(hash(request.node.name)) % 1000}"
    assert left(chosen) == []
    try:
        yield chosen
    finally:
        call("down", "--name", chosen)


def spawn(*words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `lab WORDS` as a shell does: in a process group of its own, to which ^C goes."""
    argv = [sys.executable, "-c", "from lab.cli import main; main()", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **(env or {})},
    )


def call(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run `lab WORDS` to its end; return its exit code and what it said."""
    child = spawn(*words, env=env)
    said, _ = child.communicate(timeout=SECONDS)
    return child.returncode, said


def left(name: str) -> list[str]:
    """Return everything of the lab *name* that can be seen from outside: containers, networks, volumes, processes, folders."""
    found: list[str] = []
    with contextlib.suppress(EnvironmentUnfit):
        client = connect()
        mine = {"label": f"{LABEL}={name}"}
        found += [
            f"container {each.name}" for each in client.containers.list(all=True, filters=mine, ignore_removed=True)
        ]
        found += [f"network {each.name}" for each in client.networks.list(filters=mine)]
        found += [f"volume {each.name}" for each in client.volumes.list(filters=mine)]
    folder = StateFolder(name)
    found += [f"process {process.pid}" for process in processes.belonging(folder.path)]
    with contextlib.suppress(EnvironmentUnfit):
        found += [str(path) for path in (folder.path, LocalDriver(name, folder)._runtime()) if path.exists()]
    return found


def whole(name: str, nodes: int = NODES) -> bool:
    """Say whether the lab has all its nodes and its gateway, and all run."""
    lab = Lab.attach(name)
    return [machine.state for machine in (*lab.nodes, *lab.gateways)] == ["running"] * (nodes + 1)


def machines(name: str, driver: str) -> list[str]:
    """Return what is there of the lab's machines, by names of folders or containers."""
    if driver == "local":
        folder = StateFolder(name).path / "machines"
        return [each.name for each in folder.iterdir()] if folder.exists() else []
    return [
        each.name
        for each in connect().containers.list(all=True, filters={"label": f"{LABEL}={name}"}, ignore_removed=True)
    ]


def up(name: str, driver: str) -> list[str]:
    return ["up", "--name", name, "--driver", driver, "--nodes", str(NODES)]


def moments(name: str, driver: str, count: int) -> list[float]:
    """Return *count* moments, in seconds, evenly spread at random over the time that an `up` takes here; print the seed."""
    began = time.monotonic()
    code, said = call(*up(name, driver))
    took = time.monotonic() - began
    assert code == 0, said
    assert call("down", "--name", name)[0] == 0
    assert left(name) == []
    print(f"LAB_SEED={SEED}; an `up` takes {took:.1f} s")
    dice = random.Random(SEED)
    return [took * (number + dice.random()) / count for number in range(count)]


def interrupt(name: str, driver: str, moment: float, number: signal.Signals) -> int:
    """Start `up`, send the signal at *moment* to its process group, and return the exit code."""
    child = spawn(*up(name, driver))
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(moment)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
    said, _ = child.communicate(timeout=SECONDS / 4)
    if number == signal.SIGINT:
        # Python itself ends by the signal where no line of ours ran yet.
        assert child.returncode in {0, 130, -signal.SIGINT}, said
    print(f"{number.name} after {moment:.2f} s: exit code {child.returncode}, left {len(left(name))}")
    return child.returncode


def test_interrupted_at_ten_moments_the_same_again_goes_on(name: str, driver: str) -> None:
    """After ^C at any moment `up` makes the lab whole, and `down` leaves nothing."""
    for moment in moments(name, driver, 10):
        interrupt(name, driver, moment, signal.SIGINT)
        code, said = call(*up(name, driver))
        assert code == 0, said
        assert whole(name)
        code, said = call("down", "--name", name)
        assert code == 0, said
        assert left(name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_same_again_makes_all_nodes_that_were_asked_for(name: str, driver: str, number: signal.Signals) -> None:
    """An `up` that is cut between its nodes is gone on with by one that says no number: none of them is forgotten."""
    child = spawn("up", "--name", name, "--driver", driver, "--nodes", "4")

    def begun() -> str:
        # The first of them is there, and the gateway, which lists them all, is not.
        return ", ".join(machines(name, driver)) or ("none" if child.poll() is not None else "")

    try:
        there = block_until("a machine is there, or `lab up` has ended", begun, SECONDS, pause=0.01)
    finally:
        os.killpg(child.pid, number)
        child.communicate(timeout=SECONDS / 4)
    print(f"cut with {there}")
    code, said = call("up", "--name", name)
    assert code == 0, said
    assert whole(name, 4)


def test_killed_at_ten_moments_down_leaves_nothing(name: str, driver: str) -> None:
    """After SIGKILL of `up` at any moment, `down` removes the halves that it left."""
    for moment in moments(name, driver, 10):
        interrupt(name, driver, moment, signal.SIGKILL)
        code, said = call("down", "--name", name)
        assert code == 0, said
        assert left(name) == []


def test_a_killed_up_is_gone_on_with(name: str, driver: str) -> None:
    """After SIGKILL in its middle the same again makes the lab whole: no lock is left that anybody waits for."""
    interrupt(name, driver, moments(name, driver, 3)[1], signal.SIGKILL)
    code, said = call(*up(name, driver))
    assert code == 0, said
    assert whole(name)


def test_an_interrupted_down_is_gone_on_with(name: str, driver: str) -> None:
    """After ^C in the middle of `down`, the same again removes the rest."""
    dice = random.Random(SEED)
    print(f"LAB_SEED={SEED}")
    code, said = call(*up(name, driver))
    assert code == 0, said
    for _ in range(3):
        child = spawn("down", "--name", name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.4 + dice.random())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)
        child.communicate(timeout=SECONDS / 4)
    code, said = call("down", "--name", name)
    assert code == 0, said
    assert left(name) == []


def test_two_at_once_make_one_lab(name: str, driver: str) -> None:
    """The second `up` of a name waits for the first, and finds nothing to do."""
    children = [spawn(*up(name, driver)) for _ in range(2)]
    ended = [(child.communicate(timeout=SECONDS)[0], child.returncode) for child in children]
    assert [code for _, code in ended] == [0, 0], ended
    assert whole(name)
    assert len(Lab.attach(name).nodes) == NODES


def test_two_labs_at_once_do_not_meet(name: str, driver: str) -> None:
    """Labs of two names come up side by side; taking one away leaves the other as it is."""
    names = [name, f"{name}-b"]
    try:
        children = [spawn(*up(each, driver)) for each in names]
        ended = [(child.communicate(timeout=SECONDS)[0], child.returncode) for child in children]
        assert [code for _, code in ended] == [0, 0], ended
        assert call("down", "--name", names[1])[0] == 0
        assert left(names[1]) == []
        assert whole(names[0])
        probed, said = call(*up(names[0], driver))
        assert probed == 0, said
    finally:
        call("down", "--name", names[1])


@pytest.mark.parametrize("folder", ["XDG_STATE_HOME", "XDG_CACHE_HOME"])
def test_a_full_disk_is_named_and_leaves_nothing(name: str, tmp_path: Path, folder: str) -> None:
    """Where the lab's folder or its cache has no room, `up` says so, with a remedy; `down` removes what was written."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("this root may not mount")
    env = {folder: str(small)}
    try:
        code, said = call(*up(name, "local"), env=env)
        assert code == 1, said
        assert "No space left on device" in said
        assert "Remedy: " in said
        assert "Traceback" not in said
        code, said = call("down", "--name", name, env=env)
        assert code == 0, said
        assert left(name) == []
        # What is in the cache, half an environment say, is the next lab's.
        assert folder == "XDG_CACHE_HOME" or list(small.rglob("*")) == []
        assert not [process for process in processes.belonging(small) if process.status]
    finally:
        subprocess.run(["umount", str(small)], stdin=subprocess.DEVNULL, timeout=20, check=True)
