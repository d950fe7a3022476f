"""The driver's JVM behind a Python kernel: one, whoever is first, and another one when it has ended."""

from __future__ import annotations

from pathlib import Path

from tests.unit.launchers.spark.python.notebooks import run


def test_a_jvm_that_has_ended_is_replaced(tmp_path: Path) -> None:
    """pyspark holds on to a dead JVM for ever; the next session has a new one, and no trace of it is in the environment."""
    run(
        tmp_path,
        """
        ok("spark.range(1)")
        from pyspark import SparkContext
        first = SparkContext._gateway.proc
        assert first is session._gateway._process
        first.kill()
        first.wait()
        ok("spark.stop()")
        ok("spark.range(1)")
        assert SparkContext._gateway.proc is session._gateway._process is not first
        assert len(jvms()) == 2 and "PYSPARK_GATEWAY_SECRET" not in os.environ
        """,
    )


def test_a_users_own_jvm_is_the_one(tmp_path: Path) -> None:
    """A cell that gave pyspark a JVM of its own keeps it, and so does the session that is made later."""
    run(
        tmp_path,
        """
        ok('''
        from types import SimpleNamespace
        from pyspark import SparkContext
        mine = SimpleNamespace(proc=None, jvm=object())
        SparkContext._ensure_initialized(gateway=mine)
        '''.replace("        ", ""))
        ok("spark.range(1)\\nassert SparkContext._gateway is mine")
        """,
    )


def test_an_interrupt_leaves_a_jvm_that_starts_to_the_next_cell(tmp_path: Path) -> None:
    """A builder in mode `none` waits for its JVM on the main thread; interrupted there, the next one gets the same JVM."""
    (tmp_path / "sleepy").touch()
    run(
        tmp_path,
        """
        def interrupt():
            while session._gateway is None or not session._gateway.runs:
                time.sleep(0.005)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        error, _ = cell("from pyspark.sql import SparkSession\\nSparkSession.builder.getOrCreate()")
        assert isinstance(error, KeyboardInterrupt), error
        os.remove(os.environ["SLEEPY"])
        ok("SparkSession.builder.getOrCreate()")
        assert len(jvms()) == 1
        """,
        MODE="none",
        SLEEPY=str(tmp_path / "sleepy"),
    )


def test_options_that_a_cell_has_changed_count(tmp_path: Path) -> None:
    """PYSPARK_SUBMIT_ARGS that a cell sets before it uses Spark are those of the JVM, though one was started before."""
    run(
        tmp_path,
        """
        while not os.path.exists(os.environ["JVMS"]):
            time.sleep(0.005)
        ok("import os\\nos.environ['PYSPARK_SUBMIT_ARGS'] = '--master local[1] --name k --packages a:b:1 pyspark-shell'")
        ok("spark.range(1)")
        assert "--packages a:b:1" in jvms()[-1] and len(jvms()) == 2
        """,
    )
