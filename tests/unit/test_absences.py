"""Time without contact that counts against a host, and time that does not."""

from __future__ import annotations

from eg_distributed.absences import Absences


def look(absences: Absences, seconds: range, **reached: bool) -> None:
    """Look once for each of *seconds*."""
    for now in seconds:
        absences.look(float(now), reached, online=any(reached.values()))


def test_a_host_that_is_away_alone_is_counted() -> None:
    """While another host is reached each second counts, and contact forgets them all."""
    absences = Absences()
    look(absences, range(11), node1=False, node2=True)
    assert (absences.seconds("node1"), absences.seconds("node2")) == (10.0, 0.0)
    look(absences, range(11, 12), node1=True, node2=True)
    assert absences.seconds("node1") == 0.0


def test_time_in_which_no_host_was_reached_does_not_count() -> None:
    """An hour without the gateway's own network leaves every host's absence where it was."""
    absences = Absences()
    look(absences, range(11), node1=False, node2=True)
    look(absences, range(11, 3600), node1=False, node2=False)
    assert (absences.seconds("node1"), absences.seconds("node2")) == (10.0, 0.0)
    look(absences, range(3600, 3605), node1=False, node2=True)
    assert absences.seconds("node1") == 15.0


def test_time_in_which_the_gateway_stood_still_does_not_count() -> None:
    """A gateway that was suspended has not looked for its hosts meanwhile."""
    absences = Absences()
    for now in (0.0, 1.0, 5000.0):
        absences.look(now, {"node1": False, "node2": True}, online=True)
    assert absences.seconds("node1") <= 6.0
