"""What only the node knows of a driver: its name, its ports, its temporary folder, its JVM."""

from __future__ import annotations

import os
import pwd
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.launchers.spark import checks, driver, end
from eg_distributed.launchers.spark.checks import check_cluster
from eg_distributed.launchers.spark.driver import driver_host, scratch_folder, settle
from eg_distributed.launchers.spark.errors import LaunchError
from eg_distributed.launchers.spark.java import core_version, is_plain, submit_command
from eg_distributed.launchers.spark.options import SparkOptions, parse
from eg_distributed.launchers.spark.python.command import command
from eg_distributed.launchers.spark.yarn import ResourceManagers


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A SPARK_HOME as far as names go, and a Java."""
    for name in ("spark/jars", "spark/conf", "spark/python/lib", "java/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "spark/jars/spark-core_2.12-3.5.9.jar").touch()
    (tmp_path / "java/bin/java").touch(mode=0o755)
    return tmp_path


def options(home: Path, opts: str = "--master spark://127.0.0.1:7077", **env: Any) -> SparkOptions:
    """Return options for *home*."""
    known = {"SPARK_HOME": str(home / "spark"), "JAVA_HOME": str(home / "java"), "KERNEL_ID": "k", "PATH": os.defpath}
    return parse(["-f", "/c.json"], {**known, "SPARK_OPTS": opts, **env}, "/launcher")


def test_the_jvm_is_started_without_another_one(home: Path) -> None:
    """Java itself, with Spark's memory, options and classes; spark-submit where somebody has a say in spark-env.sh."""
    found = options(
        home,
        "--master yarn --driver-memory 700m --conf 'spark.driver.extraJavaOptions=-Da=\"b c\"'",
        HADOOP_CONF_DIR="/h",
    )
    argv = submit_command(
        found, main_class="M", resource="x.jar", args=["1"], extra={"spark.driver.defaultJavaOptions": "-Dz"}
    )
    assert argv[:3] == [str(home / "java/bin/java"), "-cp", f"{home}/spark/conf/:{home}/spark/jars/*:/h/"]
    assert argv[3:6] == ["-Xmx700m", "-Dz", "-Da=b c"]
    assert argv[-4:] == ["--class", "M", "x.jar", "1"]
    assert "org.apache.spark.deploy.SparkSubmit" in argv
    (home / "spark/conf/spark-env.sh").write_text("# nothing\n\n")
    assert is_plain(found)
    (home / "spark/conf/spark-env.sh").write_text("export SPARK_DIST_CLASSPATH=$(hadoop classpath)\n")
    argv = submit_command(found, main_class=None, resource="pyspark-shell")
    assert argv[0] == f"{home}/spark/bin/spark-submit"
    assert argv[-1] == "pyspark-shell"


def test_a_release_that_is_not_known_starts_itself(home: Path) -> None:
    """A Spark whose own list of Java options we don't know is started by its own spark-submit."""
    (home / "spark/jars/spark-core_2.12-3.5.9.jar").rename(home / "spark/jars/spark-core_2.13-4.3.0.jar")
    assert core_version(str(home / "spark")) == ("4.3.0", "2.13")
    assert not is_plain(options(home))


def test_what_is_no_spark_and_no_java(home: Path) -> None:
    """A wrong SPARK_HOME, one without Spark, a missing Java, and -Xmx among Java's options: each with its remedy."""
    with pytest.raises(
        LaunchError, match=r"there is no Spark at SPARK_HOME=/nowhere .*; install Spark there, or set SPARK_HOME"
    ):
        core_version("/nowhere")
    (home / "spark/jars/spark-core_2.12-3.5.9.jar").unlink()
    with pytest.raises(LaunchError, match="holds no Spark"):
        core_version(str(home / "spark"))
    (home / "spark/jars/spark-core_2.12-3.5.9.jar").touch()
    with pytest.raises(LaunchError, match=r"there is no Java .*/no/bin/java can't be run.; install a JRE"):
        submit_command(options(home, JAVA_HOME="/no"), main_class=None, resource="x")
    with pytest.raises(LaunchError, match="use --driver-memory"):
        submit_command(options(home, "--driver-java-options -Xmx9g"), main_class=None, resource="x")


def test_the_python_kernel_comes_first(home: Path) -> None:
    """The interpreter runs ipykernel, with the options where pyspark reads them."""
    found = options(home, PYSPARK_PYTHON="/usr/bin/env", PYTHONPATH="/own")
    assert command(found) == ["/usr/bin/env", "/launcher/python/kernel.py", "-f", "/c.json"]
    assert found.env["PYSPARK_SUBMIT_ARGS"] == "--master spark://127.0.0.1:7077 --name k pyspark-shell"
    assert found.env["PYTHONPATH"] == f"/own:{home}/spark/python"
    assert found.env["PYTHONHASHSEED"] == "0"
    with pytest.raises(LaunchError, match=r"interpreter is not there .PYSPARK_PYTHON=/nowhere/python."):
        command(options(home, PYSPARK_PYTHON="/nowhere/python"))


def test_an_interpreter_in_an_archive_is_the_executors(home: Path) -> None:
    """Where PYSPARK_PYTHON is a path in an archive, the driver needs an interpreter of its own, which is what is said."""
    with pytest.raises(
        LaunchError, match=r"PYSPARK_PYTHON=\./environment/bin/python is the exec.*set PYSPARK_DRIVER_PYTHON"
    ):
        command(options(home, PYSPARK_PYTHON="./environment/bin/python"))


def test_a_missing_py_file_ends_the_start(home: Path) -> None:
    """A local file that --py-files names and that is not there is named; those of HDFS and the web are Spark's to find."""
    found = options(home, f"--py-files hdfs:///x.py,file://{home}/no.zip", PYSPARK_PYTHON="/usr/bin/env")
    with pytest.raises(
        LaunchError, match=rf"there is no file {home}/no.zip, which --py-files names; correct --py-files"
    ):
        command(found)
    (home / "no.zip").touch()
    assert command(found)


def test_the_drivers_name_is_one_that_reaches_it(home: Path) -> None:
    """The address on the way to the master counts: a name is taken only if it means that one."""
    assert driver_host(options(home, EG_NODE="localhost")) == "localhost"
    assert driver_host(options(home, EG_NODE="no-such-name.invalid")) in (
        "127.0.0.1",
        "localhost",
        socket.gethostname(),
    )
    found = settle(options(home, EG_NODE="localhost"))
    assert found.settings["spark.driver.bindAddress"] == "localhost"
    own = settle(options(home, "--master spark://127.0.0.1:7077 --conf spark.driver.host=me"))
    assert own.settings["spark.driver.host"] == "me"


def test_ports_are_within_the_gateways_range(home: Path) -> None:
    """A firewall that lets a range through lets the driver through."""
    found = settle(options(home, EG_PORT_RANGE="43000..43999")).settings
    ports = [int(found[f"spark.{name}"]) for name in ("driver.port", "driver.blockManager.port", "ui.port")]
    assert len(set(ports)) == 3
    assert all(43000 <= port <= 43999 - int(found["spark.port.maxRetries"]) for port in ports)
    assert "spark.driver.port" not in settle(options(home, EG_PORT_RANGE="0..0")).settings
    small = settle(options(home, EG_PORT_RANGE="43000..43010")).settings
    ports = [int(small[f"spark.{name}"]) for name in ("driver.port", "driver.blockManager.port", "ui.port")]
    assert all(43000 <= port <= 43010 - int(small["spark.port.maxRetries"]) for port in ports)
    with pytest.raises(LaunchError, match=r"EG_PORT_RANGE=43000\.\.43001 has no 3 free ports .*; widen the range"):
        settle(options(home, EG_PORT_RANGE="43000..43001"))


def test_a_cluster_by_a_loopback_name_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that this node's /etc/hosts has at 127.0.1.1 says nothing of the address that others reach; `localhost` does."""
    monkeypatch.setattr(driver, "_addresses", lambda name: {"m": ["127.0.1.1"]}.get(name, [name] if name else []))
    found = driver_host(options(home, "--master spark://m:7077"))
    assert not found.startswith("127.") or found == driver._address_towards("")
    assert driver_host(options(home, "--master spark://127.0.0.1:7077")) == "127.0.0.1"


def test_a_name_that_also_means_loopback_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /etc/hosts has 127.0.1.1 and the real address for one name, the driver is known by the address, and listens."""
    known = {"node1": ["127.0.1.1", "10.9.9.9"], "m": ["10.9.9.1"]}
    monkeypatch.setattr(driver, "_addresses", lambda name: known.get(name, [name] if name else []))
    monkeypatch.setattr(driver, "_address_towards", lambda host: "10.9.9.9")
    monkeypatch.setattr("socket.gethostname", lambda: "node1")
    found = settle(options(home, "--master spark://m:7077", EG_NODE="node1")).settings
    assert (found["spark.driver.host"], found["spark.driver.bindAddress"]) == ("10.9.9.9", "0.0.0.0")
    assert not driver._is_loopback("node1")
    assert not driver._is_loopback("")


def test_temporary_files_have_a_folder_of_the_start(home: Path) -> None:
    """One folder a start, so that it can be removed after it, with Hive's own files in it; a user's or a site's choice stays."""
    found = options(home, EG_ATTEMPT="abc123")
    settled = settle(found)
    folder = scratch_folder(found.env)
    assert folder is not None
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert settled.env["SPARK_LOCAL_DIRS"] == str(folder)
        own = f"-Djava.io.tmpdir={folder} -Dderby.system.home={folder}"
        assert settled.env["SPARK_SUBMIT_OPTS"] == own
        (home / "spark/conf/hive-site.xml").touch()
        sites = settle(options(home, EG_ATTEMPT="abc123")).env["SPARK_SUBMIT_OPTS"]
        assert "derby" not in sites  # the site says where tables' names are
    finally:
        folder.rmdir()
    assert scratch_folder({"EG_ATTEMPT": "../../etc"}) is None


@pytest.mark.parametrize(
    ("opts", "env"),
    [
        ("", {"SPARK_LOCAL_DIRS": "/big"}),
        ("--conf spark.local.dir=/big", {}),
        ("--conf spark.local.dir=/big", {"KERNEL_EXTRA_SPARK_OPTS": "--conf spark.local.dir=/bigger"}),
    ],
)
@pytest.mark.parametrize("master", ["spark://127.0.0.1:7077", "yarn", "local[*]"])
def test_another_place_for_large_files_is_none_for_small_ones(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master: str, opts: str, env: dict[str, str]
) -> None:
    """Where a kernelspec or a client says where shuffled data goes, Hive's and Java's own files are the kernel's all the same."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    submit = "-Dderby.system.home=/theirs"
    found = settle(options(home, f"--master {master} {opts}", EG_ATTEMPT="abc", SPARK_SUBMIT_OPTS=submit, **env))
    folder = tmp_path / "eg-distributed-spark-abc"
    assert folder.is_dir()
    assert found.env.get("SPARK_LOCAL_DIRS") == env.get("SPARK_LOCAL_DIRS")
    own = f"-Djava.io.tmpdir={folder} -Dderby.system.home={folder}"
    assert found.env["SPARK_SUBMIT_OPTS"] == f"{own} {submit}"  # what is said later wins


def test_containers_get_what_the_instructions_promise(home: Path) -> None:
    """SPARK_YARN_USER_ENV reaches the application master and executors, though Spark has forgotten it."""
    given = "PYTHONUSERBASE=/home/yarn/.local,PYTHONPATH=/a:/b,PATH=/opt/conda/bin:/bin"
    found = settle(options(home, "--master yarn", SPARK_YARN_USER_ENV=given)).settings
    assert found["spark.executorEnv.PYTHONPATH"] == "/a:/b"
    assert found["spark.yarn.appMasterEnv.PATH"] == "/opt/conda/bin:/bin"


# -- clusters ----------------------------------------------------------------------------------------------------------


def configuration(folder: Path, **values: str) -> dict[str, str]:
    """Write a yarn-site.xml (`_` for `.`), and return the environment that names it."""
    rows = "".join(
        f"<property><name>{name.replace('__', '-').replace('_', '.')}</name><value>{value}</value></property>"
        for name, value in values.items()
    )
    (folder / "yarn-site.xml").write_text(f"<?xml version='1.0'?><configuration>{rows}</configuration>")
    return {"HADOOP_CONF_DIR": str(folder)}


def test_where_the_resource_manager_is(tmp_path: Path) -> None:
    """From its host name alone, from addresses with references, or several that stand in for each other."""
    found = ResourceManagers.of(configuration(tmp_path, yarn_resourcemanager_hostname="rm.test"))
    assert (found.addresses, found.webs) == ([("rm.test", 8032)], ["http://rm.test:8088"])
    env = configuration(
        tmp_path,
        yarn_resourcemanager_ha_enabled="true",
        yarn_resourcemanager_ha_rm__ids="a, b",
        yarn_resourcemanager_hostname_a="a.test",
        yarn_resourcemanager_hostname_b="b.test",
        yarn_resourcemanager_webapp_address_b="${yarn.resourcemanager.hostname.b}:9999",
    )
    found = ResourceManagers.of(env)
    assert found.addresses == [("a.test", 8032), ("b.test", 8032)]
    assert found.webs == ["http://a.test:8088", "http://b.test:9999"]
    assert ResourceManagers.of({"HADOOP_CONF_DIR": "/nowhere"}).addresses == []


@pytest.fixture
def answering() -> Iterator[int]:
    """The port of a master, as far as it says something when it is asked."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            assert self.request.recv(1)
            self.request.sendall(b"?")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_master_that_refuses(home: Path, answering: int) -> None:
    """A port where nobody listens is said at once; one that answers is enough, whichever of several it is."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        up, down = answering, closed.getsockname()[1]
        with pytest.raises(
            LaunchError, match=f"the Spark master can't be reached .127.0.0.1:{down}: Connection refused"
        ):
            check_cluster(options(home, f"--master spark://127.0.0.1:{down}"))
        check_cluster(options(home, f"--master spark://127.0.0.1:{down},127.0.0.1:{up}"))
    with pytest.raises(LaunchError, match="names no host and port; write spark://HOST:7077"):
        check_cluster(options(home, "--master spark://somewhere"))


def test_a_master_that_is_silent(home: Path, answering: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes connections and says nothing is as good as none; several are asked at once, and take no longer."""
    monkeypatch.setattr(checks, "_ANSWER_TIMEOUT", 0.5)
    with socket.socket() as stopped:
        stopped.bind(("127.0.0.1", 0))
        stopped.listen(64)
        silent = f"127.0.0.1:{stopped.getsockname()[1]}"
        with pytest.raises(LaunchError, match=f"{silent}: it takes connections, but says nothing for 0.5 s"):
            check_cluster(options(home, f"--master spark://{silent}"))
        began = time.monotonic()
        check_cluster(options(home, f"--master spark://{','.join([silent] * 20)},127.0.0.1:{answering}"))
        assert time.monotonic() - began < 5


def test_where_spark_env_says_yarn_is(home: Path) -> None:
    """Sites whose spark-env.sh alone names the configuration have it taken from there; what the kernelspec says wins."""
    (home / "spark/bin").mkdir()
    load = '. "$SPARK_HOME/conf/spark-env.sh"; echo noise\n'
    (home / "spark/bin/load-spark-env.sh").write_text(load)
    configuration(home, yarn_resourcemanager_address="127.0.0.1:1")
    (home / "spark/conf/spark-env.sh").write_text(f'export HADOOP_CONF_DIR="${{HADOOP_CONF_DIR:-{home}}}"\n')
    found = options(home, "--master yarn")
    assert found.env["HADOOP_CONF_DIR"] == str(home)
    with pytest.raises(LaunchError, match=r"YARN's ResourceManager can't be reached .127\.0\.0\.1:1: Conn"):
        check_cluster(found)
    assert options(home, "--master yarn", HADOOP_CONF_DIR="/own").env["HADOOP_CONF_DIR"] == "/own"
    assert "HADOOP_CONF_DIR" not in options(home, "--master spark://m:7077").env
    (home / "spark/conf/spark-env.sh").write_text("exit 1\n")
    assert "HADOOP_CONF_DIR" not in options(home, "--master yarn").env


def test_yarn_without_a_configuration(home: Path) -> None:
    """Without a configuration there is no cluster; what to set is said."""
    with pytest.raises(LaunchError, match=r"there is no YARN configuration .*; set HADOOP_CONF_DIR"):
        check_cluster(options(home, "--master yarn"))


def test_what_is_asked_of_yarn_is_asked_as_the_process(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application is ended, and its staging folder removed, as the login user, whatever USER says."""
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setenv("USER", "alice")
    own = pwd.getpwuid(os.getuid()).pw_name
    asked: list[str] = []

    def ask(self: ResourceManagers, path: str, body: Any = None) -> dict[str, Any]:
        asked.append(path)
        return {}

    monkeypatch.setattr(ResourceManagers, "ask", ask)
    assert ResourceManagers([], []).kill("application_1_1")
    assert asked == [f"apps/application_1_1/state?user.name={own}"]
    said = tmp_path / "said"
    (home / "java/bin/java").write_text(f'#!/bin/sh\necho "$HADOOP_PROXY_USER:" "$@" >> {said}\n')
    found = options(home, "--master yarn", HADOOP_CONF_DIR=str(tmp_path))
    (tmp_path / "core-site.xml").write_text(
        "<configuration><property><name>fs.defaultFS</name><value>hdfs://h</value></property></configuration>"
    )
    for user in (own, "alice"):
        end._remove_staging(found, "application_1_1", user)
    first, second = said.read_text().splitlines()
    assert first.startswith(": ")
    assert first.endswith(" -skipTrash .sparkStaging/application_1_1")
    assert second.startswith("alice: ")
    assert second.endswith(" -skipTrash /user/alice/.sparkStaging/application_1_1")
