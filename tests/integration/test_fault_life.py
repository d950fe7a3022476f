"""What all faults have in common: they heal by themselves, whoever died, they compose, and they leave others' things alone."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab import Lab, LabConflict, LabNotFound, Node, events
from lab.errors import FaultUnavailable, LabNotReady
from lab.faults import Fault, active, add, heal, run_plan
from tests.integration.fault_lab import broken, greets, knock, login, node, other
from tests.until import block_until

__all__ = ["broken", "node", "other"]

pytestmark = pytest.mark.timeout(120)

ADDER = """
import sys, time
from lab import Lab, faults
lab = Lab.attach({lab!r})
print(faults.add(lab, {fault!r}, [lab.node("node1")], **{options!r}).id, flush=True)
time.sleep(300)
"""


@contextmanager
def adder(lab: Lab, fault: str, **options: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Let another process add a fault; its id and the process, which lives on until it is killed."""
    code = ADDER.format(lab=lab.name, fault=fault, options=options)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def test_a_fault_heals_when_its_duration_is_over(broken: Lab, node: Node) -> None:
    """Though the process that added it was killed at once; and the lab's events tell of both."""
    began = time.time()
    with adder(broken, "refuse", duration=5, owner="lab") as (identity, process):
        process.send_signal(signal.SIGKILL)
        assert knock(node) == "refused"
        assert [fault.id for fault in active(broken)] == [identity]
        block_until("healed", lambda: not active(broken))
    assert time.time() - began >= 5
    assert greets(node)
    told = [(e["kind"], e.get("reason")) for e in events.read(broken.name, began) if e.get("id") == identity]
    assert told == [("fault.added", None), ("fault.healed", "duration over")]


def test_a_fault_heals_when_its_owner_dies(broken: Lab, node: Node) -> None:
    """It lasts as long as the process that added it, killed with SIGKILL, and not much longer."""
    with adder(broken, "pause") as (identity, process):
        assert knock(node) == "silence"
        assert [fault.id for fault in active(broken)] == [identity]
        process.send_signal(signal.SIGKILL)
        block_until("healed", lambda: not active(broken), 10)
    assert greets(node)


HANGING = """
import time
from lab import Lab, faults
from lab.faults import reach
real = reach.carry_out
def carry_out(*args, **options):
    real(*args, **options)
    print("done", flush=True)
    time.sleep(300)
reach.carry_out = carry_out
lab = Lab.attach({lab!r})
faults.add(lab, "refuse", [lab.node("node1")], owner="lab")
"""


def test_a_half_inflicted_fault_heals(broken: Lab, node: Node) -> None:
    """Its adder is killed with SIGKILL amid the adding: nobody owns it, it has no duration, and the watchdog heals it."""
    began = time.time()
    code = HANGING.format(lab=broken.name)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
            assert knock(node) == "refused"
        finally:
            process.kill()
    greets(node)
    block_until("healed", lambda: not active(broken))
    told = [(e["kind"], e.get("reason")) for e in events.read(broken.name, began) if e["kind"].startswith("fault.")]
    assert told == [("fault.healed", "half inflicted")]


@pytest.mark.parametrize("down", ["pause", "kill"])
def test_a_machine_that_is_down_gets_no_fault(broken: Lab, node: Node, down: str) -> None:
    """The error says what the machine is, and no fault is listed or has to be healed."""
    with add(broken, down, [node], duration=60) as fault:
        with pytest.raises(LabNotReady, match=r"it is (paused|stopped)"):
            add(broken, "refuse", [node], owner="lab")
        assert [found.id for found in active(broken)] == [fault.id]


def test_another_process_sees_and_heals_it(broken: Lab, node: Node) -> None:
    """What one process adds, another lists with its options, mechanism and owner, and heals by its id."""
    with adder(broken, "refuse", port=22) as (identity, process):
        (fault,) = active(broken)
        assert (fault.id, fault.name, fault.nodes, fault.options["port"]) == (identity, "refuse", (node.name,), 22)
        assert fault.mechanism == "iptables REJECT of SYN"
        assert f"/{process.pid}/" in fault.owner
        assert heal(broken, identity) == [identity]
        assert greets(node)
        with pytest.raises(LabNotFound):
            heal(broken, identity)


def test_nodes_tell_of_faults_that_this_side_forgot(broken: Lab, node: Node) -> None:
    """When the lab's folder has lost its notes, the nodes' markers are enough to see and to heal."""
    fault = add(broken, "refuse", [node], duration=60)
    shutil.rmtree(broken.folder.path / "faults")
    assert [found.id for found in active(broken)] == [fault.id]
    assert heal(broken) == [fault.id]
    assert greets(node)


def test_two_faults_on_one_node_heal_independently(broken: Lab, node: Node) -> None:
    """Lines in the same files, settings of the same sshd: each takes its own away and leaves the other's."""
    first = add(broken, "noisy-rc", [node], duration=60)
    second = add(broken, "umask", [node], duration=60, value="077")
    third, fourth = (add(broken, name, [node], duration=60) for name in ("noisy-banner", "force-command"))
    assert login(broken, node, "umask").startswith("noisy")
    first.heal()
    third.heal()
    assert login(broken, node, "umask; echo $SSH_ORIGINAL_COMMAND").startswith("0077\numask")
    fourth.heal()
    second.heal()
    assert login(broken, node, "umask; echo $SSH_ORIGINAL_COMMAND") == "0022"


def test_a_fault_outlives_the_crash_of_its_node(broken: Lab, node: Node) -> None:
    """A fault that is on the node's disk is there after a reboot, and heals; one that was in memory alone heals as well."""
    on_disk, in_memory = add(broken, "force-command", [node], duration=60), add(broken, "refuse", [node], duration=60)
    add(broken, "reboot", [node])
    assert login(broken, node, 'echo "$SSH_ORIGINAL_COMMAND"') != ""
    on_disk.heal()
    in_memory.heal()
    assert login(broken, node, 'echo "$SSH_ORIGINAL_COMMAND"') == ""


def test_login_faults_outlive_a_restart(broken: Lab, node: Node) -> None:
    """What a node is made with is applied at its start, and not over a fault."""
    with add(broken, "csh", [node], duration=60), add(broken, "python-missing", [node], duration=60):
        add(broken, "reboot", [node])
        assert login(broken, node, "echo shell:$version").startswith("shell:tcsh")
        assert "not found" in login(broken, node, "which python3").lower()
    assert login(broken, node, "echo shell:$version; command -v python3").split() == ["shell:", "/usr/bin/python3"]


def test_what_only_one_can_hold_is_refused_to_a_second(broken: Lab, node: Node) -> None:
    """The error names the fault that holds it, and nothing is changed."""
    with add(broken, "csh", [node], duration=60) as first:
        with pytest.raises(LabConflict, match=first.id):
            add(broken, "fish", [node], duration=60)
        assert [fault.id for fault in active(broken)] == [first.id]


def test_what_cannot_be_had_is_an_error_on_all_nodes(broken: Lab, node: Node, other: Node) -> None:
    """The error has each mechanism's reason, and no node keeps anything of it."""
    with pytest.raises(FaultUnavailable, match="0 processes match"):
        add(broken, "clock-jump", [node, other], process="no such process anywhere")
    assert active(broken) == []
    for each in (node, other):
        assert each.exec(["find", "/run/lab-faults", "-mindepth", "1"], user="root").stdout == ""


def test_rules_of_others_stay(broken: Lab, node: Node) -> None:
    """Healing takes the fault's own chain away and not a rule more."""
    foreign = ["-p", "tcp", "--dport", "9", "-j", "DROP"]
    node.exec(["iptables", "-A", "INPUT", *foreign], user="root").check()
    try:
        before = node.exec(["iptables-save", "-t", "filter"], user="root").stdout.splitlines()[2:-2]
        with add(broken, "partition", [node], duration=60), add(broken, "loss", [node], duration=60):
            assert knock(node) == "timeout"
        assert node.exec(["iptables-save", "-t", "filter"], user="root").stdout.splitlines()[2:-2] == before
    finally:
        node.exec(["iptables", "-D", "INPUT", *foreign], user="root").check()


def test_the_watchdog_leaves_when_nothing_is_left(broken: Lab, node: Node) -> None:
    """No process stays behind once the last fault is healed."""
    add(broken, "refuse", [node], duration=60).heal()
    block_until("the watchdog is gone", lambda: not watchdogs(broken), 10)


def watchdogs(lab: Lab) -> list[str]:
    """Return the pids of the lab's watchdogs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"lab/faults/watchdog.py") for word in words) and lab.name.encode() in words:
                found.append(entry.name)
    return found


def test_a_plan_runs_along_its_timeline(broken: Lab, node: Node, other: Node) -> None:
    """Its faults come at their times, on the nodes that the seed chooses, and all have healed when it returns."""
    began = time.time()
    plan = [
        {"at": "1.5s", "fault": "refuse", "nodes": "random", "for": 1},
        {
            "at": 0,
            "fault": ["drop-new", "half-open"],
            "nodes": ["node1", "node2"],
            "for": "2s",
            "options": {"port": 22},
        },
    ]
    first, second = run_plan(broken, plan, seed=7)
    assert (first.name in {"drop-new", "half-open"}, second.name) == (True, "refuse")
    assert second.added - first.added >= 1
    assert active(broken) == []
    assert greets(node)
    assert greets(other)
    healed = [event for event in events.read(broken.name, began) if event["kind"] == "fault.healed"]
    assert {event["id"] for event in healed} == {first.id, second.id}


def test_a_plan_that_takes_too_long_is_healed(broken: Lab, node: Node) -> None:
    """At its deadline it ends with an error, and nothing of it is left."""
    with pytest.raises(LabNotReady, match="plan"):
        run_plan(broken, [{"fault": "refuse", "nodes": ["node1"], "for": 60}], deadline=1)
    assert active(broken) == []
    assert greets(node)


def test_a_fault_is_a_context(broken: Lab, node: Node) -> None:
    """Left in whichever way, it is healed."""
    made: list[Fault] = []

    def fails() -> None:
        with add(broken, "refuse", [node]) as fault:
            made.append(fault)
            assert knock(node) == "refused"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not made[0].active
    assert greets(node)
