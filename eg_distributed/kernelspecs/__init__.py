"""Sample kernelspecs: a folder each, with a kernel.json that works once it names what a site has where.

Installed by `jupyter distributed kernelspecs install`; nothing of them is needed on the nodes.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Any, Final

from .guard import guarded

PROVISIONER: Final = "eg-distributed"
"""The entry point of our kernel provisioner, by which kernelspecs name it."""
LANGUAGES = ("python", "scala", "R")
_MASTER = re.compile(r"--master[= ]\s*(?:'[^']*'|\"[^\"]*\"|\S+)")
MASTER_URL = re.compile(r"spark://[^\s/]+:\d+\Z")
"""A standalone master's, or several masters'."""


@dataclass(frozen=True)
class Site:
    """What differs from site to site; what is None stays as the sample has it."""

    spark_home: str | None = None
    """Where Spark is on the nodes."""
    master: str | None = None
    """The standalone master's URL, for kernelspecs that run on one."""
    hadoop_conf_dir: str | None = None
    """The folder with YARN's client configuration on the nodes."""
    python: str | None = None
    """The interpreter with ipykernel on the nodes; executors use it, too."""
    remote_hosts: str | None = None
    """Hosts, separated by commas, for these kernelspecs only; else the gateway's own."""
    env: Mapping[str, str] | None = None
    """More variables of the kernels."""


def names(languages: Sequence[str] = LANGUAGES) -> list[str]:
    """Return the samples' names, of these languages."""
    folder = resources.files(__package__ or "eg_distributed.kernelspecs")
    found = [entry.name for entry in folder.iterdir() if (entry / "kernel.json").is_file()]
    wanted = {language.lower() for language in languages}
    return sorted(name for name in found if sample(name)["language"].lower() in wanted)


def sample(name: str, site: Site | None = None) -> dict[str, Any]:
    """Return the kernel.json of the sample *name* for *site*."""
    text = (resources.files(__package__ or "eg_distributed.kernelspecs") / name / "kernel.json").read_text("utf-8")
    spec: dict[str, Any] = json.loads(text)
    return _for_site(spec, site) if site is not None else spec


def for_every_client(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a kernelspec of our process proxy that runs without Enterprise Gateway as well, by our kernel provisioner.

    Both stanzas have the same config. A client that knows neither of them says what to install (see `guard`).
    """
    made: dict[str, Any] = copy.deepcopy(dict(spec))
    metadata = made["metadata"]
    metadata["kernel_provisioner"] = {"provisioner_name": PROVISIONER}
    if config := metadata["process_proxy"].get("config"):
        metadata["kernel_provisioner"]["config"] = copy.deepcopy(config)
    made["argv"] = guarded(made["argv"])
    return made


def with_master(opts: str, url: str) -> str:
    """Return options of spark-submit with the master *url* in the place of the one that they name, however it is quoted."""
    return _MASTER.sub(lambda _: f"--master {shlex.quote(url)}", opts)


def needs_master(spec: Mapping[str, Any]) -> bool:
    """Whether a kernelspec runs on a standalone master."""
    return any("spark://" in str(value) for value in (spec.get("env") or {}).values())


def _for_site(spec: dict[str, Any], site: Site) -> dict[str, Any]:
    env: dict[str, str] = spec.setdefault("env", {})
    given = {"SPARK_HOME": site.spark_home, "HADOOP_CONF_DIR": site.hadoop_conf_dir, "PYSPARK_PYTHON": site.python}
    env.update({name: value for name, value in given.items() if value is not None and name in env})
    if site.master is not None and needs_master(spec):
        for name in ("SPARK_OPTS", "__TOREE_SPARK_OPTS__"):
            if name in env:
                env[name] = with_master(env[name], site.master)
    env.update(site.env or {})
    if site.python is not None and PurePosixPath(spec["argv"][0]).name == "python3" and "-m" in spec["argv"]:
        spec["argv"][0] = site.python
    if site.remote_hosts is not None:
        spec["metadata"]["process_proxy"].setdefault("config", {})["remote_hosts"] = site.remote_hosts
    return spec
