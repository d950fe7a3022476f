"""The launcher as a node runs it: from a folder of its own, by whatever Python the node has."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eg_distributed.launcher_files import launcher_files
from tests.unit.agents import DEADLINE, pythons


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The launcher's files as an agent unpacks them."""
    for name, text in launcher_files().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
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
    assert done.stdout.replace("'local[2]'", "local[2]") == f"{folder}/python/kernel.py|-f|/c.json|{said}"


def test_what_is_wrong_is_the_last_word(folder: Path) -> None:
    """An error is one line on stderr, with the host and the remedy, and exit code 1."""
    done = launched(folder, "python3", "python", "-f", "/c.json", SPARK_HOME="/nowhere")
    assert done.returncode == 1
    assert "there is no Spark at SPARK_HOME=/nowhere" in done.stderr.splitlines()[-1]
    assert launched(folder, "python3", "julia").stderr.endswith("name one of python, scala, R in argv\n")


@pytest.mark.parametrize("python", pythons("3.9", "3.13"))
def test_scripts_of_a_language_find_what_all_share(folder: Path, python: str) -> None:
    """A script in a language's folder imports the common files, from wherever the launcher's folder is."""
    argv = [python, str(folder / "tell.py"), "explain"]
    env = {"PATH": "/usr/bin:/bin", "SPARK_HOME": "/opt/spark", "SPARK_OPTS": "--master local[2]"}
    said = "java.io.IOException: User: lab is not allowed to impersonate alice"
    done = subprocess.run(argv, input=said, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    assert "Spark could not make a session (local[2]): User: lab is not allowed" in done.stdout


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            "false\nnode1:4711\n",
            "its executors don't reach the driver at node1:4711; wait, end other applications, or ask for less",
        ),
        (
            "true\nnode1:4711\n",
            "no executor, no free core or no memory for this application; wait, end other applications",
        ),
        ("true\nnode1:4711\nlost\nexit 52\n", "executors come and go, 2 so far, the last: exit 52"),
    ],
)
def test_drivers_that_are_no_python_say_why_no_task_runs(folder: Path, asked: str, told: str) -> None:
    """What a JVM knows of executors becomes one line: the host, the cause as far as it is known, the remedy."""
    argv = ["python3", str(folder / "tell.py"), "stuck"]
    env = {"PATH": "/usr/bin:/bin", "SPARK_HOME": "/opt/spark", "SPARK_OPTS": "--master local[2]"}
    done = subprocess.run(argv, input=asked, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{socket.gethostname()}: no task runs: ")
    assert told in line


@pytest.mark.parametrize("language", ["scala", "R"])
def test_drivers_that_are_no_python_say_what_is_behind_a_jobs_error(tmp_path: Path, language: str) -> None:
    """Of an error that a cell ended with, a fault of the installation becomes a line, as in Python; any other error none."""
    for name, text in launcher_files(language).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    asked = {
        "java.lang.RuntimeException: x\nCaused by: ERROR XSDB6: Another instance of Derby may have \xe4": (
            "another kernel or program has opened the same metastore"
        ),
        "org.apache.spark.sql.AnalysisException: [LOCATION_ALREADY_EXISTS] Cannot name": "the table's folder is there",
        "Reason: Command exited with code 52": "an executor ran out of Java memory (exit code 52); have them get more",
        "Container from a bad node. Exit status: 137.": "an executor was killed (exit code 137",
        "java.lang.ArithmeticException: / by zero": "",
    }
    for said, told in asked.items():
        done = subprocess.run(
            ["python3", str(tmp_path / "tell.py"), "advise"],
            input=said.encode("latin-1"),  # no UTF-8: a kernel's words may be anything
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.decode().splitlines()
        assert [line.startswith(f"{socket.gethostname()}: {told}") for line in lines] == ([True] if told else [])


def test_after_the_end_temporary_files_go(folder: Path) -> None:
    """What a killed driver left in its folder is removed; a start's that never came to be is no error."""
    scratch = Path("/tmp/eg-distributed-spark-unit0test")
    (scratch / "blockmgr-1").mkdir(parents=True)
    argv = ["python3", str(folder / "spark_end.py")]
    env = {"PATH": "/usr/bin:/bin", "EG_ATTEMPT": "unit0test", "SPARK_HOME": "/opt/spark", "TMPDIR": "/tmp"}
    assert subprocess.run(argv, env=env, timeout=DEADLINE, check=False).returncode == 0
    assert not scratch.exists()
    assert subprocess.run(argv, env={**env, "SPARK_HOME": ""}, timeout=DEADLINE, check=False).returncode == 0


class ResourceManager(BaseHTTPRequestHandler):
    """One that has nobody answering at first, then an application that waits, and that has ended once it is told to."""

    silent, killed = 2, False

    def do_GET(self) -> None:
        known = type(self)
        if known.silent:
            known.silent -= 1
            self.send_error(503)
            return
        state = "KILLED" if known.killed else "ACCEPTED"
        self._answer({"apps": {"app": [{"id": "application_1_1", "state": state, "user": getpass.getuser()}]}})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).killed = True
        self._answer({})

    def _answer(self, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a ResourceManager's REST interface."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ResourceManager) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_after_the_end_the_application_and_its_staging_folder_go(folder: Path, web: int) -> None:
    """An application that waits is ended, even if nobody answered at first; so is its folder, where Spark has it for its user."""
    (folder / "yarn-site.xml").write_text(
        "<configuration><property><name>yarn.resourcemanager.webapp.address</name>"
        f"<value>127.0.0.1:{web}</value></property></configuration>"
    )
    staging = folder / "staging" / getpass.getuser() / ".sparkStaging" / "application_1_1"
    staging.mkdir(parents=True)
    env = {
        "PATH": "/usr/bin:/bin",
        "EG_ATTEMPT": "unit1test",
        "SPARK_HOME": "/opt/spark",
        "HADOOP_CONF_DIR": str(folder),
        "SPARK_OPTS": f"--master yarn --conf spark.yarn.stagingDir=file://{folder}/staging",
    }
    done = subprocess.run(
        ["python3", str(folder / "spark_end.py")],
        env=env,
        timeout=DEADLINE,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ended application_1_1 (ACCEPTED) after its driver" in done.stderr
    assert not staging.exists()
    assert staging.parent.exists()
