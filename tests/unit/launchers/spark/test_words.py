"""What is told of a JVM that has ended, and of a session that is waited for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eg_distributed.launchers.spark import watch as module
from eg_distributed.launchers.spark.last_words import LastWords, Log
from eg_distributed.launchers.spark.options import SparkOptions, parse
from eg_distributed.launchers.spark.reasons import explain_end
from eg_distributed.launchers.spark.watch import Watch
from eg_distributed.launchers.spark.yarn import ResourceManagers

IVY = """\
:: loading settings :: url = jar:file:/opt/spark/jars/ivy-2.5.1.jar!/org/apache/ivy/core/settings/ivysettings.xml
26/11/27 10:00:00 WARN NativeCodeLoader: Unable to load native-hadoop library
\t\t:: org.acme#nope;1.0: not found
Exception in thread "main" java.lang.RuntimeException: [unresolved dependency: org.acme#nope;1.0: not found]
\tat org.apache.spark.deploy.SparkSubmitUtils$.resolveMavenCoordinates(SparkSubmit.scala:1608)
\t... 12 more
"""


@pytest.mark.parametrize(
    ("said", "quoted", "remedy"),
    [
        (IVY, "[unresolved dependency: org.acme#nope;1.0: not found]", "correct --packages"),
        ("Invalid maximum heap size: -Xmxlots\n", ": Invalid maximum heap size: -Xmxlots; ", "correct --driver-memory"),
        (
            'Exception in thread "main" java.lang.Error: a b\n\tat x.Y(Z.java:1)\n',
            ": a b; ",
            "correct what it complains of",
        ),
        ("", "(exit code 1); ", "see the kernel's log"),
    ],
)
def test_last_words_name_the_cause(said: str, quoted: str, remedy: str) -> None:
    """A dependency that is missing first, no stack, no noise; with the exit code and a remedy."""
    told = str(explain_end("at its start", 1, LastWords(said.splitlines()).told()))
    assert quoted in told
    assert remedy in told
    assert "\tat " not in told
    assert "WARN" not in told


def test_words_are_those_since_a_moment(tmp_path: Path) -> None:
    """What was in the log before is another process's; errors that were logged are told once each."""
    with (tmp_path / "log").open("ab", 0) as log:
        log.write(b"older\n")
        since = Log(log.fileno())
        log.write(b"10:00 ERROR SparkContext: Failed to add /no.jar\n10:01 ERROR SparkContext: Failed to add /no.jar\n")
        assert since.words().errors() == ["SparkContext: Failed to add /no.jar"]
        assert "older" not in since.words().told()
        log.truncate(0)  # the agent has dropped the older half
        log.write(b"new\n")
        assert since.words().told() == ["new"]


ACTIVATED = "[Fri] Application is Activated, waiting for resources to be assigned for AM.  Details : AM Partition = <DEFAULT>; x"
FULL = "[Fri] Application is added to the scheduler and is not yet activated. Queue's AM resource limit exceeded.  Details : x"


@pytest.fixture
def yarn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An application as the ResourceManager tells of it; looks follow each other at once."""
    application = {"id": "application_1_1", "queue": "default", "state": "ACCEPTED", "diagnostics": ""}
    monkeypatch.setattr(ResourceManagers, "applications", lambda self, tag: [application])
    monkeypatch.setattr(module, "_FIRST", 0.0)
    monkeypatch.setattr(module, "_EVERY", 0.0)
    return application


def options() -> SparkOptions:
    """Return options of a kernel on YARN."""
    return parse([], {"SPARK_HOME": "/s", "SPARK_OPTS": "--master yarn"}, "/launcher")


def test_what_every_application_says_for_a_moment_is_no_lack_of_room(
    yarn: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty cluster's own words are told as its state; only where they stay, it waits for room."""
    watch = Watch(options)
    yarn["diagnostics"] = ACTIVATED
    watch.look()
    watch.look()
    assert capsys.readouterr().err == "YARN application application_1_1 in queue default is ACCEPTED …\n"
    watch.look()
    said = capsys.readouterr().err
    assert (
        "waits for room: Application is Activated, waiting for resources to be assigned for AM (wait, interrupt" in said
    )


def test_a_lack_of_room_is_said_at_once(yarn: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """YARN's own reason, without the figures of its queue that follow."""
    yarn["diagnostics"] = FULL
    Watch(options).look()
    said = capsys.readouterr().err
    assert "and waits for room: " in said
    assert "Queue's AM resource limit exceeded (wait, interrupt the cell" in said
