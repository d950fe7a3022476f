"""What a driver has to be: one that nothing of the lab knows is chosen, planned, made, asked, broken and removed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab import Lab, LabNotFound, lease
from lab.drivers import choice
from lab.errors import FaultUnavailable, LabUsageError
from lab.faults import active, add, guard, kind
from lab.faults.reach import carry_out
from lab.lifetime import keeper
from lab.lifetime.finding import find_labs
from lab.lifetime.removal import remove
from lab.topology import NodeGroup, Topology
from tests.unit.lab.command import run
from tests.unit.lab.memory import REASON, Memory, MemoryDriver, MemoryGone, MemoryNode

TOPOLOGY = Topology(nodes={"node": NodeGroup(count=2)}, gateways={})


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A driver in memory, registered for one test; no watchdog is started, which would see nothing of it."""
    monkeypatch.setattr(choice, "_TABLE", dict(choice._TABLE))
    monkeypatch.setattr(guard, "start", lambda name, folder: None)
    found = Memory()
    choice.register(found.kind)
    return found


@pytest.fixture
def lab(memory: Memory) -> Lab:
    """A lab of two nodes on it."""
    return Lab.up("third", driver="memory", topology=TOPOLOGY)


def test_a_lab_is_planned_and_made(memory: Memory) -> None:
    """The plan creates what is asked for and touches nothing; `up` makes it, and then there is nothing to do."""
    plan = Lab.plan("third", driver="memory", topology=TOPOLOGY)
    assert (plan.driver, [step.action for step in plan.steps]) == ("memory", ["create", "create"])
    assert memory.labs == {}
    lab = Lab.up("third", driver="memory", topology=TOPOLOGY)
    assert [(node.name, node.state) for node in lab.nodes] == [
        ("node1.lab.test", "running"),
        ("node2.lab.test", "running"),
    ]
    assert not Lab.plan("third", topology=TOPOLOGY)
    assert "Host node1" in lab.ssh_config.read_text()


def test_a_lab_is_found_again(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name alone, in the list of labs and by `lab status`, without saying whose it is."""
    assert Lab.attach("third").driver == "memory"
    assert [(found.name, found.driver, found.nodes) for found in find_labs()] == [("third", "memory", 2)]
    code, out, _ = run(["status", "--name", "third", "--json"], capsys)
    said = json.loads(out)
    assert (code, said["driver"], said["whole"]) == (0, "memory", True)
    lab.node("node2").stop()
    code, out, _ = run(["status", "--name", "third", "--json"], capsys)
    assert (code, json.loads(out)["whole"]) == (1, False)


def test_a_lab_grows_and_shrinks(lab: Lab) -> None:
    """`scale` adds nodes and takes them away, and a machine that is removed is announced to the lab."""
    lab.scale({"node": 3})
    assert len(lab.nodes) == 3
    lab.node("node3").stop()
    assert [step.action for step in Lab.plan("third").steps].count("start") == 1


def test_a_lab_is_removed_with_all_that_it_has(memory: Memory, lab: Lab) -> None:
    """Nothing stays in the driver, and the lab's folder is gone."""
    folder = lab.folder.path
    assert "machine node1.lab.test" in remove("third")
    assert memory.labs == {}
    assert not folder.exists()
    with pytest.raises(LabNotFound):
        Lab.attach("third")


def test_a_fault_that_the_machine_can_have_holds_and_heals(lab: Lab) -> None:
    """It takes the mechanism whose needs the machine has, and acts by the machine's own methods."""
    node = lab.node("node1")
    with add(lab, "pause", [node], owner="lab") as fault:
        assert (fault.mechanism, node.state) == ("cgroup freezer", "paused")
    assert node.state == "running"
    with add(lab, "out-of-memory", [node], owner="lab", megabytes=64):
        assert node.limits().memory == 64 << 20
    assert (node.limits().memory, active(lab)) == (0, [])


def test_a_fault_s_steps_are_run_by_the_machine_s_own_python(lab: Lab) -> None:
    """With the description of its SSH server, so that one with its own sshd_config is changed where it says."""
    node = lab.node("node1")
    assert isinstance(node, MemoryNode)
    with add(lab, "max-sessions", [node], owner="lab"):
        python, *_, steps, facts = node.told[-1]
    assert python == "/opt/kernel/bin/python"
    assert json.loads(steps)[1][:2] == ["@block", "/etc/ssh/sshd_config"]
    assert json.loads(facts) == {"port": 22, "config": "/etc/ssh/sshd_config", "sshd": ["/usr/sbin/sshd"]}


def test_a_fault_that_the_machine_lacks_is_refused_with_its_reason(lab: Lab) -> None:
    """The machine's own words are in the error, and nothing is left."""
    with pytest.raises(FaultUnavailable, match=r"the fault refuse can't be had on node1\.lab\.test") as caught:
        add(lab, "refuse", [lab.node("node1")])
    assert f"iptables REJECT of SYN: {REASON}" in caught.value.cause
    assert active(lab) == []


def test_the_catalogue_says_which_drivers_can_have_a_fault(memory: Memory) -> None:
    """By the capabilities that they declare."""
    assert kind("pause").drivers == ("docker", "local", "memory")
    assert kind("out-of-memory").drivers == ("docker", "memory")
    assert kind("refuse").drivers == ("docker",)


def test_limits_in_notes_of_earlier_days_are_undone(lab: Lab) -> None:
    """A note with the engine's own names for limits heals as before; no limit was -1 there."""
    node = lab.node("node1")
    carry_out(node, [("!limits", json.dumps({"Memory": 1 << 30, "MemorySwap": 1 << 31}))])
    assert (node.limits().memory, node.limits().swap) == (1 << 30, 1 << 31)
    carry_out(node, [("!limits", json.dumps({"PidsLimit": -1}))])
    assert node.limits().pids == 0


def test_a_lab_toml_may_name_it(memory: Memory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`driver` is any that is registered; another is refused with the line, all names, and the nearest."""
    file = tmp_path / "lab.toml"
    file.write_text("version = 1\ndriver = 'memory'\n[nodes.node]\ncount = 2\n[gateways]\n")
    assert run(["validate", str(file)], capsys)[0] == 0
    code, out, _ = run(["up", str(file), "--dry-run", "--json"], capsys)
    assert (code, json.loads(out)["driver"]) == (0, "memory")
    file.write_text("version = 1\ndriver = 'memry'\n")
    code, _, err = run(["validate", str(file)], capsys)
    assert code == 2
    assert "lab.toml:2: driver" in err
    assert "'memry' is none of docker, local, memory" in err
    assert "did you mean 'memory'?" in err


def test_the_command_line_has_its_name(memory: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    """`--driver` takes it, the help shows it, and another is refused with all names."""
    code, out, _ = run(["up", "--driver", "memory", "--dry-run", "--json"], capsys)
    assert json.loads(out)["driver"] == "memory"
    assert "[docker|local|memory]" in run(["up", "--help"], capsys)[1]
    code, _, err = run(["up", "--driver", "memry"], capsys)
    assert code == 2
    assert "'docker', 'local', 'memory'" in err


def test_the_doctor_examines_it(memory: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own checks count for it alone, and those of the machine for it as well."""
    code, out, _ = run(["doctor", "--driver", "memory", "--json"], capsys)
    found = {each["name"]: each for each in json.loads(out)["findings"]}
    assert (found["cells"]["state"], found["cells"]["drivers"]) == ("ok", ["memory"])
    assert found["disk"]["drivers"] == ["docker", "local", "memory"]
    assert "memory" not in found["engine"]["drivers"]
    memory.is_full = True
    code, out, err = run(["doctor", "--driver", "memory"], capsys)
    assert code == 6
    assert "MISS cells: all is taken\n     -> forget something" in out
    assert "a memory lab can't be made here" in err
    assert "cells" not in json.loads(run(["doctor", "--driver", "local", "--json"], capsys)[1])["missing"]


def test_what_its_engine_raises_is_an_error_with_an_id(
    memory: Memory, lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line it ends like any refusal of an engine's, and a keeper goes on."""

    def gone(*_: object, **__: object) -> bool:
        raise MemoryGone("its engine went away")

    monkeypatch.setattr(MemoryDriver, "exists", gone)
    code, _, err = run(["status", "--name", "third"], capsys)
    assert code == 1
    assert "its engine went away" in err
    assert "the container engine refused" in err
    monkeypatch.setattr(keeper, "remove", gone)
    assert keeper._remove("third", lease.Lease("ann", "h", 1, 1, 60.0, 0.0)) is False


def test_the_versions_have_it(memory: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    """`lab version` tells what it stands on, beside the engine, which is always there to be read."""
    found = json.loads(run(["version", "--json"], capsys)[1])
    assert (found["memory"], found["engine"]) == ("1", None)


CONFTEST = """
from lab.drivers import choice
from lab.drivers.contract import DriverKind

choice.register(DriverKind("memory", frozenset(), make=None, find=tuple))
"""


@pytest.mark.parametrize(
    ("driver", "code", "words"),
    [("memory", 0, "1 passed"), ("memry", 4, "--lab-driver: 'memry' is none of docker, local, memory")],
)
def test_pytest_may_name_it(tmp_path: Path, driver: str, code: int, words: str) -> None:
    """`--lab-driver` is any that a conftest.py has registered; another is a usage error with all names."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(
        "def test_it(pytestconfig): assert pytestconfig.getoption('lab_driver') == 'memory'"
    )
    # No configuration file: the checkout's would bring plugins and options of its own.
    words_of = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir=.", f"--lab-driver={driver}"]
    done = subprocess.run(words_of, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout + done.stderr


def test_a_driver_that_nobody_registered_is_refused() -> None:
    """The error has the names of those that there are."""
    with pytest.raises(LabUsageError, match="docker, local"):
        Lab.up("third", driver="memory", topology=TOPOLOGY)


def test_nothing_outside_of_drivers_reaches_into_one() -> None:
    """No file of the lab has a driver's own attributes or classes, nor the engine's client's private calls."""
    root = Path(choice.__file__).parents[1]
    words = re.compile(
        r"\._container\b|\._changed\b|\bmachine\.facts\b|hasattr\(machine|\._url\(|\._post_json\(|"
        r"\b(Local|Container)(Machine|Node|Gateway)\b"
    )
    found = {
        str(path): words.findall(path.read_text()) for path in root.rglob("*.py") if "drivers" not in path.parts[-3:-1]
    }
    assert {path: what for path, what in found.items() if what} == {}
