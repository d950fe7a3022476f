"""The clusters of a local lab: what a master's machine and a node run beside their SSH server, where it listens, what it reads.

All machines share this one's network, so each has an address of 127.0.0.0/8 of its own, by which clusters tell their members
apart, and free ports, chosen when it is made and kept in its machine.json.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from eg_distributed import kernelspecs
from lab import checkout
from lab.local import java, processes, spark
from lab.local.processes import Process
from lab.progress import Progress
from lab.spark import kinds
from lab.spark.kernelspecs import offered
from lab.specs import NodeSpec

DAEMONS: Final = str(Path(__file__).with_name("daemons.py"))
FOLDER: Final = "daemons"
"""The folder of a machine in which its daemons have all that is theirs."""

_IMAGES: Final = checkout.ROOT / "images"
_SMALL: Final = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xss512k", "-XX:-UsePerfData")
_OPENED: Final = tuple(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        *("java.io", "java.lang", "java.lang.reflect", "java.math", "java.net", "java.text", "java.util"),
        *("java.util.concurrent", "java.util.zip", "sun.security.util", "sun.security.x509"),
    )
)
"""Hadoop's own list."""
_YARN: Final = "org.apache.hadoop.yarn.server"


def prepare(daemons: Iterable[str], progress: Progress) -> None:
    """Have what *daemons* and their clusters' kernels need on this machine, or raise EnvironmentUnfit: nothing is begun."""
    wanted = kinds.of(daemons)
    if not wanted:
        return
    java.find()
    spark.ensure(progress)
    if "yarn" in wanted:
        spark.ensure_hadoop(progress)
    if "R" not in _languages():
        progress.note("no kernelspecs for R: this machine has no Rscript")


def kernel_python(wanted: Iterable[str]) -> Path | None:
    """Return the kernels' interpreter in a lab with the clusters *wanted*; None in a plain one."""
    return spark.python() if kinds.check(wanted) else None


def supervised(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Return what stands between a machine's init and its server: nothing unless its *facts* have daemons."""
    if not facts.get("ports"):
        return []
    return [sys.executable, "-I", "-S", DAEMONS, "run", str(folder / FOLDER), "--"]


@contextmanager
def supervisor_held(folder: Path) -> Iterator[list[Process]]:
    """Yield the supervisor of a machine's daemons, none in a plain one, stopped: what is killed meanwhile stays so.

    Afterwards it goes on, and starts the daemons again. Called by `reset`.
    """
    found = [
        process for process in processes.belonging(folder, [processes.main_process(folder)]) if _supervises(process)
    ]
    for process in found:
        process.signal(signal.SIGSTOP)
    try:
        yield found
    finally:
        for process in found:
            process.signal(signal.SIGCONT)


def _supervises(process: Process) -> bool:
    """Say so by its argv: the machine's init has the same words in its own, but further behind."""
    try:
        words = (processes.PROC / str(process.pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return DAEMONS.encode() in words[:5]


def sites(machines: Path, wanted: Iterable[str]) -> dict[kinds.Kind, kernelspecs.Site]:
    """Return where kernels find what, by cluster, for the masters that stand in *machines*."""
    found: dict[kinds.Kind, kernelspecs.Site] = {}
    for kind in kinds.check(wanted):
        master = Master(machines, kind)
        found[kind] = kernelspecs.Site(
            spark_home=str(spark.home()),
            master=f"spark://{master.endpoint(7077)}" if kind == "spark" else None,
            hadoop_conf_dir=str(master.hadoop_conf),
            python=str(spark.python()),
            env={"JAVA_HOME": master.java, "SPARK_CONF_DIR": str(master.spark_conf), "TOREE_JAR": str(spark.toree())},
        )
    return found


def kernels(machines: Path, wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the Spark kernelspecs of a lab with the clusters *wanted*: those of languages that this machine has."""
    return offered(wanted, sites(machines, wanted), _languages())


def _languages() -> tuple[str, ...]:
    return tuple(each for each in kernelspecs.LANGUAGES if each != "R" or shutil.which("Rscript"))


class Master:
    """A cluster's master as its machine.json tells of it; nothing but places if it has not been made yet."""

    def __init__(self, machines: Path, kind: kinds.Kind) -> None:
        self.folder = machines / kinds.MACHINES[kind]
        self.spark_conf = self.folder / "spark-conf"
        self.hadoop_conf = self.folder / "hadoop-conf"
        self.staging = self.folder / "staging"
        """What a file system of a cluster is elsewhere: all machines are this user's, on one disk."""
        try:
            facts = json.loads((self.folder / "machine.json").read_text())
        except (OSError, ValueError):
            facts = {}
        self.host = str(facts.get("host", ""))
        self.java = str(facts.get("java", ""))
        self._ports: Mapping[str, int] = facts.get("ports", {})

    def place(self, port: int) -> list[Any]:
        """Return host and port of what listens on *port* elsewhere."""
        return [self.host, self._ports.get(str(port), 0)]

    def endpoint(self, port: int) -> str:
        """Return HOST:PORT of what listens on *port* elsewhere."""
        return "{}:{}".format(*self.place(port))


def facts(spec: NodeSpec, folder: Path, machine: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return what machine.json says of the daemons of *spec* beside the *machine*'s other facts; nothing for a plain node.

    *kept* is what it said before: ports stay. Raises EnvironmentUnfit where there is no Java.
    """
    if not spec.daemons:
        return {}
    # As unique among all labs' machines as its SSH port is.
    host = f"127.{machine['port'] >> 8}.{machine['port'] & 255}.1"
    wanted = [str(port) for daemon in spec.daemons for port in kinds.LISTENS[daemon]]
    had: Mapping[str, int] = kept.get("ports", {})
    ports = (
        dict(had) if sorted(had) == sorted(wanted) else dict(zip(wanted, free_ports(host, len(wanted)), strict=True))
    )
    env = {**machine["env"], "SPARK_LOCAL_IP": host}
    found: dict[str, Any] = {"host": host, "ports": ports, "java": str(java.find()), "env": env}
    plan = _Plan(folder, {**machine, **found})
    daemons = {daemon: plan.daemon(daemon) for daemon in spec.daemons}
    files = {path: text for daemon in spec.daemons for path, text in plan.files(daemon).items()}
    files[str(folder / FOLDER / "daemons.json")] = json.dumps(daemons, indent=2)
    # Hadoop's daemons don't start on a machine whose own name resolves nowhere.
    hosts = str(folder / "hosts") if machine["isolation"] != "none" else ""
    return {**found, "hosts_file": hosts, "cluster_files": files}


def free_ports(host: str, count: int) -> list[int]:
    """Return ports that are free now on *host*, no two alike; as `processes.free_port`."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class _Plan:
    """What one machine's daemons are started with, as `daemons.py` wants it, and the files that they read."""

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        self._folder = folder
        # As /proc has it in a process's working directory.
        self._own = (folder / FOLDER).resolve()
        self._host, self._ports, self._java = machine["host"], machine["ports"], machine["java"]
        self._env = {**machine["env"], "JAVA_HOME": self._java}
        self._masters = {kind: Master(folder.parent, kind) for kind in kinds.KINDS}

    def daemon(self, name: str) -> dict[str, Any]:
        make = {
            "spark-master": self._spark_master,
            "spark-worker": self._spark_worker,
            "yarn-resourcemanager": self._resource_manager,
            "yarn-nodemanager": self._node_manager,
        }[name]
        return {"cwd": str(self._own), "listens": [self._host, self._port(kinds.LISTENS[name][-1])], **make()}

    def files(self, name: str) -> dict[str, str]:
        """Return what the clients of a master read as well, written where its machine is."""
        if name == "spark-master":
            return {str(self._masters["spark"].spark_conf / "spark-defaults.conf"): self._spark_defaults("spark")}
        if name == "yarn-resourcemanager":
            master = self._masters["yarn"]
            etc = _IMAGES / "yarn" / "etc"
            user = pwd.getpwuid(os.getuid()).pw_name
            return {
                str(master.spark_conf / "spark-defaults.conf"): self._spark_defaults("yarn"),
                str(master.hadoop_conf / "yarn-site.xml"): _xml(etc / "yarn-site.xml", self._yarn_site()),
                str(master.hadoop_conf / "core-site.xml"): _xml(
                    etc / "core-site.xml",
                    {
                        "hadoop.tmp.dir": str(self._own / "yarn" / "tmp"),
                        f"hadoop.proxyuser.{user}.hosts": "*",
                        f"hadoop.proxyuser.{user}.groups": "*",
                        "hadoop.http.staticuser.user": user,
                    },
                ),
                **{
                    str(master.hadoop_conf / name): (etc / name).read_text()
                    for name in ("capacity-scheduler.xml", "log4j.properties")
                },
            }
        return {}

    def _port(self, port: int) -> int:
        return int(self._ports[str(port)])

    def _work(self, name: str, *fresh: str) -> dict[str, Any]:
        folder = self._own / name
        return {"work": str(folder), "fresh": [str(folder / each) for each in fresh]}

    # -- Spark ---------------------------------------------------------------------------------------------------------

    def _spark(self, what: str, options: Iterable[str], *arguments: str, **env: str) -> dict[str, Any]:
        # Without retries: a daemon on another port than the one that is kept would be found by nobody.
        java_options = [*_SMALL, f"-Djava.io.tmpdir={self._own / 'spark' / 'tmp'}", "-Dspark.port.maxRetries=0"]
        java_options += ["-Dspark.worker.timeout=20", *options]
        return {
            "argv": [str(spark.home() / "bin" / "spark-class"), f"org.apache.spark.deploy.{what}", *arguments],
            "env": {
                **self._env,
                "SPARK_HOME": str(spark.home()),
                "SPARK_CONF_DIR": str(self._masters["spark"].spark_conf),
                "SPARK_DAEMON_MEMORY": "64m",
                "SPARK_DAEMON_JAVA_OPTS": " ".join(java_options),
                **env,
            },
        }

    def _spark_master(self) -> dict[str, Any]:
        recovery = self._own / "spark" / "recovery"
        options = ["-Dspark.deploy.recoveryMode=FILESYSTEM", f"-Dspark.deploy.recoveryDirectory={recovery}"]
        where = ["--host", self._host, "--port", str(self._port(7077)), "--webui-port", str(self._port(8080))]
        return {**self._work("spark", "tmp"), **self._spark("master.Master", options, *where)}

    def _spark_worker(self) -> dict[str, Any]:
        master = self._masters["spark"]
        work = self._own / "spark" / "work"
        where = ["--host", self._host, "--port", str(self._port(7078)), "--webui-port", str(self._port(8081))]
        where += ["--cores", "4", "--memory", "2g", "--work-dir", str(work), f"spark://{master.endpoint(7077)}"]
        options = ["-Dspark.worker.cleanup.enabled=true"]
        local = str(self._own / "spark" / "tmp")
        return {
            **self._work("spark", "work", "tmp"),
            **self._spark("worker.Worker", options, *where, SPARK_LOCAL_DIRS=local),
            "after": master.place(7077),
        }

    def _spark_defaults(self, kind: kinds.Kind) -> str:
        text = (_IMAGES / "spark" / "spark-defaults.conf").read_text()
        text = text.replace("/opt/spark/", f"{spark.home()}/")
        return text.replace("/shared/staging", str(self._masters[kind].staging))

    # -- YARN ----------------------------------------------------------------------------------------------------------

    def _yarn(self, memory: str, main: str, settings: Mapping[str, str]) -> dict[str, Any]:
        conf, files = self._masters["yarn"].hadoop_conf, self._own / "yarn"
        options = [
            f"-Xmx{memory}",
            *_SMALL,
            *_OPENED,
            f"-Djava.io.tmpdir={files / 'tmp'}",
            f"-Dyarn.log.dir={self._own}",
        ]
        own = {"hadoop.tmp.dir": str(files / "tmp"), **settings}
        return {
            "argv": [
                *(f"{self._java}/bin/java", *options, "-cp", f"{conf}:{spark.hadoop()}/*", f"{_YARN}.{main}"),
                *(word for name, value in own.items() for word in ("-D", f"{name}={value}")),
            ],
            "env": {**self._env, "HADOOP_CONF_DIR": str(conf)},
        }

    def _resource_manager(self) -> dict[str, Any]:
        return {**self._work("yarn", "tmp"), **self._yarn("128m", "resourcemanager.ResourceManager", {})}

    def _node_manager(self) -> dict[str, Any]:
        files = self._own / "yarn"
        settings = {
            "yarn.nodemanager.hostname": self._host,
            "yarn.nodemanager.address": f"{self._host}:{self._port(8041)}",
            "yarn.nodemanager.localizer.address": f"{self._host}:{self._port(8040)}",
            "yarn.nodemanager.webapp.address": f"{self._host}:{self._port(8042)}",
            "yarn.nodemanager.local-dirs": str(files / "local"),
            "yarn.nodemanager.log-dirs": str(files / "logs"),
            # Hadoop's own patience: yarn-site.xml has the clients'.
            "yarn.resourcemanager.connect.max-wait.ms": "900000",
        }
        return {
            **self._work("yarn", "local", "logs", "tmp"),
            **self._yarn("80m", "nodemanager.NodeManager", settings),
            "after": self._masters["yarn"].place(8031),
        }

    def _yarn_site(self) -> dict[str, str]:
        addresses = {
            "address": 8032,
            "scheduler.address": 8030,
            "resource-tracker.address": 8031,
            "admin.address": 8033,
        }
        addresses["webapp.address"] = 8088
        return {
            "yarn.resourcemanager.hostname": self._host,
            **{f"yarn.resourcemanager.{name}": f"{self._host}:{self._port(port)}" for name, port in addresses.items()},
            # A container is found by the mark, whatever became of its NodeManager, and binds to its node's address.
            "yarn.nodemanager.env-whitelist": ",".join(
                ("JAVA_HOME", "HADOOP_CONF_DIR", "PATH", "LANG", "TZ", "SPARK_LOCAL_IP", "LAB_NODE", processes.MARK)
            ),
        }


def _xml(path: Path, values: Mapping[str, str]) -> str:
    """Return the images' Hadoop configuration in *path* with *values* in place of its own, or beside them."""
    root = ET.parse(path).getroot()  # noqa: S314 -- a file of this checkout
    rest = dict(values)
    for entry in root.iter("property"):
        value = entry.find("value")
        name = entry.findtext("name", "")
        if value is not None and name in rest:
            value.text = rest.pop(name)
    for name, text in rest.items():
        entry = ET.SubElement(root, "property")
        ET.SubElement(entry, "name").text = name
        ET.SubElement(entry, "value").text = text
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
