"""The Scala kernel: Toree in Spark's driver JVM, with a start and interrupts of our own (`spark_scala.java`)."""

from __future__ import annotations

import glob
import os
import re
import signal
import sys
import zipfile
from pathlib import Path
from typing import Iterator

from .. import java
from ..checks import check_cluster
from ..errors import LaunchError
from ..options import SparkOptions, split_variable

SOURCE = "scala/spark_scala.java"
INTERRUPT = "USR2"
"""The signal that interrupts a cell; the kernelspecs say the same as `interrupt_signal`."""
_JAVA_OPTIONS = (
    "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 "
    "-Dscala.concurrent.context.numThreads=64 -Dscala.concurrent.context.maxThreads=64"
)
"""The fastest start; a kernel's driver mostly waits for executors, and who computes in it says otherwise. And Scala's global pool
has more threads than the node has cores: Toree makes its answers on it, which cells must not take by futures that only wait."""
_FOR_MAGICS = "--add-opens=java.base/java.util.jar=ALL-UNNAMED"
"""Without it, Toree finds none of its magics on Java 17."""
_JAR = "toree-assembly*.jar"
_KERNELS = ("/usr/local/share/jupyter/kernels", "/usr/share/jupyter/kernels")
_VERSION = re.compile(r"^Implementation-Version:\s*(\d+)\.(\d+)", re.MULTILINE)


def command(options: SparkOptions) -> list[str]:
    """Return the argv that becomes the Scala kernel; changes `options.env`. Raises LaunchError."""
    jar = find_jar(options)
    check_versions(options.spark_home, jar)
    if options.mode != "none":
        check_cluster(options)  # Toree has no place for words of ours: a session that can't be made ends the start
    toree = _toree_options(options)
    env = options.env
    env["SPARK_SUBMIT_OPTS"] = f"{env.get('SPARK_SUBMIT_OPTS', '')} {_FOR_MAGICS}".strip()
    env["EG_SPARK_PYTHON"] = sys.executable or "python3"
    env["EG_SPARK_TELL"] = os.path.join(options.folder, "tell.py")
    interrupt = _alternate(toree)
    # Ignored until the JVM has a handler of its own: an interrupt that comes early must not end it. SIGINT stays ignored.
    for name in ("SIGINT", f"SIG{interrupt}"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    arguments = ["--profile", options.connection_file, "--spark-context-initialization-mode", options.mode, *toree]
    settings = {
        "spark.driver.defaultJavaOptions": _JAVA_OPTIONS,
        # Those of DataFrames; jobs of RDDs learn it when they are cancelled. Without it a task sleeps on, on its core.
        "spark.job.interruptOnCancel": "true",
    }
    return java.submit_command(
        options,
        main_class="org.codehaus.janino.SimpleCompiler",
        resource=jar,
        args=[os.path.join(options.folder, SOURCE), "SparkScalaKernel", interrupt, *arguments],
        extra=settings,
    )


def find_jar(options: SparkOptions) -> str:
    """Return the path of Toree's assembly on this node; raises LaunchError when it is in none of the usual places."""
    named = options.env.get("TOREE_JAR")
    if named:
        if os.path.isfile(named):
            return named
        raise LaunchError(f"there is no file TOREE_JAR={named}", "set it to Toree's assembly jar on the nodes")
    for pattern in _places(options):
        found = sorted(glob.glob(pattern))
        if found:
            return found[-1]
    raise LaunchError(
        "Apache Toree is not installed (no toree-assembly jar in the package `toree` of PYSPARK_PYTHON, beside SPARK_HOME, "
        "in /opt/toree or in a kernelspec of Toree's)",
        "install the Python package toree==0.5.0 there, or set TOREE_JAR in the kernelspec's env to its assembly jar",
    )


def _places(options: SparkOptions) -> Iterator[str]:
    """Yield glob patterns of the places where Toree's jar may be, the most specific one first."""
    python = options.env.get("PYSPARK_PYTHON") or options.env.get("PYSPARK_DRIVER_PYTHON") or ""
    if os.path.isabs(python):
        yield _pattern(Path(python).parent.parent, "lib", "python3*", "site-packages", "toree", "lib")
    theirs = options.env.get("EG_KERNELSPEC_FOLDER", "")
    if os.path.isabs(theirs):  # Enterprise Gateway's kernelspec on this node, in whose launcher's place we are
        yield _pattern(Path(theirs), "lib")
    # PySpark's package is a SPARK_HOME of its own, and Toree's a package beside it.
    yield _pattern(Path(options.spark_home).resolve().parent, "toree", "lib")
    yield _pattern(Path("/opt/toree"))
    home = options.env.get("HOME")
    for kernels in (*((os.path.join(home, ".local/share/jupyter/kernels"),) if home else ()), *_KERNELS):
        yield _pattern(Path(kernels), "*", "lib")


def _pattern(base: Path, *parts: str) -> str:
    return os.path.join(glob.escape(str(base)), *parts, _JAR)


def check_versions(spark_home: str, jar: str) -> None:
    """Raise LaunchError unless Toree's *jar* is built for the Scala of this Spark: otherwise it dies of a missing method."""
    version, scala = java.core_version(spark_home)
    toree, wanted = _built_for(jar)
    if wanted and wanted != scala:
        raise LaunchError(
            f"Toree {toree} ({jar}) is built for Scala {wanted}, but Spark {version} at {spark_home} is built with Scala {scala}",
            f"use a Spark 3.x built with Scala {wanted}, or a Toree for Scala {scala}, and point SPARK_HOME or TOREE_JAR at it",
        )


def _built_for(jar: str) -> tuple[str, str]:
    """Return Toree's version and the Scala it is built for; ("", "") if the jar doesn't say."""
    try:
        with zipfile.ZipFile(jar) as archive:
            manifest = archive.read("META-INF/MANIFEST.MF").decode("utf-8", "replace")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise LaunchError(
            f"Toree's jar {jar} can't be read ({error})", "install the Python package toree==0.5.0 anew"
        ) from error
    match = _VERSION.search(manifest)
    if match is None:
        return "", ""
    release = (int(match[1]), int(match[2]))
    return f"{match[1]}.{match[2]}", "2.12" if release < (0, 6) else "2.13"


def _toree_options(options: SparkOptions) -> list[str]:
    """Return Toree's own options: TOREE_OPTS, else what its installer would have kept, and LAUNCH_OPTS."""
    name = "TOREE_OPTS" if options.env.get("TOREE_OPTS") else "__TOREE_OPTS__"
    return [*split_variable(options.env, name), *options.launch]


def _alternate(toree: list[str]) -> str:
    """Take `--alternate-sigint NAME` out of *toree* and return NAME, or the one that our kernelspecs name."""
    name = INTERRUPT
    while "--alternate-sigint" in toree:
        at = toree.index("--alternate-sigint")
        name = toree[at + 1] if at + 1 < len(toree) else name
        del toree[at : at + 2]
    if not hasattr(signal, f"SIG{name}"):
        raise LaunchError(f"TOREE_OPTS holds --alternate-sigint {name}", "name a signal, such as USR2")
    return name
