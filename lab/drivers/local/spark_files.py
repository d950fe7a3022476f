"""Where local machines have Spark, Toree and Hadoop's jars: in this user's cache, from what images are filled with."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

from lab.drivers import artefacts, checkout
from lab.drivers.local import environments
from lab.progress import Progress
from lab.state import cache_root, locked

COMPILE_SECONDS = 300.0


def environment() -> Path:
    """Return where the kernels' environment with pyspark and Toree is, whether it has been made or not."""
    parts = [
        ("python", environments.PYTHONS["spark"].encode()),
        ("node", checkout.requirements("node")),
        ("archive", artefacts.python_archive().name.encode()),
    ]
    return cache_root() / "environments" / f"spark-{checkout.digest(parts)}"


def python() -> Path:
    """Return its interpreter."""
    return environment() / "bin" / "python"


def home() -> Path:
    """Return SPARK_HOME."""
    return environment() / "spark"


def toree() -> Path:
    """Return Toree's jar."""
    return environment() / "toree-assembly.jar"


def ensure(progress: Progress) -> None:
    """Make the kernels' environment with pyspark and Toree, unless it is there. Raises LabError."""
    if (environment() / ".complete").exists():
        return
    with locked("images", what="making Spark's archive"):
        archive = artefacts.python(None, progress)["python.tar"]

    def fill(made: Path) -> None:
        packages = next(made.glob("lib/python*/site-packages"))
        with tarfile.open(archive) as tar:
            tar.extractall(packages, filter="data")
        argv = [
            str(made / "bin" / "python"),
            "-m",
            "compileall",
            "-q",
            str(packages / "pyspark"),
            str(packages / "py4j"),
        ]
        subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_SECONDS, check=False)
        # Under names without Python's version: kernelspecs and plans name them before there is an interpreter.
        (made / "spark").symlink_to(packages / "pyspark")
        (made / "toree-assembly.jar").symlink_to(next(packages.glob("toree/lib/toree-assembly-*.jar")))

    environments.make(environment(), "spark", checkout.requirements("node"), progress, fill)


def hadoop() -> Path:
    """Return the folder of Hadoop's jars, whether they are there or not."""
    return artefacts.hadoop_archive().with_suffix("")


def ensure_hadoop(progress: Progress) -> None:
    """Unpack Hadoop's jars, fetched by this machine's Maven where the cache has none. Raises LabError."""
    if hadoop().is_dir():
        return
    with locked("images", what="making Hadoop's archive"):
        archive = artefacts.hadoop_here(progress)
        partial = hadoop().with_name(f"{hadoop().name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        if not hadoop().is_dir():
            partial.rename(hadoop())
