"""Durations and sizes: one reader for the command line, lab.toml, faults and plans."""

import math
from collections.abc import Callable

import click
import pytest

from lab import units
from lab.cli.options import DURATION
from lab.errors import LabUsageError
from lab.faults import model, resolve
from lab.topology import loads


def by_lab_toml(text: str) -> float | None:
    """Read a duration where lab.toml has one."""
    return loads(f"version = 1\nlease = {text!r}\n").lease


def by_plan(text: str) -> float:
    """Read a duration where a fault plan has one."""
    return resolve([{"fault": "pause", "nodes": "all", "for": text}], ["node1.lab.test"])[0].lasts


def by_command_line(text: str) -> float:
    """Read a duration where an option of the command line has one."""
    return DURATION.convert(text, None, None)


def by_fault(text: str) -> float:
    """Read a duration as `faults.add` does."""
    return model.seconds(text, "it")


READERS: tuple[Callable[[str], float | None], ...] = (units.seconds, by_lab_toml, by_plan, by_command_line, by_fault)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15s", 15.0), ("90500ms", 90.5), ("2m", 120.0), ("1.5h", 5400.0), ("7d", 604800.0), ("30", 30)],
)
@pytest.mark.parametrize("read", READERS)
def test_a_duration_is_the_same_wherever_it_is_written(
    read: Callable[[str], float | None], text: str, seconds: float
) -> None:
    """lab.toml, a plan, a fault's option and the command line know the same units."""
    assert read(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5 parsecs", "-1s", "1w", "s", "1,5s", "inf", "nan", "9" * 400])
@pytest.mark.parametrize("read", READERS)
def test_what_is_not_a_duration_is_refused_with_examples(read: Callable[[str], float | None], text: str) -> None:
    """Every reader's error has the same examples, seven days among them."""
    with pytest.raises((ValueError, LabUsageError, click.BadParameter)) as caught:
        read(text)
    assert f"write {units.DURATIONS}" in str(caught.value)
    assert "not a duration" in str(caught.value)


@pytest.mark.parametrize(
    "value", [True, None, [15], math.inf, -math.inf, math.nan, 10**400], ids=lambda value: repr(value)[:9]
)
def test_a_duration_is_a_number_or_a_text(value: object) -> None:
    """A truth value is not a number of seconds, nor is what has no end."""
    with pytest.raises(ValueError, match="not a duration"):
        units.seconds(value)


@pytest.mark.parametrize(
    ("value", "size"), [("512m", 512 << 20), ("2GiB", 2 << 30), ("1.5k", 1536), ("10", 10), (7, 7), ("3b", 3)]
)
def test_a_size_is_in_powers_of_1024(value: str | int, size: int) -> None:
    """Letters, `i` and `b` may follow; a bare number is bytes."""
    assert units.size(value) == size


@pytest.mark.parametrize(
    "value", [True, None, "", "inf", math.inf, math.nan, 10**400, "9" * 400 + "g"], ids=lambda value: repr(value)[:9]
)
def test_what_is_no_size_is_refused_with_examples(value: object) -> None:
    """What has no end is no size, either, and an error stays short whatever was written."""
    with pytest.raises(ValueError, match="is no size: write 512m") as caught:
        units.size(value)
    assert len(str(caught.value)) < 160
