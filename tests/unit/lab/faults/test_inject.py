"""Who holds what, what is tried in which order, and what is written down before."""

import os

import pytest

from lab.errors import FaultUnavailable, LabConflict, LabError, LabNotReady, LabUsageError
from lab.faults import active, add, guard, heal, reach
from lab.faults.notes import Notes, due
from tests.unit.lab.faults.machines import Reached, lab


def test_two_faults_on_one_node_heal_independently(reached: Reached) -> None:
    """Healing one undoes its own steps and leaves the other's note."""
    found = lab()
    first, second = add(found, "refuse", found.nodes[:1]), add(found, "half-open", found.nodes[:1])
    first.heal()
    assert [fault.id for fault in active(found)] == [second.id]
    undone = reached.said("node1.lab.test", "undo")
    assert undone == [("@unchain", "filter", f"LAB-unit-{first.id}"), ("@remove", f"/run/lab-faults/{first.id}")]


def test_what_one_holds_is_refused_to_another(reached: Reached) -> None:
    """Two login shells can't be; on another node they can."""
    found = lab()
    first = add(found, "csh", found.nodes[:1])
    with pytest.raises(LabConflict, match=first.id):
        add(found, "fish", found.nodes[:1])
    add(found, "fish", found.nodes[1:])
    assert [fault.name for fault in active(found)] == ["csh", "fish"]


def test_a_held_mechanism_leaves_the_next_one(reached: Reached) -> None:
    """A qdisc is one; the second delay goes by the proxy."""
    found = lab()
    assert add(found, "delay", found.nodes[:1]).mechanism == "tc netem delay"
    assert add(found, "delay", found.nodes[:1]).mechanism.startswith("userspace proxy")


def test_mechanisms_are_tried_in_order_and_undone(reached: Reached) -> None:
    """What the kernel can't do is undone before the next mechanism's turn."""
    reached.failing = {"tc"}
    found = lab()
    fault = add(found, "delay", found.nodes[:1])
    assert fault.mechanism == "userspace proxy behind nat REDIRECT"
    assert [how for _, how, _ in reached.told] == ["apply", "undo", "apply"]


def test_when_nothing_works_it_fails_with_every_reason(reached: Reached) -> None:
    """No note stays, and nodes where it had worked are undone."""
    reached.failing = {"tc", "@spawn"}
    reached.failing.add("@write")
    found = lab()
    with pytest.raises(FaultUnavailable) as caught:
        add(found, "delay", found.nodes)
    assert "tc netem delay: no" in caught.value.cause
    assert "userspace proxy" in caught.value.cause
    assert active(found) == []


def test_the_note_is_written_before_anything_is_done(reached: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed while it inflicts a fault leaves enough to undo it."""
    found = lab()
    seen = []

    def carry_out(machine: object, steps: object, **how: object) -> None:
        seen.extend(Notes(found.folder.path).read())

    monkeypatch.setattr(reach, "carry_out", carry_out)
    fault = add(found, "refuse", found.nodes[:1])
    assert seen[0].id == fault.id
    assert seen[0].undo["node1.lab.test"][0] == ["@unchain", "filter", f"LAB-unit-{fault.id}"]


@pytest.mark.parametrize("state", ["paused", "stopped"])
def test_a_machine_that_is_down_can_t_be_given_a_fault(reached: Reached, state: str) -> None:
    """The error says so, nothing is noted, and what it was to have done elsewhere is undone; a reboot needs no answer."""
    found = lab()
    found.nodes[1].state = state  # type: ignore[misc, assignment]
    with pytest.raises(LabNotReady, match=f"node2.lab.test.*it is {state}"):
        add(found, "refuse", found.nodes)
    assert active(found) == []
    assert reached.said("node2.lab.test", "undo") == []
    add(found, "reboot", found.nodes[1:])


def test_what_failed_first_is_the_error_that_is_told(reached: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be undone then either is left to the watchdog, which finds it half inflicted, whoever owns it."""
    found = lab()

    def carry_out(machine: object, steps: object, *, undoing: bool = False, elevated: bool = False) -> None:
        raise LabError("it can't be undone" if undoing else "it can't be done")

    monkeypatch.setattr(reach, "carry_out", carry_out)
    with pytest.raises(LabError, match="it can't be done"):
        add(found, "refuse", found.nodes[:1], owner="lab")
    [note] = Notes(found.folder.path).read()
    assert due(note, 0, True) == "half inflicted"


def test_without_a_watchdog_nothing_is_inflicted(reached: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would heal it if its adder died."""
    found = lab()

    def start(name: str, folder: object) -> None:
        raise LabError("no watchdog")

    monkeypatch.setattr(guard, "start", start)
    with pytest.raises(LabError, match="no watchdog"):
        add(found, "refuse", found.nodes[:1])
    assert (reached.told, Notes(found.folder.path).read()) == ([], [])


def test_all_are_healed_the_latest_first(reached: Reached) -> None:
    """What was put in front comes away first."""
    found = lab()
    first, second = (add(found, name, found.nodes[:1]) for name in ("refuse", "pause"))
    assert set(heal(found)) == {first.id, second.id}
    assert reached.said("node1.lab.test", "undo")[0] == ("!unpause",)


def test_owners_are_processes_or_nobody(reached: Reached) -> None:
    """The default is the caller; `lab` is nobody; a pid that isn't there is refused."""
    found = lab()
    assert f"/{os.getpid()}/" in add(found, "refuse", found.nodes[:1]).owner
    assert add(found, "drop-new", found.nodes[:1], owner="lab").owner == "lab"
    assert f"/{os.getppid()}/" in add(found, "reset", found.nodes[:1], owner=str(os.getppid())).owner
    for wrong in ("4194304999", "somebody"):
        with pytest.raises(LabUsageError, match="owner"):
            add(found, "half-open", found.nodes[:1], owner=wrong)


@pytest.mark.parametrize("duration", [0, -1, "soon", 10**9])
def test_durations_are_bounded(reached: Reached, duration: float | str) -> None:
    """What lasts no time or for ever is no fault."""
    with pytest.raises(LabUsageError, match="duration"):
        add(lab(), "refuse", lab("other").nodes[:1], duration=duration)


def test_a_momentary_fault_leaves_nothing_to_heal(reached: Reached) -> None:
    """It is done, told and over."""
    found = lab()
    fault = add(found, "sessions-killed", found.nodes[:1])
    assert not fault.active
    assert active(found) == []


def test_a_fault_needs_nodes_each_once(reached: Reached) -> None:
    """None, or one twice, is refused."""
    found = lab()
    for nodes in ([], [found.nodes[0], found.nodes[0]]):
        with pytest.raises(LabUsageError, match="node"):
            add(found, "refuse", nodes)


def test_nobody_logs_in_to_a_gateway(reached: Reached) -> None:
    """Faults of SSH and logins are refused there, not silently without effect; others can be."""
    found = lab()
    for name in ("key-removed", "noisy-rc", "out-of-fds"):
        with pytest.raises(FaultUnavailable, match="nobody logs in"):
            add(found, name, found.gateways)
    assert add(found, "partition", found.gateways).mechanism == "iptables DROP"
