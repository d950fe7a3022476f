"""How fast a kernel prints is judged by the dates of its messages."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from eg_distributed.jupyter_server.printed import Printed, made_at


@pytest.mark.parametrize("date", ["{:%Y-%m-%dT%H:%M:%S.%fZ}", "{:%Y-%m-%dT%H:%M:%S.%f+00:00}"])
def test_when_a_message_was_made(date: str) -> None:
    """By its header's date, of either protocol; one without a date, a zone or sense does not say."""
    made = datetime.now(timezone.utc)
    assert made_at({"date": date.format(made)}) == made.timestamp()
    assert made_at({"date": made}) == made.timestamp()
    nonsense = ("", "yesterday", 7, None, "2026-11-28T12:00:00", datetime(1, 1, 1))
    assert [made_at({"date": each}) for each in nonsense] == [None] * 6
    assert made_at({}) is None


def test_what_comes_at_once_was_not_printed_at_once() -> None:
    """A hundred messages a second are below a limit of a thousand, however fast they come, and above one of fifty."""
    printed = Printed()
    for number in range(1000):
        printed.note(number / 100, 10, 3.0)
    assert printed.is_below(1000, 1e6, 3.0)
    assert not printed.is_below(50, 1e6, 3.0)
    assert not printed.is_below(1000, 500, 3.0)
    assert printed.is_below(0, 0, 3.0)


def test_a_flood_is_one_however_late_it_comes() -> None:
    """By messages or bytes; without limits by what can be remembered. It is over when the kernel is slow again."""
    printed = Printed()
    for number in range(30_000):
        printed.note(number / 30_000, 4000, 3.0)
    assert not printed.is_below(1000, 0, 3.0)
    assert not printed.is_below(0, 1e6, 3.0)
    printed.note(10.0, 4000, 3.0)
    assert printed.is_below(1000, 1e6, 3.0)
