"""What a long cell shows of its jobs."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import pytest

from eg_distributed.launchers.spark.python import progress as module
from eg_distributed.launchers.spark.python.progress import Progress

DEADLINE = 30.0


class Tracker:
    """A SparkContext, and its statusTracker, with one stage."""

    def __init__(self, running: int = 2) -> None:
        self.active = [3]
        self.stage = SimpleNamespace(
            stageId=3, numTasks=24, numCompletedTasks=20, numActiveTasks=running, numFailedTasks=0
        )

    def statusTracker(self) -> Tracker:  # noqa: N802 - Spark's name
        return self

    def getActiveStageIds(self) -> list[int]:  # noqa: N802
        return self.active

    def getStageInfo(self, number: int) -> Any:  # noqa: N802
        return self.stage if number == 3 else None


class Kernel:
    """ipykernel's kernel, as far as it displays."""

    iopub_socket = None

    def __init__(self) -> None:
        self._parent_header: dict[str, Any] = {}
        self.shown: queue.Queue[tuple[str, str]] = queue.Queue()
        self.session = self

    def send(self, socket: Any, kind: str, content: dict[str, Any], **_: Any) -> None:
        self.shown.put((kind, content["data"]["text/plain"]))

    def _topic(self, kind: str) -> bytes:
        return kind.encode()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at once, and often."""
    monkeypatch.setattr(module, "_FIRST", 0.01)
    monkeypatch.setattr(module, "_EVERY", 0.01)


def test_the_last_line_is_how_it_ended() -> None:
    """What a finished cell shows of its stages is brought up to date before the cell ends, in the same display."""
    tracker, kernel = Tracker(), Kernel()
    progress = Progress(lambda: tracker)
    progress.cell_begins(kernel)
    first = kernel.shown.get(timeout=DEADLINE)
    assert first == ("display_data", "Spark stage 3: 20 of 24 tasks done, 2 running")
    tracker.active, tracker.stage.numCompletedTasks, tracker.stage.numActiveTasks = [], 24, 0
    progress.cell_ends()
    assert kernel.shown.get(block=False) == ("update_display_data", "Spark stage 3: 24 of 24 tasks done")
    assert kernel.shown.empty()


def test_a_cell_that_makes_its_context_itself_is_watched() -> None:
    """The first cell shows its stages, too: there is no context yet when it begins."""
    contexts: list[Tracker] = []
    kernel = Kernel()
    progress = Progress(lambda: contexts[0] if contexts else None)
    progress.cell_begins(kernel)
    contexts.append(Tracker())
    assert kernel.shown.get(timeout=DEADLINE)[1] == "Spark stage 3: 20 of 24 tasks done, 2 running"
    progress.cell_ends()


class Sequence:
    """A sequence, an option, and an executor of Scala's, as py4j hands them out."""

    def __init__(self, *entries: tuple[str, str]) -> None:
        self.entries = entries

    def size(self) -> int:
        return len(self.entries)

    def apply(self, number: int) -> Any:
        name, reason = self.entries[number]
        removed = SimpleNamespace(isDefined=lambda: bool(reason), get=lambda: reason)
        return SimpleNamespace(id=lambda: name, removeReason=lambda: removed)


@pytest.mark.parametrize(
    ("executors", "told"),
    [
        ((("driver", ""),), "or its executors don't reach the driver at n1:4040; wait"),
        ((("driver", ""), ("0", "")), "no free core or no memory for this application; wait, end other applications"),
        (
            (("0", "Executor 0 on node1 killed by driver."), ("1", "Executor decommission: idle"), ("2", "")),
            "no free core or no memory for this application; wait, end other applications",
        ),
        (
            (
                ("driver", ""),
                ("0", "x"),
                ("9", "Unable to create executor due to\n  Connection refused"),
                ("10", "it: shuffle"),
            ),
            "executors come and go, 3 so far, the last: it: shuffle; interrupt the cell, and check what it says",
        ),
        (
            (("0", "x"), ("1", "Command exited with code 52")),
            "(an executor ran out of Java memory (exit code 52)); have",
        ),
    ],
)
def test_why_no_task_runs_is_what_spark_knows_of_executors(executors: tuple[tuple[str, str], ...], told: str) -> None:
    """That none has come, that all are busy, and why those went that have gone, each with its own remedy."""
    store = SimpleNamespace(executorList=lambda active: Sequence(*executors))
    sc = SimpleNamespace(statusStore=lambda: store)
    conf = {"spark.driver.host": "n1", "spark.driver.port": "4040"}
    context = SimpleNamespace(getConf=lambda: conf, _jsc=SimpleNamespace(sc=lambda: sc))
    assert told in module._why_stuck(context)


@pytest.mark.parametrize(("setting", "lines"), [("", 2), ("off", 1)])
def test_a_job_that_does_not_begin_is_always_told(monkeypatch: pytest.MonkeyPatch, setting: str, lines: int) -> None:
    """That no task runs is said with the host and the remedy, even where progress is turned off."""
    monkeypatch.setenv("EG_SPARK_PROGRESS", setting)
    monkeypatch.setattr(module, "_IDLE", 0.0)
    monkeypatch.setattr("socket.gethostname", lambda: "node1")
    tracker, kernel = Tracker(running=0), Kernel()
    progress = Progress(lambda: tracker)
    progress.cell_begins(kernel)
    said = ""
    while "no task runs" not in said:
        said = kernel.shown.get(timeout=DEADLINE)[1]
    progress.cell_ends()
    assert len(said.splitlines()) == lines
    assert said.splitlines()[-1].startswith(
        "node1: no task runs: the cluster has no executor, no free core or no memory"
    )
    assert "or ask for less" in said
