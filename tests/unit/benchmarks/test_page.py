"""The page of figures, of what was measured alone."""

from __future__ import annotations

import json

from benchmarks.peers.figures import Complaint, Cut, Found, Summary
from benchmarks.peers.page import Run, number, page, spread, verdict


def run(**found: Found) -> Run:
    """Return a run in which *found* was found."""
    return Run("2026-11-28", "2 cores", 3, 540.0, found)


US = Found("us", samples={"start": [[260.0], [275.0], [290.0]], "cell": [[6.0]], "cell_beside": [[4.0]]})
LOCAL = Found("local kernel", samples={"start": [[100.0], [110.0], [120.0]]})


def test_a_run_is_the_same_after_its_json() -> None:
    """What is kept in docs/figures.json is all that the page and the guard need."""
    whole = run(
        ours=Found("us", samples=US.samples, cuts={"silent": [Cut(240, lost=3, answered=1.5)]}, failures=["no"])
    )
    assert Run.from_json(whole.to_json()) == whole


def test_json_has_samples_on_lines_of_their_own() -> None:
    """A change of one figure is a change of one line."""
    text = run(ours=US).to_json()
    assert json.loads(text)["found"]["ours"]["samples"]["start"] == [[260.0], [275.0], [290.0]]
    assert '"start": [[260.0], [275.0], [290.0]]' in text


def test_a_figure_has_its_median_and_the_repeats_on_both_sides() -> None:
    """Readers see at once how much a figure is worth."""
    assert spread(Summary(275.0, 260.0, 290.0)) == "275 (260-290)"
    assert spread(Summary(4.0, 4.0, 4.0)) == "4.0"
    assert spread(None) == "-"


def test_numbers_have_as_many_digits_as_they_are_good_for() -> None:
    """Tenths of a millisecond count for a cell, and not for a start."""
    assert [number(each) for each in (0.123, 4.56, 123.4, 6051.0)] == ["0.12", "4.6", "123", "6,051"]


def test_a_column_for_each_contender_that_was_measured() -> None:
    """Who was left out is named with the reason, and has no column."""
    text = page(
        run(ours=US, sshpyk=Found("sshpyk", left_out="its environment could not be made: no wheel"), local=LOCAL)
    )
    assert "|  | us | local kernel |" in text
    assert "- sshpyk is left out: its environment could not be made: no wheel" in text


def test_ratios_stand_beside_figures() -> None:
    """A start is held against the local kernel's of the same repeat, a cell against one of the same server."""
    text = page(run(ours=US, local=LOCAL))
    assert "| start → kernel_info_reply (ms) | 2.5 (2.4-2.6) |" in text
    assert "| cell `1`, round trip (ms) | 1.5 |" in text


def test_a_distance_is_told_in_round_trips() -> None:
    """Milliseconds at two distances make round trips, whatever the machine is."""
    samples = {
        "start_rtt_20": [[540.0]],
        "start_rtt_100": [[700.0]],
        "cell_rtt_20": [[26.0]],
        "cell_rtt_100": [[106.0]],
    }
    text = page(run(ours=Found("us", samples=dict(samples))))
    assert "| start → kernel_info_reply: round trips | 2.0 |" in text
    assert "| cell `1`: round trips | 1.0 |" in text


def test_no_distance_is_told_with_its_reason() -> None:
    """Where there is no TUN device the page says so instead of showing empty tables."""
    whole = run(ours=US)
    whole.no_distance = "it needs root"
    text = page(whole)
    assert "Not measured: it needs root." in text
    assert "Ten seconds without the network" not in text


def test_a_cut_is_told_as_it_was() -> None:
    """Lines, the cell's end, the next cell, and what the client was told, each by what was seen."""
    well = Cut(240, lost=0, reply=True, resumed=1.4, answered=1.6, kept_state=True)
    badly = Cut(240, lost=34, said="restarting")
    text = page(run(ours=Found("us", cuts={"silent": [well], "ended": [badly]})))
    assert (
        "| us | 0 of 240 lines lost; its end was told; the next line came 1.4 s after the network; "
        "a new cell had run after 1.6 s, with its variables | "
        "34 of 240 lines lost; **its end was never told**; **no new cell ran within a minute**; "
        "(the client was told: `restarting`) |"
    ) in text


def test_what_failed_is_quoted_once() -> None:
    """The words of somebody's error can't break the page."""
    text = page(run(sshpyk=Found("sshpyk 1.25", failures=["lives: `a` | b\nc", "lives: `a` | b\nc"])))
    assert text.count("- sshpyk 1.25: `lives: 'a' ¦ b c`") == 1


def test_the_verdict_names_each_complaint() -> None:
    """The guard's last words are what it fails for."""
    assert verdict([]).endswith("by more than the spread")
    complaint = Complaint("ours", "start", Summary(1.0, 1.0, 1.0), None)
    assert str(complaint) in verdict([complaint])
