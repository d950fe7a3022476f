"""What samples come to, and when the guard complains."""

from __future__ import annotations

import pytest

from benchmarks.peers.figures import (
    GUARDED,
    LOCAL,
    Found,
    Summary,
    guard,
    percentile,
    ratio,
    ratios,
    round_trips,
    summary,
)


def found(label: str, **samples: list[list[float]]) -> Found:
    """Return a contender that was measured so."""
    return Found(label, samples=dict(samples))


def kept(median: float, low: float, high: float) -> dict[str, dict[str, Summary]]:
    """Return what was kept of one figure of ours."""
    return {"ours": {"start": Summary(median, low, high)}}


def test_a_summary_is_the_median_of_the_repeats_with_their_spread() -> None:
    """One slow start of a repeat moves neither the median nor the spread; a slow repeat moves the spread alone."""
    assert summary([[1.0, 2.0, 90.0], [3.0], [9.0, 9.0]]) == Summary(3.0, 2.0, 9.0)
    assert summary([[1.0, 2.0, 90.0], [3.0], [9.0, 9.0]]).spread == 7.0  # type: ignore[union-attr]


@pytest.mark.parametrize("nothing", [None, [], [[]]])
def test_nothing_measured_has_no_summary(nothing: list[list[float]] | None) -> None:
    """A figure that nobody saw is no figure, not zero."""
    assert summary(nothing) is None


def test_a_ratio_is_made_repeat_by_repeat() -> None:
    """A repeat in which the machine was twice as slow for both has the same ratio."""
    assert ratio([[10.0], [20.0]], [[5.0], [10.0]]) == Summary(2.0, 2.0, 2.0)


def test_a_ratio_needs_both() -> None:
    """A repeat that one of them lacks counts nothing, and one to nothing is none."""
    assert ratio([[10.0], [20.0]], [[5.0]]) == Summary(2.0, 2.0, 2.0)
    assert ratio([[10.0]], [[0.0]]) is None
    assert ratio([[10.0]], None) is None


def test_cells_are_held_against_a_local_kernel_of_the_same_server() -> None:
    """What a server does to the messages of any kernel is not counted as the contender's."""
    runs = {
        LOCAL: found("local", start=[[100.0]], cell=[[48.0]]),
        "ours": found("us", start=[[150.0]], cell=[[6.0]], cell_beside=[[4.0]]),
    }
    assert ratios(runs) == {"ours": {"start": Summary(1.5, 1.5, 1.5), "cell": Summary(1.5, 1.5, 1.5)}}


def test_without_a_local_kernel_there_are_no_ratios() -> None:
    """Ratios of another run's local kernel would say nothing."""
    assert ratios({"ours": found("us", start=[[1.0]])}) == {}


def test_who_was_left_out_has_no_ratios() -> None:
    """A peer that could not be installed is not held against anything."""
    assert ratios({LOCAL: found("local", start=[[1.0]]), "sshpyk": Found("sshpyk", left_out="no wheel")}) == {}


@pytest.mark.parametrize(
    ("now", "complains"),
    [
        pytest.param(Summary(1.0, 0.9, 1.1), False, id="the same"),
        pytest.param(Summary(0.5, 0.4, 0.6), False, id="better"),
        pytest.param(Summary(1.19, 1.1, 1.2), False, id="worse within the kept spread"),
        pytest.param(Summary(1.25, 1.2, 1.3), True, id="worse by more than either spread"),
        pytest.param(Summary(1.25, 1.0, 1.3), False, id="worse within its own spread"),
    ],
)
def test_the_guard_complains_of_a_ratio_that_is_worse_by_more_than_the_spread(now: Summary, complains: bool) -> None:
    """The spread is the larger one of both runs."""
    assert bool(guard(kept(1.0, 0.9, 1.1), {"ours": {"start": now}})) is complains


def test_the_guard_lets_runs_pass_that_agree_by_chance() -> None:
    """A kept ratio without a spread still allows a twentieth."""
    assert not guard(kept(1.0, 1.0, 1.0), {"ours": {"start": Summary(1.04, 1.04, 1.04)}})
    assert guard(kept(1.0, 1.0, 1.0), {"ours": {"start": Summary(1.06, 1.06, 1.06)}})


def test_the_guard_complains_of_a_figure_that_is_gone() -> None:
    """A start that fails now must not look like a fast one."""
    (complaint,) = guard(kept(1.5, 1.4, 1.6), {"ours": {}})
    assert str(complaint) == "ours, start: no longer measured; it was 1.50 (1.40 to 1.60) times a local kernel's"


def test_a_complaint_names_both_ratios() -> None:
    """Who reads it needs nothing else to see by how much."""
    (complaint,) = guard(kept(1.0, 0.9, 1.1), {"ours": {"start": Summary(2.0, 1.9, 2.1)}})
    assert str(complaint) == "ours, start: 2.00 (1.90 to 2.10) times a local kernel's; it was 1.00 (0.90 to 1.10)"


def test_round_trips_are_the_difference_of_two_distances() -> None:
    """What a start takes anywhere counts none."""
    near, far = Summary(540.0, 540.0, 540.0), Summary(700.0, 690.0, 710.0)
    assert round_trips(near, far, 0.08) == 2.0
    assert round_trips(None, far, 0.08) is None


def test_a_percentile_is_a_value_that_was_seen() -> None:
    """The 99th percentile of few cells is the slowest of them."""
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([float(n) for n in range(100)], 0.95) == 95.0


def test_what_is_guarded_has_a_title_on_the_page() -> None:
    """The table of ratios names figures as the table of milliseconds does."""
    from benchmarks.peers.page import NEAR

    assert set(GUARDED) <= {name for name, _ in NEAR}
