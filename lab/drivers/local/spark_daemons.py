"""The clusters of a local lab: what a master's machine and a node run beside their SSH server, where it listens, what it reads.

All machines share this one's network, so each has an address of 127.0.0.0/8 of its own, by which clusters tell their members
apart, and free ports, chosen when it is made and kept in its machine.json.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eg_distributed import kernelspecs
from lab.drivers.local import java, processes, programs, spark_files
from lab.drivers.local.daemon_plan import FOLDER, Master, Plan
from lab.drivers.spark_kernelspecs import offered
from lab.ports import free_ports
from lab.processes import Process, argv
from lab.progress import Progress
from lab.topology import daemons as kinds
from lab.topology.specs import NodeSpec


def prepare(daemons: Iterable[str], progress: Progress) -> None:
    """Have what *daemons* and their clusters' kernels need on this machine, or raise EnvironmentUnfit: nothing is begun."""
    wanted = kinds.of(daemons)
    if not wanted:
        return
    java.find()
    spark_files.ensure(progress)
    if "yarn" in wanted:
        spark_files.ensure_hadoop(progress)
    if "R" not in _languages():
        progress.note("no kernelspecs for R: this machine has no Rscript")


def kernel_python(wanted: Iterable[str]) -> Path | None:
    """Return the kernels' interpreter in a lab with the clusters *wanted*; None in a plain one."""
    return spark_files.python() if kinds.check(wanted) else None


def supervised(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Return what stands between a machine's init and its server: nothing unless its *facts* have daemons."""
    if not facts.get("ports"):
        return []
    return [sys.executable, "-I", "-S", programs.SUPERVISOR, "run", str(folder / FOLDER), "--"]


@contextmanager
def supervisor_held(folder: Path) -> Iterator[list[Process]]:
    """Yield the supervisor of a machine's daemons, none in a plain one, stopped: what is killed meanwhile stays so.

    Afterwards it goes on, and starts the daemons again. Called by `reset`.
    """
    members = processes.belonging(folder, [processes.main_process(folder)])
    found = [process for process in members if programs.is_supervisor(argv(process.pid))]
    for process in found:
        process.signal(signal.SIGSTOP)
    try:
        yield found
    finally:
        for process in found:
            process.signal(signal.SIGCONT)


def sites(machines: Path, wanted: Iterable[str]) -> dict[kinds.Kind, kernelspecs.Site]:
    """Return where kernels find what, by cluster, for the masters that stand in *machines*."""
    found: dict[kinds.Kind, kernelspecs.Site] = {}
    for kind in kinds.check(wanted):
        master = Master(machines, kind)
        found[kind] = kernelspecs.Site(
            spark_home=str(spark_files.home()),
            master=f"spark://{master.endpoint(7077)}" if kind == "spark" else None,
            hadoop_conf_dir=str(master.hadoop_conf),
            python=str(spark_files.python()),
            env={
                "JAVA_HOME": master.java,
                "SPARK_CONF_DIR": str(master.spark_conf),
                "TOREE_JAR": str(spark_files.toree()),
            },
        )
    return found


def kernels(machines: Path, wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the Spark kernelspecs of a lab with the clusters *wanted*: those of languages that this machine has."""
    return offered(wanted, sites(machines, wanted), _languages())


def _languages() -> tuple[str, ...]:
    return tuple(each for each in kernelspecs.LANGUAGES if each != "R" or shutil.which("Rscript"))


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
    plan = Plan(folder, {**machine, **found})
    daemons = {daemon: plan.daemon(daemon) for daemon in spec.daemons}
    files = {path: text for daemon in spec.daemons for path, text in plan.files(daemon).items()}
    files[str(folder / FOLDER / "daemons.json")] = json.dumps(daemons, indent=2)
    # Hadoop's daemons don't start on a machine whose own name resolves nowhere.
    hosts = str(folder / "hosts") if machine["isolation"] != "none" else ""
    return {**found, "hosts_file": hosts, "cluster_files": files}
