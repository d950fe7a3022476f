import pytest

from lab import names
from lab.errors import LabUsageError
from lab.faults import resolve
from lab.topology import NodeGroup, naming
from lab.topology.specs import NodeSpec


@pytest.mark.parametrize("name", ["lab", "it-1", "a", "x" * 32])
def test_ordinary_names_pass(name: str) -> None:
    """Lower-case letters, digits and inner hyphens make a name."""
    assert names.check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "Lab", "a b", "a;rm", "../x", "x" * 33, "ä", "a\n"])
def test_names_that_can_not_be_host_names_are_refused(name: str) -> None:
    """Whatever could not stand in a host name, a path or a label is refused with the usage exit code."""
    with pytest.raises(LabUsageError) as caught:
        names.check_name(name)
    assert caught.value.exit_code == 2


def test_short_and_full_names_are_two_spellings_of_one_machine() -> None:
    """Both spellings lead to the same full and the same short name."""
    assert names.fqdn("node1") == names.fqdn("node1.lab.test") == "node1.lab.test"
    assert names.short_name("node1") == names.short_name("node1.lab.test") == "node1"


def test_nodes_sort_by_number_and_extras_come_last() -> None:
    """node10 comes after node2, and a node outside the row after both."""
    mixed = ["odd.lab.test", "node10.lab.test", "node2.lab.test"]
    assert sorted(mixed, key=names.sort_key) == ["node2.lab.test", "node10.lab.test", "odd.lab.test"]


@pytest.mark.parametrize(("name", "number"), [("node7.lab.test", 7), ("node0", None), ("node", None), ("odd", None)])
def test_only_the_numbered_row_has_numbers(name: str, number: int | None) -> None:
    """A number belongs to node1, node2 … alone."""
    assert names.node_number(name) == number


def test_two_labs_never_share_a_resource_name() -> None:
    """Containers and networks carry the lab's name."""
    assert names.resource_name("a", "node1") == "eglab-a-node1"
    assert names.resource_name("a") != names.resource_name("b")


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("node1", True),
        ("node1.x.test", True),
        ("node*", True),
        ("node?", True),
        ("*.x.test", True),
        ("@spark", True),
        ("@yarn", False),
        ("@", False),
        ("node", False),
        ("node1.lab.test", False),
        ("Node1", False),
    ],
)
def test_a_pattern_means_the_same_node_wherever_it_is_written(pattern: str, meant: bool) -> None:
    """A gateway's hosts in lab.toml, a spec and a fault plan choose alike."""
    assert names.is_meant(pattern, "node1.x.test", ("spark",)) is meant
    assert naming.matches(pattern, "node1", NodeGroup(domain="x.test", roles=("spark",))) is meant
    assert NodeSpec("node1.x.test", roles=("spark",)).matches(pattern) is meant
    plan = [{"fault": "pause", "nodes": [pattern], "for": 1}]
    try:
        chosen = resolve(plan, ["node1.x.test"], roles={"node1.x.test": ("spark",)})[0].nodes
    except LabUsageError:
        chosen = ()
    assert (chosen == ("node1",)) is meant


def test_a_misspelt_word_is_near_the_right_one() -> None:
    """Upper and lower case are one; the nearest comes first, and a strange word is near to none."""
    assert names.nearest("maxsesions", ["MaxSessions", "MaxStartups"]) == ["MaxSessions"]
    assert names.nearest("nod1", ["node2", "node1"], 2) == ["node1", "node2"]
    assert names.nearest("zzz", ["node1"]) == []
    assert names.nearest("a", []) == []
