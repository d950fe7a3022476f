"""Python: the kernel is ipykernel in the driver's interpreter; Spark's JVM comes later, as its child (`kernel.py`)."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from ..errors import LaunchError
from ..java import core_version
from ..options import SparkOptions
from .py_files import check

_WORKERS = ("spark.pyspark.python", "PYSPARK_PYTHON")
"""Where the executors' interpreter is named, which is the driver's, too, where nothing else is."""


def command(options: SparkOptions) -> list[str]:
    """Return the argv of the kernel, and put into its environment what pyspark reads there; raises LaunchError."""
    env = options.env
    if options.mode != "none":
        core_version(options.spark_home)  # a wrong SPARK_HOME is an error of the start, not of the first cell
    check(options.settings, os.getcwd())
    python = driver_python(options)
    env["PYSPARK_SUBMIT_ARGS"] = shlex.join([*options.submit, "pyspark-shell"])
    env["EG_SPARK_MODE"] = options.mode
    env["EG_SPARK_KERNEL_CLASS"] = options.kernel_class
    env.setdefault("PYTHONHASHSEED", "0")  # as spark-submit does: hashes must agree between the driver and its workers
    added = [path for path in python_paths(options.spark_home) if os.path.exists(path)]
    if added:
        env["PYTHONPATH"] = os.pathsep.join([*filter(None, [env.get("PYTHONPATH")]), *added])
    return [python, str(Path(options.folder) / "python" / "kernel.py"), "-f", options.connection_file, *options.launch]


def driver_python(options: SparkOptions) -> str:
    """Return the driver's interpreter, by the names and in the order in which Spark looks for it; raises LaunchError."""
    env, settings = options.env, options.settings
    named = {
        "spark.pyspark.driver.python": settings.get("spark.pyspark.driver.python"),
        "spark.pyspark.python": settings.get("spark.pyspark.python"),
        "PYSPARK_DRIVER_PYTHON": env.get("PYSPARK_DRIVER_PYTHON"),
        "PYSPARK_PYTHON": env.get("PYSPARK_PYTHON"),
    }
    where, python = next(((name, value) for name, value in named.items() if value), ("", "python3"))
    if shutil.which(python or "", path=env.get("PATH", os.defpath)) is None:
        said = f"{where}={python}" if where else "python3"
        if where in _WORKERS and not os.path.isabs(python or ""):
            # Of an archive (--archives env.tar.gz#environment): it is unpacked where executors work, and nowhere else.
            raise LaunchError(
                f"the driver's interpreter is not there ({said} is the executors')",
                "set PYSPARK_DRIVER_PYTHON in the kernelspec's env to the driver's own, same minor version, with ipykernel",
            )
        raise LaunchError(
            f"the driver's interpreter is not there ({said})",
            "set PYSPARK_PYTHON in the kernelspec's env to an interpreter with ipykernel, at the same path on every node",
        )
    return python or "python3"


def python_paths(spark_home: str) -> list[str]:
    """Return what Python needs on its path to import the pyspark of *spark_home*.

    Nothing if that is the package itself, as pip installs it: its interpreter finds it (else `session.py` sees to it).
    """
    home = Path(spark_home)
    if (home / "__init__.py").exists():
        return []
    return [str(home / "python"), *archives(spark_home, "py4j-*.zip")]


def archives(spark_home: str, pattern: str) -> list[str]:
    """Return the archives of Python packages that a Spark brings along, which executors import, too."""
    return sorted(str(path) for path in (Path(spark_home) / "python" / "lib").glob(pattern))
