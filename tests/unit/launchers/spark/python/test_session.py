"""The session of a Python kernel, as far as it can be seen without Spark: names of what is to come, and errors explained."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from eg_distributed.launchers.spark.errors import LaunchError
from eg_distributed.launchers.spark.options import parse
from eg_distributed.launchers.spark.python.lazy import Lazy
from eg_distributed.launchers.spark.python.session import Session
from eg_distributed.launchers.spark.reasons import advise, explain


class Real:
    """Something that a placeholder stands for."""

    answer = 42

    def __enter__(self) -> str:
        return "inside"

    def __exit__(self, *_: object) -> None:
        return None

    def __repr__(self) -> str:
        return "<real>"


class Soon(Session):
    """A session whose parts are there once somebody waits for them."""

    real: ClassVar[Real] = Real()

    def __init__(self) -> None:
        super().__init__("/launcher", wanted=True, log=2)
        self.waits = 0

    def wait(self) -> None:
        """Count."""
        self.waits += 1

    def part(self, name: str) -> Any:
        """Return the one thing there is."""
        return self.real


def test_a_placeholder_is_what_it_stands_for() -> None:
    """Attributes, `with`, comparison and display all wait for the real thing and are answered by it; so is a test of its type."""
    session = Soon()
    session.cell_runs = True
    lazy: Any = Lazy(session, "spark")
    assert session.waits == 0
    assert lazy.answer == 42
    assert repr(lazy) == "<real>"
    assert lazy == Soon.real
    with lazy as inside:
        assert inside == "inside"
    lazy.answer = 43
    assert Soon.real.__dict__.pop("answer") == 43
    assert session.waits == 6
    session.session = Soon.real
    assert isinstance(lazy, Real)
    assert "answer" in dir(lazy)
    assert str(lazy) == "<real>"


def test_displays_do_not_wait() -> None:
    """What IPython asks of anything that it shows begins no session."""
    session = Soon()
    assert not hasattr(Lazy(session, "spark"), "_ipython_display_")
    assert session.waits == 0


def test_a_session_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second use makes another attempt, with what the environment says then."""
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master spark://127.0.0.1:1 pyspark-shell")
    session = Session("/launcher", wanted=True, log=2)
    with pytest.raises(LaunchError, match=r"the Spark master can't be reached .127.0.0.1:1: Connection refused"):
        session.wait()
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--master yarn pyspark-shell")
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)
    with pytest.raises(LaunchError, match="there is no YARN configuration"):
        session.wait()


def test_interrupts_without_a_session_are_nothing() -> None:
    """Before Spark is imported there is nothing to cancel, and no thread for it."""
    before = threading.active_count()
    session = Session("/launcher", wanted=True, log=2)
    session.cancel_jobs_soon()
    session.end()
    assert threading.active_count() == before


def test_a_debugger_does_not_wait_for_a_session() -> None:
    """What another thread asks to show a variable is answered at once while there is no session."""
    session = Soon()
    lazy: Any = Lazy(session, "spark")
    shown: list[Any] = []
    look = threading.Thread(target=lambda: shown.extend([repr(lazy), lazy.__class__, dir(lazy)]))
    look.start()
    look.join()
    assert shown == ["<spark: its Spark session is still to come>", Lazy, []]
    assert session.waits == 0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            'java.io.IOException: Cannot run program "/opt/no/python": error=2',
            "a worker can't run the program that Spark's tasks need (Cannot run program \"/opt/no/python\": error=2); set",
        ),
        (
            "[PYTHON_VERSION_MISMATCH] Python in worker has ...",
            "Python is another version than the driver's; set PYSPARK_PYTHON",
        ),
        (
            "ExecutorLostFailure (executor 0 exited caused by one of the running tasks) Reason: Command exited with code 52",
            "ran out of Java memory (exit code 52); have them get more memory (--executor-memory)",
        ),
        ("Exit status: 52. Diagnostics: x", "ran out of Java memory (exit code 52)"),
        ("Exit status: 137. Diagnostics: Container killed on request.", "an executor was killed (exit code 137"),
        ("Exit status: 1370.", ""),
        ("Container killed by YARN for exceeding physical memory limits.", "raise spark.executor.memoryOverhead"),
        ("ERROR XSDB6: Another instance of Derby may have already booted", "a metastore that serves several"),
        ("[LOCATION_ALREADY_EXISTS] Cannot name the managed table", "the table's folder is there"),
        ("ZeroDivisionError: division by zero", ""),
    ],
)
def test_advice_on_what_a_job_ended_with(said: str, told: str) -> None:
    """Faults of the installation have a remedy, with the host; the user's own errors are left to him."""
    advice = advise(RuntimeError(said))
    assert told in advice
    assert bool(told) == bool(advice)


def test_advice_on_a_cause_that_pyspark_keeps_to_itself() -> None:
    """An exception that pyspark has made of Java's says the first cause; the others are in its stack trace, and count as well."""
    error: Any = RuntimeError("Unable to instantiate SessionHiveMetaStoreClient")
    error.stackTrace = "at x.Y(Y.java)\nCaused by: ERROR XSDB6: Another instance of Derby may have already booted"
    assert "another kernel or program has opened the same metastore" in advise(error)


def test_what_has_its_remedy_gets_no_other() -> None:
    """An error of our own, which a cell ends with as well, is not advised on again."""
    assert not advise(
        LaunchError('Spark could not make a session (yarn): Cannot run program "x"', "set PYSPARK_PYTHON")
    )


@pytest.mark.parametrize(
    ("said", "cause", "remedy"),
    [
        (
            "java.lang.IllegalArgumentException: Required executor memory (5120 MB) is above the max threshold (2048 MB)",
            "Required executor memory (5120 MB) is above the max threshold (2048 MB)",
            "have the cluster's maximum raised",
        ),
        (
            "SparkException: x\nCaused by: org.apache.hadoop.YarnException: submitted by user lab to unknown queue: nosuch",
            "submitted by user lab to unknown queue: nosuch",
            "name one of the cluster's queues",
        ),
        ("User: lab is not allowed to impersonate alice", "not allowed to impersonate alice", "hadoop.proxyuser"),
        (
            "java.lang.ClassNotFoundException: org.acme.Nope",
            "java.lang.ClassNotFoundException: org.acme.Nope",
            "see the kernel's log",
        ),
        ("something else", "something else", "see the kernel's log"),
    ],
)
def test_sparks_errors_are_explained(said: str, cause: str, remedy: str) -> None:
    """The last cause that Java names, without its class if its message says enough, with the master and a remedy."""
    options = parse([], {"SPARK_HOME": "/s", "SPARK_OPTS": "--master yarn"}, "/launcher")
    told = str(explain(RuntimeError(said), options))
    assert f"Spark could not make a session (yarn): {cause}" in told or cause in told
    assert remedy in told
    assert "Exception:" not in told.replace("SparkException", "").replace(cause, "")
