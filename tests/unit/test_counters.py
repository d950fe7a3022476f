"""What is counted of a cluster's hosts, in numbers that only grow."""

from __future__ import annotations

import pytest

from eg_distributed import counters
from eg_distributed.counters import OTHER_HOSTS, Counters, Durations


def test_durations_are_counted_by_bounds() -> None:
    """Each counts for all bounds that it does not exceed, and the last number is that of all."""
    durations = Durations((0.1, 1.0, 10.0))
    for seconds in (0.1, 0.2, 1.0, 10.5):
        durations.note(seconds)
    assert durations.cumulative() == [1, 3, 3, 4]
    assert durations.seconds == pytest.approx(11.8)


def test_hosts_that_clients_name_make_no_end_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a bound on, further hosts are counted together, and those that were known stay what they are."""
    monkeypatch.setattr(counters, "MOST_HOSTS", 2)
    counted = Counters()
    first, _ = counted.of_host("a"), counted.of_host("b")
    third = counted.of_host("c")
    assert third.label == OTHER_HOSTS
    assert counted.of_host("d") is third
    assert counted.of_host("a") is first
    assert [host.label for host in counted.hosts()] == ["a", "b", OTHER_HOSTS]
