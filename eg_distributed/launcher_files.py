"""What a kernelspec brings to the node: a launcher's files, its own folder, how kernels are interrupted, what follows their end.

The other end is `agent/launcher_files.py`.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

from .errors import RequestInvalid
from .spec_folder import SpecFolder

_SHIPPED = (".py", ".R", ".java")
_LAUNCHER = "{launcher}/spark.py"
_RESOURCE_DIR = "{resource_dir}"
_FOLDERS = {"python": "python", "scala": "scala", "R": "r"}
"""The folder of each language that the launcher starts: a start of one has no use for the files of the others."""


@dataclass(frozen=True)
class Shipping:
    """What goes with a start beside argv and environment; of a kernelspec with neither launcher nor `{resource_dir}`, nothing."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Paths and texts; `{launcher}` in argv is the folder that they are in, on the node."""
    interrupt_signal: str = ""
    """The name of the signal that the kernel gets in place of SIGINT, alone; empty: SIGINT, with its whole group."""
    on_exit: tuple[str, ...] = ()
    """argv that the node runs after the kernel has ended, however it ended."""
    resource_dir: str = ""
    """The kernelspec's folder on the gateway, if argv or `on_exit` names it."""
    brings_folder: bool = False
    """Whether the node gets that folder, which `{resource_dir}` then stands for; else that is the gateway's path."""
    folder: SpecFolder | None = None
    """The folder as it was when the start began, put here by the cluster."""


def may_bring_folder(config: Mapping[str, Any], kernel_name: str, limit: int) -> bool:
    """Return True if a kernelspec's folder goes where its argv names it; *limit* is `folder_limit`. Raises RequestInvalid."""
    wanted = config.get("bring_folder", True)
    if not isinstance(wanted, bool):
        raise RequestInvalid(
            f"kernelspec {kernel_name!r} has a bring_folder that is neither true nor false", remedy="write one of them"
        )
    return wanted and limit > 0


@cache
def launcher_files(language: str = "") -> dict[str, str]:
    """Return the launcher's files by their paths: the common ones and *language*'s, or those of all if it is unknown."""
    folder = resources.files("eg_distributed") / "launchers" / "spark"
    found = {entry.name: entry.read_text("utf-8") for entry in folder.iterdir() if entry.name.endswith(_SHIPPED)}
    for name in [_FOLDERS[language]] if language in _FOLDERS else _FOLDERS.values():
        for entry in (folder / name).iterdir():
            if entry.name.endswith(_SHIPPED):
                found[f"{name}/{entry.name}"] = entry.read_text("utf-8")
    return found


def _language(argv: Sequence[str]) -> str:
    """Return the language that *argv* has our launcher start; "" where that cannot be told, as in a script of the site's own."""
    following = (word for program, word in pairwise(argv) if program == _LAUNCHER)
    return next(following, "")


def shipping_of(
    config: Mapping[str, Any],
    argv: Sequence[str],
    kernel_name: str,
    *,
    resource_dir: str = "",
    brings_folder: bool = False,
) -> Shipping:
    """Return what goes with the start of *argv*, as its kernelspec's process proxy *config* says. Raises RequestInvalid.

    Called by an adapter for each start. *resource_dir* is the kernelspec's folder on the gateway. With *brings_folder*, argv
    still has `{resource_dir}` where it is to be the node's copy.
    """
    launcher = config.get("launcher", "")
    if launcher not in ("", "spark"):
        raise RequestInvalid(
            f"kernelspec {kernel_name!r} names the launcher {launcher!r}", remedy='the one there is is "spark"'
        )
    interrupt_signal = config.get("interrupt_signal", "")
    if interrupt_signal and interrupt_signal not in signal.Signals.__members__:
        raise RequestInvalid(
            f"kernelspec {kernel_name!r} has the interrupt_signal {interrupt_signal!r}",
            remedy="name a signal as SIGUSR2 is named",
        )
    on_exit = config.get("on_exit", ["{python}", "{launcher}/spark_end.py"] if launcher else [])
    if not isinstance(on_exit, list) or not all(isinstance(word, str) for word in on_exit):
        raise RequestInvalid(
            f"kernelspec {kernel_name!r} has an on_exit that is no list of texts", remedy="write it as argv"
        )
    is_named = any(_RESOURCE_DIR in word for word in [*argv, *on_exit])
    if not brings_folder:
        is_named = is_named or (bool(resource_dir) and any(resource_dir in word for word in argv))
        on_exit = [word.replace(_RESOURCE_DIR, resource_dir) for word in on_exit]
    return Shipping(
        files=launcher_files(_language(argv)) if launcher else {},
        interrupt_signal=interrupt_signal,
        on_exit=tuple(on_exit),
        resource_dir=resource_dir if is_named else "",
        brings_folder=brings_folder and is_named,
    )
