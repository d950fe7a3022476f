"""Turning kernelspecs that were written for Enterprise Gateway's own proxy into ours, and YARN's into a standalone master's.

The result runs without Enterprise Gateway as well, by our provisioner's stanza with the same config. argv stays as it is: it is
the site's, and a guard against clients that know no provisioners is for kernelspecs that are installed (see `guard`).
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import MASTER_URL, PROVISIONER, with_master

OURS: Final = "eg_distributed.DistributedProcessProxy"
THEIRS: Final = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"
_OPTIONS = ("SPARK_OPTS", "__TOREE_SPARK_OPTS__")
_DEPLOY_MODE = re.compile(r"\s*--deploy-mode[= ]\s*client")
_WAIT = re.compile(r"\s*--conf[= ]\s*['\"]?spark\.yarn\.submit\.waitAppCompletion=\w+['\"]?")
_FOLDER = re.compile(r"/kernels/(?P<kernels>[^/]+)/|/(?P<scripts>[^/]+)/(?:bin/run\.sh|scripts/launch_[^/]+)\Z")
"""Where a word of argv names a kernelspec's folder."""
_YARN_TITLE = re.compile(r"\(YARN Client Mode\)", re.IGNORECASE)


class ConversionError(Exception):
    """A kernelspec that can't be converted; the text says which, why, and what to do."""


@dataclass(frozen=True)
class Conversion:
    """What is to be written where; made by `convert`."""

    source: Path
    target: Path
    """The folder of the result: *source* itself, or beside it."""
    before: str
    after: str

    @property
    def diff(self) -> str:
        """The change, as `diff -u` shows it; empty if there is none."""
        names = (str(self.source / "kernel.json"), str(self.target / "kernel.json"))
        lines = difflib.unified_diff(self.before.splitlines(True), self.after.splitlines(True), *names)
        return "".join(lines)

    @property
    def notes(self) -> list[str]:
        """What stays as it is, and may not be meant so: another provisioner's stanza, argv's words of other folders."""
        notes = []
        spec = json.loads(self.after)
        if (named := _provisioner(spec)) not in ("", PROVISIONER):
            notes.append(
                f"note: without Enterprise Gateway it is run by {named}, whose stanza kernel_provisioner stays as it is; remove "
                "that, and convert it once more, to have its kernels on hosts there as well"
            )
        for word in spec.get("argv", []):
            match = _FOLDER.search(word)
            owner = (match["kernels"] or match["scripts"]) if match is not None else self.target.name
            if owner != self.target.name:
                notes.append(
                    f"note: argv's {word} is of another kernelspec's folder, {owner}, and stays as it is; "
                    f"write {self.target.name} there if {self.target.name} has one of its own"
                )
        return notes

    def write(self) -> None:
        """Do it: copy the folder, if it is to be another one, and write its kernel.json. Raises ConversionError, OSError."""
        if self.target != self.source:
            if self.target.exists():
                raise ConversionError(f"{self.target} is there already; remove it, or give another --name")
            shutil.copytree(self.source, self.target)
        file = self.target / "kernel.json"
        temporary = file.with_name("kernel.json.new")
        temporary.write_text(self.after, "utf-8")
        shutil.copymode(file, temporary)
        temporary.replace(file)


def convert(folder: Path, master: str | None = None, name: str | None = None) -> Conversion:
    """Return the conversion of the kernelspec in *folder* to our proxy and provisioner, and to the standalone *master*.

    The second is what Enterprise Gateway's page "Distributed deployments" describes to be done by hand: a copy with another
    display name, `--master`, without `waitAppCompletion`, and with its own `run.sh` in argv. *name* is the copy's folder.
    Raises ConversionError.
    """
    source = folder.absolute()
    try:
        before = (source / "kernel.json").read_text("utf-8")
        spec = json.loads(before)
    except OSError as error:
        raise ConversionError(f"{folder} is no kernelspec ({error.strerror}: kernel.json); name its folder") from error
    except ValueError as error:
        raise ConversionError(f"{folder}/kernel.json is no JSON ({error}); correct it first") from error
    after = _to_our_proxy(spec, folder)
    target = source
    if master is not None:
        target = source.with_name(name or _standalone_name(source.name))
        after = _to_standalone(after, folder, source, target, master)
    elif name is not None:
        target = source.with_name(name)
        after = _in_folder(after, source, target)
    return Conversion(source, target, before, json.dumps(after, indent=2, ensure_ascii=False) + "\n")


def _to_our_proxy(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    changed = copy.deepcopy(spec)
    proxy = changed.setdefault("metadata", {}).setdefault("process_proxy", {})
    if proxy.get("class_name", THEIRS) not in (OURS, THEIRS):
        raise ConversionError(
            f"{folder} is run by {proxy['class_name']}, not by the distributed proxy: no kernelspec of SSH hosts"
        )
    proxy["class_name"] = OURS
    if _provisioner(changed) == "":
        changed["metadata"]["kernel_provisioner"] = {"provisioner_name": PROVISIONER}
        if config := proxy.get("config"):
            changed["metadata"]["kernel_provisioner"]["config"] = copy.deepcopy(config)
    return changed


def _provisioner(spec: dict[str, Any]) -> str:
    """Return the name of the provisioner that a kernelspec has for other servers than Enterprise Gateway; empty: none."""
    stanza = spec.get("metadata", {}).get("kernel_provisioner")
    return str(stanza.get("provisioner_name", "?")) if isinstance(stanza, dict) else ""


def _to_standalone(spec: dict[str, Any], folder: Path, source: Path, target: Path, master: str) -> dict[str, Any]:
    if not MASTER_URL.match(master):
        raise ConversionError(f"--master {master} is no standalone master's URL; write spark://HOST:7077")
    env = spec.get("env") or {}
    there = [name for name in _OPTIONS if "--master" in env.get(name, "")]
    if not there:
        raise ConversionError(f"{folder} has no --master in SPARK_OPTS; convert a yarn_client kernelspec")
    for name in there:
        env[name] = _WAIT.sub("", _DEPLOY_MODE.sub("", with_master(env[name], master))).strip()
    title = str(spec.get("display_name", target.name))
    renamed = _YARN_TITLE.sub("(Spark Standalone)", title)
    spec["display_name"] = renamed if renamed != title else f"{title} (Spark Standalone)"
    return _in_folder(spec, source, target)


def _in_folder(spec: dict[str, Any], source: Path, target: Path) -> dict[str, Any]:
    """Have argv name the copy's files, wherever kernels are installed on the nodes."""
    spec["argv"] = [
        re.sub(rf"(?<=/){re.escape(source.name)}(?=/)", lambda _: target.name, word) for word in spec.get("argv", [])
    ]
    return spec


def _standalone_name(name: str) -> str:
    return name.replace("yarn_client", "standalone") if "yarn_client" in name else f"{name}_standalone"
