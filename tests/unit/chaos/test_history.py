"""A history is kept and read as it was seen."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.history import Event, History
from tests.chaos.tab import runs


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Events have their times since the round's begin, in a file as well."""
    clock = iter([100.0, 101.5, 103.0])
    history = History(clock=lambda: next(clock))
    history.add("invoke", "start", kernel="k1", id="1")
    history.add("seen", "lines", cell="k1/1", first=0, last=9)
    history.write(tmp_path / "history.jsonl")
    assert list(History.read(tmp_path / "history.jsonl")) == [
        Event(1.5, "invoke", "start", {"kernel": "k1", "id": "1"}),
        Event(3.0, "seen", "lines", {"cell": "k1/1", "first": 0, "last": 9}),
    ]


def test_lines_are_kept_in_runs() -> None:
    """A gap, or a line that comes again, begins another run."""
    assert runs([0, 1, 2, 5, 6, 6, 3]) == [(0, 2), (5, 6), (6, 6), (3, 3)]
    assert runs([]) == []
