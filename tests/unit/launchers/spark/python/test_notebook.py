"""What a notebook's cells find, in whatever order and whenever they come: imports, the session, its settings, its names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.unit.agents import pythons
from tests.unit.launchers.spark.python.notebooks import run


@pytest.mark.parametrize("mode", ["lazy", "eager", "none"])
def test_the_first_cell_may_import_pyspark(tmp_path: Path, mode: str) -> None:
    """However slow its import is, no thread of ours is at it beside the cell, which would find a half-made module."""
    run(
        tmp_path,
        """
        until = time.monotonic() + 0.5
        while "pyspark" not in sys.modules and time.monotonic() < until:  # a thread of ours would be in the middle of it then
            time.sleep(0.005)
        assert ("pyspark" in sys.modules) == (mode == "eager")
        assert mode != "eager" or hasattr(sys.modules["pyspark.sql"], "SQLContext")
        ok("from pyspark.sql import SparkSession, SQLContext")
        ok("import pyspark.sql.functions as F")
        """,
        MODE=mode,
        SLOW="0.3",
    )


@pytest.mark.parametrize("python", pythons("3.9", "3.11", "3.13"))
def test_an_interrupted_wait_is_gone_on_with(tmp_path: Path, python: str) -> None:
    """A cell that waits for room ends at once when it is interrupted; the next one waits for the same session, and gets it."""
    (tmp_path / "full").touch()
    run(
        tmp_path,
        """
        interrupted("spark.range(3)")
        interrupted("spark.range(3)")
        os.remove(os.environ["FULL"])
        ok("assert spark.range(3) == [0, 1, 2]; assert sc.applicationId == 'app-1'")
        """,
        python,
        FULL=str(tmp_path / "full"),
    )


BUILDER = "SparkSession.builder.appName('mine').config('spark.executor.memory', '600m').getOrCreate()"


@pytest.mark.parametrize("pause", [0.0, 1.0])
def test_a_builder_that_comes_first_makes_the_session(tmp_path: Path, pause: float) -> None:
    """Its settings count, however long after the start it comes; our names stand for its session, which is announced."""
    run(
        tmp_path,
        f"""
        time.sleep({pause})
        said = ok("from pyspark.sql import SparkSession\\nmine = {BUILDER}")
        assert "application app-1 on local[1]" in said and "not in force" not in said, said
        ok("assert mine.sparkContext.getConf().get('spark.executor.memory') == '600m'")
        ok("assert spark is mine and sc is mine.sparkContext and sqlContext.sparkSession is mine")
        assert len(jvms()) == 1
        """,
    )


def test_settings_that_come_too_late_are_told(tmp_path: Path) -> None:
    """Once there is a session, a builder's settings that it can't take are named, with those in force and what to do."""
    run(
        tmp_path,
        f"""
        ok("spark.range(1)")
        said = ok("from pyspark.sql import SparkSession\\ns = {BUILDER}")
        assert "not in force, since this application was made before: spark.app.name=mine (in force: kernel-1), "\
               "spark.executor.memory=600m (in force: 512m); call spark.stop() first" in said, said
        assert not ok("SparkSession.builder.config('spark.sql.shuffle.partitions', '7').getOrCreate()")
        said = ok("SparkSession.builder.config('spark.driver.memory', '2g').getOrCreate()")
        assert "since Spark's JVM was started before: spark.driver.memory=2g (in force: not set); restart" in said, said
        """,
    )


def test_an_eager_session_has_the_kernelspecs_settings(tmp_path: Path) -> None:
    """A builder waits for it, even if that takes long, and is told what it does not change."""
    (tmp_path / "full").touch()
    run(
        tmp_path,
        f"""
        threading.Timer(0.3, os.remove, [os.environ["FULL"]]).start()
        said = ok("from pyspark.sql import SparkSession\\ns = {BUILDER}")
        assert "spark.executor.memory=600m (in force: 512m)" in said, said
        ok("assert s is spark and s.sparkContext.appName == 'kernel-1'")
        """,
        MODE="eager",
        FULL=str(tmp_path / "full"),
    )


@pytest.mark.parametrize("mode", ["lazy", "none"])
def test_what_only_a_jvms_start_can_take_counts_too(tmp_path: Path, mode: str) -> None:
    """A first builder with packages, or more memory for the driver, has a JVM that was started with them."""
    run(
        tmp_path,
        """
        builder = "SparkSession.builder.config('spark.driver.memory', '700m').config('spark.jars.packages', 'a:b:1')"
        said = ok(f"from pyspark.sql import SparkSession\\ns = {builder}.getOrCreate()")
        assert "not in force" not in said, said
        last = jvms()[-1]
        assert "-Xmx700m" in last and "spark.jars.packages=a:b:1" in last and "showConsoleProgress=false" in last, last
        session._warm()  # a thread that comes late
        assert session._gateway.runs and jvms()[-1] == last
        """,
        MODE=mode,
    )


def test_names_follow_the_session_that_lives(tmp_path: Path) -> None:
    """After `spark.stop()` our names stand for the next session, in the same cell and later; each application is told."""
    run(
        tmp_path,
        f"""
        assert "application app-1" in ok("spark.range(1)")
        said = ok("spark.stop()\\nfrom pyspark.sql import SparkSession\\ns = {BUILDER}\\nassert sc.applicationId == 'app-2'")
        assert "application app-2" in said and "not in force" not in said, said
        ok("assert spark is s and sqlContext.sparkSession is s")
        ok("spark.stop()")
        assert "application app-3" in ok("assert sc.appName == 'kernel-1'")
        ok("sc = 'my own'\\nspark.stop()")
        ok("assert spark.range(1) == [0] and sc == 'my own'")
        """,
    )


def test_an_interrupted_builder_is_gone_on_with(tmp_path: Path) -> None:
    """A second try gets the session of the first, with its settings, and Spark never makes two at a time."""
    (tmp_path / "full").touch()
    run(
        tmp_path,
        f"""
        interrupted("from pyspark.sql import SparkSession\\ns = {BUILDER}")
        os.remove(os.environ["FULL"])
        ok("assert spark.sparkContext.appName == 'mine'")
        """,
        FULL=str(tmp_path / "full"),
    )


def test_a_builder_that_fails_can_be_corrected(tmp_path: Path) -> None:
    """Its error is one line with host and remedy, and the next builder has its own settings."""
    run(
        tmp_path,
        """
        ok("from pyspark.sql import SparkSession")
        error, _ = cell("SparkSession.builder.config('spark.executor.cores', 'many').getOrCreate()")
        assert "Spark could not make a session (local[1]): " in str(error), error
        ok("SparkSession.builder.config('spark.executor.cores', '1').getOrCreate()")
        """,
    )


def test_looking_never_waits_for_a_cluster(tmp_path: Path) -> None:
    """Completion, inspection, `isinstance`, `str` and `dir` are answered by pyspark's own classes while there is no session."""
    (tmp_path / "full").touch()
    run(
        tmp_path,
        """
        with session.inspected():
            assert "range" in dir(ns["spark"]) and ns["spark"].range.__doc__ == "Return a range."
            assert "applicationId" not in dir(ns["sc"]) and "stop" in dir(ns["sc"])
            assert "still to come" in repr(ns["spark"]) and not hasattr(ns["spark"], "nothing")
        assert "still to come" in repr(ns["spark"])  # an expression that a front end sends along
        ok("from pyspark.sql import SparkSession\\nassert isinstance(spark, SparkSession) and not isinstance(sc, SparkSession)")
        ok("assert 'still to come' in str(spark) and not hasattr(spark, '__len__') and 'range' in dir(spark)")
        ok("get_ipython()._inspect('pinfo', 'spark')")
        assert shell.inspected == "stop"
        assert session._attempt is None
        """,
        FULL=str(tmp_path / "full"),
    )


def test_a_jvm_that_ends_is_quoted(tmp_path: Path) -> None:
    """The cell is told what the JVM said last, without its stack, with the exit code and the remedy."""
    (tmp_path / "dying").write_text(
        "Error occurred during initialization of VM\nInvalid maximum heap size: -Xmxlots\n\tat x.Y\n"
    )
    run(
        tmp_path,
        """
        error, _ = cell("spark.range(1)")
        assert "Spark's JVM ended at its start (exit code 1): " in str(error), error
        assert "Invalid maximum heap size: -Xmxlots; correct --driver-memory" in str(error), error
        """,
        DYING=str(tmp_path / "dying"),
    )


@pytest.mark.parametrize("mode", ["lazy", "eager", "none"])
def test_py_files_are_importable_from_the_first_cell_on(tmp_path: Path, mode: str) -> None:
    """Modules and archives of `--py-files` are found before there is a session, and nothing beside them is."""
    (tmp_path / "with blank").mkdir()
    (tmp_path / "with blank" / "helper.py").write_text("answer = 42\n")
    (tmp_path / "with blank" / "other.py").touch()
    run(
        tmp_path,
        "ok('import helper; assert helper.answer == 42')\nassert isinstance(cell('import other')[0], ImportError)",
        MODE=mode,
        PYSPARK_SUBMIT_ARGS=f"--master local[1] --name k --py-files '{tmp_path}/with blank/helper.py' pyspark-shell",
    )


def test_the_fake_is_no_real_one() -> None:
    """These tests mean what they say only where no real pyspark is installed beside the fake."""
    assert importlib.util.find_spec("pyspark") is None
