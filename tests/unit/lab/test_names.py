import pytest

from lab import names
from lab.errors import LabUsageError


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
