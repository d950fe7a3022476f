"""What a fault plan comes to."""

from typing import Any

import pytest

from lab.errors import LabUsageError
from lab.faults import resolve

NODES = [f"node{number}.lab.test" for number in range(1, 6)]
PLAN: list[dict[str, Any]] = [
    {"at": "3s", "fault": ["refuse", "drop-new", "half-open"], "nodes": {"random": 2}, "for": 5},
    {"fault": "pause", "nodes": "random", "for": "500ms"},
    {"at": 1, "fault": "loss", "nodes": ["node1.lab.test", "node2"], "for": 2, "options": {"percent": 5}},
    {"at": 9, "fault": "refuse", "nodes": "all", "for": 1},
]


def test_a_plan_is_ordered_by_its_times() -> None:
    """Whatever the order of the list."""
    assert [step.at for step in resolve(PLAN, NODES)] == [0, 1, 3, 9]
    assert [len(step.nodes) for step in resolve(PLAN, NODES)] == [1, 2, 2, 5]


def test_a_seed_gives_the_same_plan_again() -> None:
    """Faults, nodes and the faults' own seeds; other seeds give others."""
    assert resolve(PLAN, NODES, 7) == resolve(PLAN, NODES, 7)
    assert len({tuple(map(repr, resolve(PLAN, NODES, seed))) for seed in range(20)}) == 20


def test_moving_an_entry_in_time_changes_no_choice() -> None:
    """Chances are taken in the order of the list."""
    moved = [{**PLAN[0], "at": 0.5}, *PLAN[1:]]
    before, after = (sorted(resolve(p, NODES, 3), key=lambda s: s.seed) for p in (PLAN, moved))
    assert [(s.fault, s.nodes, s.seed) for s in before] == [(s.fault, s.nodes, s.seed) for s in after]


def test_a_resolved_plan_is_a_plan() -> None:
    """It can be written down and run again without chance."""
    steps = resolve(PLAN, NODES, 1)
    again = resolve([step.as_dict() for step in steps], NODES, 99)
    assert [(s.at, s.fault, s.nodes, s.lasts) for s in again] == [(s.at, s.fault, s.nodes, s.lasts) for s in steps]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"fault": "refuse", "nodes": "all", "for": 1, "when": 2}, "'when'"),
        ({"fault": "refuse", "nodes": "all"}, "'for'"),
        ({"fault": "refus", "nodes": "all", "for": 1}, "refuse"),
        ({"fault": "refuse", "nodes": ["node9"], "for": 1}, "node9"),
        ({"fault": "refuse", "nodes": {"random": 9}, "for": 1}, "1 to 5"),
        ({"fault": "refuse", "nodes": [], "for": 1}, "nodes"),
        ({"fault": "refuse", "nodes": "all", "for": 0}, "time"),
        ({"fault": "refuse", "nodes": "all", "for": 1, "options": {"port": 70000}}, "port"),
    ],
)
def test_a_wrong_entry_is_named(entry: dict[str, Any], told: str) -> None:
    """By its number, and with what is wrong."""
    with pytest.raises(LabUsageError, match="entry 2 of the fault plan") as caught:
        resolve([PLAN[1], entry], NODES)
    assert told in str(caught.value)


ROLES = {"node1.lab.test": ("kernel",), "node2.lab.test": (), "big1.spark.test": ("kernel", "spark")}


def means(nodes: Any) -> tuple[str, ...]:
    return resolve([{"fault": "pause", "nodes": nodes, "for": 5}], list(ROLES), roles=ROLES)[0].nodes


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("all", ("node1", "node2", "big1")),
        (["@spark"], ("big1",)),
        ("@kernel", ("node1", "big1")),
        (["*.lab.test"], ("node1", "node2")),
        (["big*", "node1.lab.test"], ("node1", "big1")),
    ],
)
def test_a_plan_means_nodes_by_name_pattern_and_role(nodes: Any, names: tuple[str, ...]) -> None:
    """Each once, in the order of the lab."""
    assert means(nodes) == names


@pytest.mark.parametrize("nodes", ["@gpu", ["node1", "@gpu"], "huge*"])
def test_a_role_or_pattern_that_means_no_node_is_an_error(nodes: Any) -> None:
    """It says what there is."""
    with pytest.raises(LabUsageError, match="node1, node2, big1"):
        means(nodes)


def test_a_fault_without_an_end_lasts_as_long_as_the_plan() -> None:
    """The latest end of the others is the plan's; a plan without any end can't be run."""
    endless = {"at": 2, "fault": "pause", "nodes": "all", "for": None}
    steps = resolve([endless, {"at": "10s", "fault": "refuse", "nodes": "all", "for": 5}], NODES)
    assert [step.lasts for step in steps] == [13.0, 5.0]
    with pytest.raises(LabUsageError, match="no end"):
        resolve([endless], NODES)


def test_other_machines_are_meant_by_name_alone() -> None:
    """Neither `all`, nor chance, nor a pattern; their names do."""
    plan = [{"fault": "pause", "nodes": nodes, "for": 1} for nodes in ("all", {"random": 3}, "*", ["master", "node1"])]
    found = resolve(plan, list(ROLES), others=["master.lab.test"])
    assert [len(step.nodes) for step in found[:3]] == [3, 3, 3]
    assert found[3].nodes == ("node1", "master")
