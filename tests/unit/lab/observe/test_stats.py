"""How even kernels are spread: counts from what was seen, and the numbers made of them."""

import pytest

from lab.observe.leaks import View
from lab.observe.snapshots import Process, Snapshot
from lab.observe.stats import chi_square, chi_square_tail, of_view


def node(*kernels: str) -> Snapshot:
    return Snapshot(tuple(Process(number, "lab", f"python {key}", key) for number, key in enumerate(kernels)))


def test_kernels_are_counted_by_node() -> None:
    """Nodes without kernels count too, several processes of one kernel count once, and others not at all."""
    seen = View(
        {"node1": node("a", "a", "b", ""), "node2": node("c"), "node3": node()},
        {"gateway": {"a": "python", "b": "python", "c": "python"}},
    )
    found = of_view(seen, ["node1", "node2", "node3"])
    assert found.nodes == {"node1": 2, "node2": 1, "node3": 0}
    assert found.gateways == {"gateway": 3}
    assert found.placed == {"a": "node1", "b": "node1", "c": "node2"}
    assert (found.spread, found.lost, found.orphans) == (2, [], [])
    assert found.chi_square == pytest.approx(2.0)
    assert found.as_dict()["total"] == 3
    assert "spread 2" in "\n".join(found.lines())


def test_what_gateways_and_nodes_disagree_on_is_told() -> None:
    """A kernel that no node runs is lost, one that no gateway lists is an orphan, and a node that is down is unseen."""
    seen = View({"node1": node("stray")}, {"gateway": {"gone": "python"}}, {"node2": "is stopped"})
    found = of_view(seen, ["node1", "node2"])
    assert found.nodes == {"node1": 1}
    assert (found.lost, found.orphans, found.unseen) == (["gone"], ["stray"], {"node2": "is stopped"})
    text = "\n".join(found.lines())
    assert "orphan: stray runs on node1" in text
    assert "unseen: node2 is stopped" in text


@pytest.mark.parametrize(
    ("statistic", "freedom"), [(3.841, 1), (5.991, 2), (7.815, 3), (9.488, 4), (18.307, 10), (19.675, 11)]
)
def test_the_five_percent_points_of_the_tables(statistic: float, freedom: int) -> None:
    """The tail of the chi-square distribution is that of every table."""
    assert chi_square_tail(statistic, freedom) == pytest.approx(0.05, abs=1e-4)


def test_nothing_is_even() -> None:
    """No kernels, or one node, are perfectly even."""
    assert chi_square([]) == chi_square([0, 0]) == 0
    assert chi_square_tail(0, 3) == chi_square_tail(5, 0) == 1
    assert of_view(View({}, {}), []).spread == 0
