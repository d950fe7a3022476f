"""What options take, and what the catalogue says of itself."""

from typing import Any

import pytest

from lab.errors import LabUsageError
from lab.faults import catalogue, kind
from lab.faults.model import Option, seconds
from tests.unit.lab.faults.machines import context


@pytest.mark.parametrize(
    ("fault", "option", "value", "told"),
    [
        ("loss", "percent", 0, "from 0.001 to 100"),
        ("loss", "percent", "101", "from 0.001 to 100"),
        ("loss", "percent", "much", "from 0.001 to 100"),
        ("refuse", "port", 70000, "from 0 to 65535"),
        ("refuse", "port", 22.5, "whole number from 0 to 65535"),
        ("loss", "percent", "nan", "from 0.001 to 100"),
        ("loss", "percent", float("inf"), "from 0.001 to 100"),
        ("refuse", "port", "inf", "from 0 to 65535"),
        ("refuse", "port", "nan", "from 0 to 65535"),
        ("refuse", "port", 10**400, "from 0 to 65535"),
        ("slow-shell", "seconds", float("nan"), "200ms, 5s, 2m"),
        ("slow-shell", "seconds", float("inf"), "200ms, 5s, 2m"),
        ("slow-shell", "seconds", "5 parsecs", "200ms, 5s, 2m"),
        ("partition", "direction", "up", "both, in, out"),
        ("umask", "value", "777", "077, 000"),
        ("disk-full", "path", "/tmp\nx", "one line"),
    ],
)
def test_a_bad_value_names_the_option_and_the_range(fault: str, option: str, value: Any, told: str) -> None:
    """Whoever typed it reads which option it was and what can be."""
    with pytest.raises(LabUsageError, match=option) as caught:
        kind(fault).parse({option: value})
    assert told in str(caught.value)


def test_an_unknown_option_is_answered_with_those_that_there_are() -> None:
    """The error lists the fault's options."""
    with pytest.raises(LabUsageError, match="port, peers"):
        kind("refuse").parse({"prot": 22})


def test_an_unknown_fault_is_answered_with_the_nearest() -> None:
    """A typing error gets the name that was meant."""
    with pytest.raises(LabUsageError, match="half-open"):
        kind("halfopen")


@pytest.mark.parametrize(
    ("text", "value"), [("200ms", 0.2), ("5s", 5), ("2m", 120), ("1h", 3600), ("1.5", 1.5), (3, 3)]
)
def test_durations_are_numbers_or_have_a_unit(text: str | float, value: float) -> None:
    """Seconds are meant where no unit is."""
    assert seconds(text, "it") == pytest.approx(value)


def test_texts_become_what_the_option_is() -> None:
    """The command line has only texts."""
    parsed = kind("refuse").parse({"port": "2222", "peers": "node1, node2"})
    assert parsed == {"port": 2222, "peers": ("node1", "node2")}


def test_names_of_peers_become_addresses() -> None:
    """Short and full names and addresses; an unknown name is refused with those that there are."""
    found = context(peers=("node2", "gateway", "10.9.9.9", "10.8.0.0/16"))
    assert found.addresses() == ["10.0.0.12", "10.0.0.2", "10.9.9.9", "10.8.0.0/16"]
    with pytest.raises(LabUsageError, match="gateway, node1, node2"):
        context(peers=("node7",)).addresses()


def test_chains_are_short_enough_for_iptables() -> None:
    """The kernel takes 28 characters; a lab's name may have 32."""
    import dataclasses

    assert len(f"{dataclasses.replace(context(), lab='l' * 32).chain}o") <= 28


def test_the_catalogue_is_whole() -> None:
    """Every entry has a unique name, a summary, an effect, a mechanism, and defaults that its own options take."""
    kinds = catalogue()
    assert len({each.name for each in kinds}) == len(kinds) >= 50
    for each in kinds:
        assert each.summary.endswith(".")
        assert each.shows
        assert each.mechanisms
        assert each.drivers
        given = {option.name: option.default for option in each.options if option.default != ""}
        assert each.parse(given).keys() == {option.name for option in each.options}
        assert each.as_dict()["mechanisms"]


def test_an_option_without_a_range_says_none() -> None:
    """Its error has no empty range in it."""
    with pytest.raises(LabUsageError, match=r"give a number$"):
        Option("x", "number", 0, "").parse("y", "fault")
