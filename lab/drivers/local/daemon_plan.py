"""What a local machine's daemons are started with, and the configuration that they and their clients read."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from lab.drivers import checkout
from lab.drivers.local import processes, spark_files
from lab.topology import daemons as kinds

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


class Master:
    """A cluster's master as its machine.json tells of it; nothing but places if it has not been made yet."""

    def __init__(self, machines: Path, kind: kinds.Kind) -> None:
        self.folder = machines / kinds.MACHINES[kind]
        self.spark_conf = self.folder / "spark-conf"
        self.hadoop_conf = self.folder / "hadoop-conf"
        self.warehouse = self.folder / "warehouse"
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


class Plan:
    """What one machine's daemons are started with, as `supervisor.py` wants it, and the files that they read."""

    def __init__(self, folder: Path, machine: Mapping[str, Any]) -> None:
        self._folder = folder
        # As /proc has it in a process's working directory.
        self._own = (folder / FOLDER).resolve()
        self._host, self._ports, self._java = machine["host"], machine["ports"], machine["java"]
        self._env = {**machine["env"], "JAVA_HOME": self._java}
        self._masters = {kind: Master(folder.parent, kind) for kind in kinds.KINDS}

    def daemon(self, name: str) -> dict[str, Any]:
        """Return what `daemons.json` says of one daemon; called when its machine is made."""
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
            "argv": [str(spark_files.home() / "bin" / "spark-class"), f"org.apache.spark.deploy.{what}", *arguments],
            "env": {
                **self._env,
                "SPARK_HOME": str(spark_files.home()),
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
        text = text.replace("/opt/spark/", f"{spark_files.home()}/")
        master = self._masters[kind]
        return text.replace("/shared/staging", str(master.staging)).replace("/shared/warehouse", str(master.warehouse))

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
                *(f"{self._java}/bin/java", *options, "-cp", f"{conf}:{spark_files.hadoop()}/*", f"{_YARN}.{main}"),
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
