"""The launcher as a node runs it: from a folder of its own, by whatever Python the node has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from eg_distributed.shipping import launcher_files
from tests.unit.agents import DEADLINE, pythons


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The launcher's files as an agent unpacks them."""
    for name, text in launcher_files().items():
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def launched(folder: Path, python: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher with nothing but *env* in its environment."""
    argv = [python, str(folder / "spark.py"), *arguments]
    return subprocess.run(
        argv, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


@pytest.mark.parametrize("python", pythons("3.9", "3.13"))
def test_the_launcher_becomes_the_kernel(folder: Path, python: str) -> None:
    """It execs the driver's interpreter with ipykernel's arguments and pyspark's options, and nothing of a shell's."""
    (folder / "spark" / "jars").mkdir(parents=True)
    (folder / "spark" / "jars" / "spark-core_2.12-3.5.9.jar").touch()
    driver = folder / "driver"
    driver.write_text('#!/bin/sh\nprintf "%s|" "$@"\nprintf "%s" "$PYSPARK_SUBMIT_ARGS"\n')
    driver.chmod(0o755)
    done = launched(
        folder,
        python,
        "python",
        "-f",
        "/c.json",
        SPARK_HOME=str(folder / "spark"),
        PYSPARK_PYTHON=str(driver),
        KERNEL_ID="k-1",
        SPARK_OPTS="--master local[2]",
        KERNEL_EXTRA_SPARK_OPTS="--conf 'spark.x=$(id) `id` ;'",
    )
    assert done.returncode == 0, done.stderr
    said = "--master local[2] --conf 'spark.x=$(id) `id` ;' --name k-1 pyspark-shell"
    assert done.stdout.replace("'local[2]'", "local[2]") == f"{folder}/spark_kernel.py|-f|/c.json|{said}"


def test_what_is_wrong_is_the_last_word(folder: Path) -> None:
    """An error is one line on stderr, with the host and the remedy, and exit code 1."""
    done = launched(folder, "python3", "python", "-f", "/c.json", SPARK_HOME="/nowhere")
    assert done.returncode == 1
    assert "there is no Spark at SPARK_HOME=/nowhere" in done.stderr.splitlines()[-1]
    assert launched(folder, "python3", "julia").stderr.endswith("name one of python, scala, R in argv\n")


def test_after_the_end_temporary_files_go(folder: Path) -> None:
    """What a killed driver left in its folder is removed; a start's that never came to be is no error."""
    scratch = Path("/tmp/eg-distributed-spark-unit0test")
    (scratch / "blockmgr-1").mkdir(parents=True)
    argv = ["python3", str(folder / "spark_end.py")]
    env = {"PATH": "/usr/bin:/bin", "EG_ATTEMPT": "unit0test", "SPARK_HOME": "/opt/spark", "TMPDIR": "/tmp"}
    assert subprocess.run(argv, env=env, timeout=DEADLINE, check=False).returncode == 0
    assert not scratch.exists()
    assert subprocess.run(argv, env={**env, "SPARK_HOME": ""}, timeout=DEADLINE, check=False).returncode == 0
