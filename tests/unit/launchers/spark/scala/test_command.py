"""What becomes the Scala kernel: Toree's jar, the versions that fit, the options that reach it."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from eg_distributed.launchers.spark.driver import scratch_folder
from eg_distributed.launchers.spark.errors import LaunchError
from eg_distributed.launchers.spark.options import SparkOptions, parse
from eg_distributed.launchers.spark.scala import command as module
from eg_distributed.launchers.spark.scala.command import command, find_jar
from eg_distributed.launchers.spark.spark import prepare


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The launcher ignores signals for what it becomes; here it becomes nothing."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def jar(path: Path, version: str = "0.5.0-incubating") -> str:
    """Make a Toree assembly, as far as its manifest goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", f"Manifest-Version: 1.0\r\nImplementation-Version: {version}\r\n")
    return str(path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A Spark for Scala 2.12 and a Java, as far as names go."""
    for name in ("spark/jars", "java/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "spark/jars/spark-core_2.12-3.5.9.jar").touch()
    (tmp_path / "java/bin/java").touch(mode=0o755)
    return tmp_path


def options(home: Path, *arguments: str, **env: str) -> SparkOptions:
    """Return options for *home*."""
    known = {"SPARK_HOME": str(home / "spark"), "JAVA_HOME": str(home / "java"), "KERNEL_ID": "k", "PATH": os.defpath}
    return parse(
        ["-f", "/c.json", *arguments], {**known, "__TOREE_SPARK_OPTS__": "--master local[1]", **env}, "/launcher"
    )


def test_the_driver_becomes_toree_with_our_interrupts(home: Path) -> None:
    """Toree's options, the client's mode and LAUNCH_OPTS reach it; the signal is ours to handle, and ignored till then."""
    where = jar(home / "toree-assembly-0.5.0.jar")
    found = options(
        home,
        "--RemoteProcessProxy.spark-context-initialization-mode",
        "none",
        TOREE_JAR=where,
        __TOREE_OPTS__="--alternate-sigint USR2 --sparkcontext 'a b'",
        LAUNCH_OPTS="--magic-url x",
    )
    argv = command(found)
    assert argv[0] == str(home / "java/bin/java")
    assert argv[argv.index("--class") + 1] == "org.codehaus.janino.SimpleCompiler"
    at = argv.index(where)
    assert argv[at + 1 : at + 4] == ["/launcher/scala/spark_scala.java", "SparkScalaKernel", "USR2"]
    assert argv[at + 4 : at + 8] == ["--profile", "/c.json", "--spark-context-initialization-mode", "none"]
    assert argv[at + 8 :] == ["--sparkcontext", "a b", "--magic-url", "x"]
    assert "--add-opens=java.base/java.util.jar=ALL-UNNAMED" in argv
    assert "-XX:+UseSerialGC" in argv
    # Toree's answers need the threads that a cell's futures may all be waiting on.
    assert "-Dscala.concurrent.context.numThreads=64" in argv
    assert "spark.job.interruptOnCancel=true" in argv
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


def test_options_given_at_the_start_win_over_the_installed_ones(home: Path) -> None:
    """TOREE_OPTS replaces __TOREE_OPTS__, and names another signal; the user's Java options come after ours."""
    found = options(
        home,
        "--RemoteProcessProxy.spark-context-initialization-mode",
        "none",
        TOREE_JAR=jar(home / "toree-assembly-0.5.0.jar"),
        TOREE_OPTS="--alternate-sigint USR1",
        __TOREE_OPTS__="--alternate-sigint USR2 --nosparkcontext",
        SPARK_OPTS="--master local[1] --driver-java-options -XX:+UseG1GC",
    )
    argv = command(found)
    assert argv[argv.index("SparkScalaKernel") + 1] == "USR1"
    assert "--nosparkcontext" not in argv
    assert argv.index("-XX:+UseG1GC") > argv.index("-XX:+UseSerialGC")


def test_temporary_files_take_no_other_option_away(home: Path) -> None:
    """With a folder for the start's temporary files, the driver still starts the fastest way."""
    env = {
        "SPARK_HOME": str(home / "spark"),
        "JAVA_HOME": str(home / "java"),
        "KERNEL_ID": "k",
        "EG_ATTEMPT": "scala0test",
        "TOREE_JAR": jar(home / "toree-assembly-0.5.0.jar"),
        "SPARK_OPTS": "--master local[1]",
    }
    argv, environment = prepare(
        ["scala", "-f", "/c.json", "--spark-context-initialization-mode", "none"], env, "/launcher"
    )
    folder = scratch_folder(environment)
    assert folder is not None
    folder.rmdir()
    assert {f"-Djava.io.tmpdir={folder}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"} <= set(argv)


def test_a_signal_that_is_none_is_refused(home: Path) -> None:
    """A name that no signal has ends the start with the remedy."""
    found = options(
        home,
        "--RemoteProcessProxy.spark-context-initialization-mode",
        "none",
        TOREE_JAR=jar(home / "toree-assembly-0.5.0.jar"),
        TOREE_OPTS="--alternate-sigint NONE",
    )
    with pytest.raises(LaunchError, match="--alternate-sigint NONE; name a signal"):
        command(found)


@pytest.mark.parametrize(
    ("spark", "toree", "said"),
    [
        (
            "spark-core_2.13-4.0.1.jar",
            "0.5.0-incubating",
            "built for Scala 2.12, but Spark 4.0.1 .* built with Scala 2.13",
        ),
        ("spark-core_2.13-3.5.9.jar", "0.5.0-incubating", "Toree 0.5 .* built for Scala 2.12, but Spark 3.5.9"),
        ("spark-core_2.12-3.5.9.jar", "0.6.0-incubating", "built for Scala 2.13, but Spark 3.5.9"),
    ],
)
def test_another_scala_is_refused_before_the_jvm(home: Path, spark: str, toree: str, said: str) -> None:
    """Toree for another Scala than Spark's is named with both versions, instead of dying of a missing method."""
    (home / "spark/jars/spark-core_2.12-3.5.9.jar").rename(home / "spark/jars" / spark)
    found = options(home, TOREE_JAR=jar(home / "toree-assembly.jar", toree))
    with pytest.raises(LaunchError, match=said):
        command(found)


def test_a_jar_that_is_broken_is_named(home: Path) -> None:
    """A file that is no archive is refused with its name."""
    (home / "toree-assembly.jar").write_text("no archive")
    with pytest.raises(LaunchError, match=r"toree-assembly\.jar can't be read"):
        command(options(home, TOREE_JAR=str(home / "toree-assembly.jar")))


def test_where_toree_is_looked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TOREE_JAR wins, then PYSPARK_PYTHON's package, then one beside SPARK_HOME, then Toree's own kernelspecs."""
    monkeypatch.setattr(module, "_KERNELS", ())
    env = {"PYSPARK_PYTHON": str(home / "env/bin/python"), "HOME": str(home)}
    kernels = jar(home / ".local/share/jupyter/kernels/toree/lib/toree-assembly-0.5.0.jar")
    usual = Path("/opt/toree")
    assert find_jar(options(home, **env)) == kernels or usual.exists()
    beside = jar(home / "toree/lib/toree-assembly-0.5.0.jar")
    assert find_jar(options(home, **env)) == beside
    package = jar(home / "env/lib/python3.11/site-packages/toree/lib/toree-assembly-0.5.0.jar")
    assert find_jar(options(home, **env)) == package
    named = jar(home / "named.jar")
    assert find_jar(options(home, **env, TOREE_JAR=named)) == named
    with pytest.raises(LaunchError, match="no file TOREE_JAR"):
        find_jar(options(home, TOREE_JAR=str(home / "missing.jar")))


def test_a_node_without_toree_is_told_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No jar anywhere: the error names the places and the package."""
    monkeypatch.setattr(module, "_places", lambda options: iter(()))
    with pytest.raises(
        LaunchError, match=r"Apache Toree is not installed .* install the Python package toree==0\.5\.0"
    ):
        find_jar(options(home))
