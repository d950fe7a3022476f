"""Which rules network faults are."""

import pytest

from lab.errors import LabUsageError
from lab.faults import add, kind
from lab.faults.model import Moves
from tests.unit.lab.faults.machines import Reached, context, lab


def moves(fault: str, **options: object) -> Moves:
    """What a fault's first mechanism would do."""
    found = kind(fault)
    return found.mechanisms[0].moves(context(**found.parse(options)))


def test_all_rules_are_in_a_chain_of_the_faults_own() -> None:
    """What is added elsewhere is a jump to it, and the undo names the chain and nothing else."""
    for name in ("partition", "drop-new", "refuse", "reset", "half-open"):
        found = moves(name)
        for step in found.apply:
            assert step[:5] == ("iptables", "-w", "5", "-t", "filter")
            if step[5] == "-I":
                assert step[-2] == "-j"
                assert step[-1].startswith("LAB-unit-abcd1234")
            else:
                assert step[6].startswith("LAB-unit-abcd1234")
        assert {step[0] for step in found.undo} == {"@unchain"}


def test_peers_are_the_only_ones_met() -> None:
    """One rule for each, by its address."""
    rules = [step for step in moves("refuse", peers="node2,gateway").apply if step[5] == "-A"]
    assert [rule[7:9] for rule in rules] == [("-s", "10.0.0.12"), ("-s", "10.0.0.2")]


def test_a_port_fault_is_at_the_machine_s_own_port(reached: Reached) -> None:
    """A node's is sshd's, a gateway's is where it serves; a port that is given counts on both."""
    found = lab()
    for machine, given, port in (
        (found.nodes[0], 0, "22"),
        (found.gateways[0], 0, "8888"),
        (found.gateways[0], 99, "99"),
    ):
        add(found, "refuse", [machine], port=given)
        rule = next(step for step in reversed(reached.said(machine.name, "apply")) if "--ctorigdstport" in step)
        assert rule[rule.index("--ctorigdstport") + 1] == port


def test_groups_part_who_is_not_together() -> None:
    """Who is in no group is in one with the others that are in none."""
    drops = [step[8] for step in moves("partition", groups="node1|node2").apply if step[-1] == "DROP"]
    assert drops == ["10.0.0.2", "10.0.0.12"] * 2
    drops = [step[8] for step in moves("partition", groups="node1,gateway|node2").apply if step[-1] == "DROP"]
    assert drops == ["10.0.0.12"] * 2


@pytest.mark.parametrize("groups", ["node1|node9", "node1|node1,node2"])
def test_groups_name_each_machine_once(groups: str) -> None:
    """A name that is unknown or twice is refused."""
    with pytest.raises(LabUsageError, match="groups"):
        moves("partition", groups=groups)


def test_a_qdisc_is_added_never_replaced() -> None:
    """What is there already isn't ours."""
    for name, options in (("delay", {}), ("bandwidth", {}), ("loss", {"direction": "out"})):
        assert moves(name, **options).apply[0][:3] == ("tc", "qdisc", "add")
