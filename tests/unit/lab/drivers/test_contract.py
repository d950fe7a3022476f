"""What a driver has to be: one that nothing of the lab knows is chosen, planned, made, asked, broken and removed."""

import json
import re
from pathlib import Path

import pytest

from lab import Lab, LabNotFound
from lab.drivers import choice
from lab.errors import FaultUnavailable, LabUsageError
from lab.faults import active, add, guard, kind
from lab.faults.reach import carry_out
from lab.lifetime.finding import find_labs
from lab.lifetime.removal import remove
from lab.topology import NodeGroup, Topology
from tests.unit.lab.command import run
from tests.unit.lab.memory import REASON, Memory, MemoryNode

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
