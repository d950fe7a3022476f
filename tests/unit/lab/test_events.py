"""Events: recorded by many, read back in order, never in the way of what they tell."""

import json
import multiprocessing
import stat
import threading
import time
from pathlib import Path

import pytest

from lab import events
from lab.errors import LabUsageError
from lab.state import StateFolder


@pytest.fixture
def folder() -> Path:
    path = StateFolder("mine").path
    path.mkdir(parents=True)
    return path


def test_what_was_recorded_is_read_back(folder: Path) -> None:
    """An event has its time, its kind and its fields, and only this user may read it."""
    before = time.time()
    events.record("mine", "fault.added", fault="partition", nodes=["node1"], where=Path("/x"))
    [event] = events.read("mine")
    assert before - 1 <= event["time"] <= time.time()
    assert event | {"time": 0} == {
        "time": 0,
        "kind": "fault.added",
        "fault": "partition",
        "nodes": ["node1"],
        "where": "/x",
    }
    assert stat.S_IMODE((folder / events.FILE).stat().st_mode) == 0o600


def test_a_lab_that_is_gone_stays_gone() -> None:
    """A late record does not bring the folder of a removed lab back, and reading there finds nothing."""
    events.record("mine", "down")
    assert not StateFolder("mine").path.exists()
    assert events.read("mine") == []


def test_only_events_since_a_time(folder: Path) -> None:
    """`since` leaves out what was before, and order is by time whatever the order of lines."""
    lines = [json.dumps({"time": at, "kind": f"at{at}"}) for at in (3, 1, 2)]
    (folder / events.FILE).write_text("\n".join(lines) + "\n")
    assert [event["kind"] for event in events.read("mine")] == ["at1", "at2", "at3"]
    assert [event["kind"] for event in events.read("mine", since=2)] == ["at2", "at3"]


def test_a_torn_line_costs_itself_only(folder: Path) -> None:
    """What a full disk left of a line is left out; its neighbours are read."""
    (folder / events.FILE).write_text('{"time": 1, "kind": "up"}\n{"time": 2, "ki\n[]\n{"time": 3, "kind": "down"}\n')
    assert [event["kind"] for event in events.read("mine")] == ["up", "down"]


def test_fields_can_t_hide_the_event(folder: Path) -> None:
    """An event's time and kind can't be replaced by a field, nor can a lab's name lead elsewhere."""
    with pytest.raises(ValueError, match="time"):
        events.record("mine", "up", time=0)
    with pytest.raises(LabUsageError):
        events.record("../mine", "up")


def _record_many(worker: int) -> None:
    for number in range(50):
        events.record("mine", "test.begin", worker=worker, number=number, filling="x" * 3000)


def test_processes_don_t_tear_each_other_s_lines(folder: Path) -> None:
    """Four processes that record at once lose nothing."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_record_many, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    found = {(event["worker"], event["number"]) for event in events.read("mine")}
    assert len(found) == 200


@pytest.mark.timeout(30)
def test_follow_tells_what_comes_and_ends_with_the_lab(folder: Path) -> None:
    """A follower hears old and new events, half-written lines once they are whole, and stops when the lab goes."""
    events.record("mine", "up")
    heard: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        for event in events.follow("mine"):
            heard.append(event["kind"])
            ready.set()

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(10)
    ready.clear()
    with (folder / events.FILE).open("a") as file:
        file.write('{"time": 1, "kind": ')
        file.flush()
        file.write('"late"}\n')
    assert ready.wait(10)
    StateFolder("mine").remove()
    thread.join(10)
    assert not thread.is_alive()
    assert heard == ["up", "late"]
