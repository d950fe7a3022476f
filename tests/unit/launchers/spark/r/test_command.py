"""What becomes the R kernel, and what keeps the JVM beside it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eg_distributed.launchers.spark.errors import LaunchError
from eg_distributed.launchers.spark.options import SparkOptions, parse
from eg_distributed.launchers.spark.r import command as module
from eg_distributed.launchers.spark.r.command import backend_command, command
from eg_distributed.launchers.spark.reasons import stuck
from tests.until import block_until

FOLDER = Path(module.__file__).parent


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The launcher ignores SIGINT for what it becomes; here it becomes nothing."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A Spark, a Java and an R, as far as names go."""
    for name in ("spark/jars", "java/bin", "bin", "launcher"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "spark/jars/spark-core_2.12-3.5.9.jar").touch()
    for name in ("java/bin/java", "bin/Rscript", "bin/R-of-the-site"):
        (tmp_path / name).touch(mode=0o755)
    return tmp_path


def options(home: Path, opts: str = "--master yarn", mode: str = "lazy", **env: str) -> SparkOptions:
    """Return options for *home*."""
    known = {
        "SPARK_HOME": str(home / "spark"),
        "JAVA_HOME": str(home / "java"),
        "KERNEL_ID": "k",
        "PATH": str(home / "bin"),
    }
    arguments = ["-f", "/c.json", "--RemoteProcessProxy.spark-context-initialization-mode", mode]
    return parse(arguments, {**known, "SPARK_OPTS": opts, **env}, str(home / "launcher"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been started beside R."""
    found: list[list[str]] = []
    monkeypatch.setattr(module, "start_backend", lambda beside, options: found.append(beside))
    return found


def test_r_becomes_the_kernel_with_a_jvm_beside_it(home: Path, started: list[list[str]]) -> None:
    """The argv is R's; the JVM runs SparkR's backend as a class, for which YARN wants no sparkr.zip."""
    found = options(home, "--master yarn --name app")
    assert command(found) == [
        str(home / "bin/Rscript"),
        "--no-save",
        "--no-restore",
        str(home / "launcher/r/spark_r.R"),
        "/c.json",
    ]
    (jvm,) = started
    assert jvm[0] == str(home / "java/bin/java")
    assert jvm[-4:] == ["--class", "org.apache.spark.api.r.RBackend", "spark-internal", str(home / "launcher/rbackend")]
    assert "spark.r.numRBackendThreads=32" in jvm
    assert found.env["EG_R_MODE"] == "lazy"
    assert found.env["EG_R_NAME"] == "app"
    assert (found.env["EG_SPARK_PYTHON"], found.env["EG_SPARK_TELL"]) == (sys.executable, f"{home}/launcher/tell.py")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_without_a_session_there_is_no_jvm(home: Path, started: list[list[str]]) -> None:
    """Mode none: SparkR's own start finds the kernelspec's options, for whoever makes a session himself."""
    found = options(home, "--master yarn --conf 'spark.a=b c'", mode="none")
    command(found)
    assert started == []
    words = shlex.split(found.env["SPARKR_SUBMIT_ARGS"])
    assert words[-1] == "sparkr-shell"
    assert "spark.a=b c" in words


def test_sparklyr_starts_its_own_jvm(home: Path, started: list[list[str]]) -> None:
    """EG_R_SESSION=sparklyr: no JVM of ours, and the settings for sparklyr's."""
    found = options(home, "--master yarn --conf spark.a=b", EG_R_SESSION="sparklyr")
    command(found)
    assert started == []
    assert found.env["EG_R_MASTER"] == "yarn"
    assert "spark.a=b" in found.env["EG_R_CONF"].splitlines()


def test_sparklyr_is_no_way_around_whose_application_it_is(home: Path, started: list[list[str]]) -> None:
    """Its applications carry the kernel's tags; for another user there are none, since it would submit them as its own."""
    found = options(home, EG_R_SESSION="sparklyr")
    command(found)
    assert "spark.yarn.tags=eg-distributed-k,eg-distributed-attempt-k" in found.env["EG_R_CONF"].splitlines()
    impersonated = {"EG_IMPERSONATION_ENABLED": "True", "KERNEL_USERNAME": "alice"}
    with pytest.raises(LaunchError, match="would run the application as the login user; use EG_R_SESSION=builtin"):
        command(options(home, EG_R_SESSION="sparklyr", **impersonated))


def test_an_unknown_way_to_a_session_is_refused(home: Path, started: list[list[str]]) -> None:
    """EG_R_SESSION takes three names."""
    with pytest.raises(LaunchError, match="EG_R_SESSION is 'other'; use one of sparkr, sparklyr, builtin"):
        command(options(home, EG_R_SESSION="other"))


@pytest.mark.parametrize("name", ["spark.r.driver.command", "spark.r.command", "spark.sparkr.r.command"])
def test_the_settings_name_the_r_to_run(home: Path, started: list[list[str]], name: str) -> None:
    """Spark's own settings for the driver's Rscript, as Enterprise Gateway's kernelspec uses one."""
    assert command(options(home, f"--master yarn --conf {name}=R-of-the-site"))[0] == str(home / "bin/R-of-the-site")


def test_a_node_without_r_is_told_what_to_install(home: Path, started: list[list[str]]) -> None:
    """No Rscript: the error says what to install, and no JVM is started."""
    with pytest.raises(LaunchError, match=r"there is no R .* install R and its package IRkernel"):
        command(options(home, PATH="/nowhere"))
    assert started == []


def test_the_users_java_options_come_after_ours(home: Path) -> None:
    """Whoever wants another collector than ours says so."""
    argv = backend_command(options(home, "--master yarn --driver-java-options -XX:+UseG1GC"))
    assert argv.index("-XX:+UseG1GC") > argv.index("-XX:+UseSerialGC")


# -- what keeps the JVM --------------------------------------------------------------------------------------------------------

JVM = """
import os, socket, struct, sys, time
secret = b"s" * 8
server = socket.create_server(("127.0.0.1", 0))
content = struct.pack(">ii", 4711, server.getsockname()[1]) + struct.pack(">i", 0) + struct.pack(">i", 6000)
content += struct.pack(">i", len(secret)) + secret
open("rbackend.tmp", "wb").write(content)
os.rename("rbackend.tmp", "rbackend")
print("begun", flush=True)
held, _ = server.accept()
open("heard", "wb").write(held.recv(100))
os.rename("heard", "monitor")
held.recv(1)
open("in order", "w").close()
"""
"""Stands in for the JVM: the file that it writes, and the connection by which it learns of R's end."""


def keeper(folder: Path, code: str, opts: str = "--master spark://127.0.0.1:1") -> subprocess.Popen[bytes]:
    """Start R's stand-in, a shell that waits, with the keeper of a "JVM" that runs *code* as its child."""
    script = 'python="$1"; shift; "$python" "$0" $$ "$@" & cat'
    argv = [
        "sh",
        "-c",
        script,
        str(FOLDER / "backend.py"),
        sys.executable,
        str(folder),
        sys.executable,
        "-c",
        code,
    ]
    env = {name: value for name, value in os.environ.items() if name not in ("HADOOP_CONF_DIR", "YARN_CONF_DIR")}
    env.update(SPARK_HOME=str(folder), SPARK_OPTS=opts)
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=env)


def test_the_jvm_ends_with_r(tmp_path: Path) -> None:
    """The keeper holds the connection by which the JVM knows that R lives, and closes it when R was killed."""
    process = keeper(tmp_path, JVM)
    block_until("the JVM is connected to its keeper", (tmp_path / "monitor").exists)
    assert (tmp_path / "monitor").read_bytes() == struct.pack(">i", 9) + b"s" * 8 + b"\0"
    assert not (tmp_path / "in order").exists()
    process.kill()
    block_until("the JVM has ended in order", (tmp_path / "in order").exists)
    process.communicate(timeout=30)


def test_why_a_jvm_ended_is_kept_for_the_cell(tmp_path: Path) -> None:
    """Its code and its last words are in a file, without Java's stack, and all that it said is in the log."""
    process = keeper(tmp_path, r"import sys; print('no such setting\n\tat org.acme.Main(Main.java)'); sys.exit(3)")
    block_until("the JVM's end is written down", (tmp_path / "rbackend.ended").exists)
    said = (tmp_path / "rbackend.ended").read_text()
    assert said.startswith(f"{socket.gethostname()}: Spark's JVM ended at its start (exit code 3): ")
    assert "no such setting" in said
    assert "org.acme" not in said
    process.kill()
    assert b"no such setting\n\tat org.acme" in process.communicate(timeout=30)[1]


def test_a_jvm_that_finds_no_yarn_configuration_is_explained(tmp_path: Path) -> None:
    """Spark's JVM refuses to start without one, in words of Java; the cell is told what a Python or Scala kernel says."""
    process = keeper(tmp_path, "import sys; sys.exit('Exception in thread \"main\" HADOOP_CONF_DIR')", "--master yarn")
    block_until("the JVM's end is written down", (tmp_path / "rbackend.ended").exists)
    said = (tmp_path / "rbackend.ended").read_text()
    assert said.startswith(f"{socket.gethostname()}: there is no YARN configuration")
    assert said.endswith(
        "; set HADOOP_CONF_DIR in the kernelspec's env to the folder with the cluster's client configuration"
    )
    process.kill()
    process.communicate(timeout=30)


def test_r_is_told_that_the_master_is_away(tmp_path: Path) -> None:
    """What R asks is answered with host, cause and remedy; asked again, it is looked up again."""
    process = keeper(tmp_path, JVM)
    for number in ("1", "2"):
        (tmp_path / "rbackend.asked").write_text(number)
        answered(tmp_path, number)
        assert "the Spark master can't be reached (127.0.0.1:1:" in answer(tmp_path)
    process.kill()
    process.communicate(timeout=30)


def test_what_spark_said_is_explained_to_r(tmp_path: Path) -> None:
    """Why Spark made no session is answered with host, cause and remedy, as to a Python kernel."""
    process = keeper(tmp_path, JVM)
    said = "org.apache.spark.SparkException: x\nCaused by: java.io.IOException: User: lab is not allowed to impersonate alice"
    (tmp_path / "new").write_text(f"1\n{said}\n")
    (tmp_path / "new").rename(tmp_path / "rbackend.asked")
    answered(tmp_path, "1")
    assert "Spark could not make a session (spark://127.0.0.1:1): User: lab is not allowed" in answer(tmp_path)
    assert "allow the node's user to act for others (hadoop.proxyuser.*)" in answer(tmp_path)
    process.kill()
    process.communicate(timeout=30)


def test_r_is_told_that_no_task_runs(tmp_path: Path) -> None:
    """What R knows of executors is answered with the words of a Python kernel, and with the host."""
    process = keeper(tmp_path, JVM)
    (tmp_path / "new").write_text("1\nstuck\nfalse\nnode1:4711\n")
    (tmp_path / "new").rename(tmp_path / "rbackend.asked")
    answered(tmp_path, "1")
    assert answer(tmp_path) == f"1\n{socket.gethostname()}: {stuck(False, [], 'node1:4711')}\n"
    process.kill()
    process.communicate(timeout=30)


def answered(folder: Path, number: str) -> None:
    """Wait for the keeper's answer to the question *number*."""
    block_until(f"answer {number}", lambda: answer(folder).startswith(f"{number}\n"))


def answer(folder: Path) -> str:
    """Return what the keeper answered last."""
    path = folder / "rbackend.answer"
    return path.read_text() if path.exists() else ""
