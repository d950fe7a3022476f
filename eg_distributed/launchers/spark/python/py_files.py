"""Modules of `--py-files` on the driver: importable from the first cell on, as they are once pyspark has made a context."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import urllib.parse
from pathlib import Path
from typing import Iterator, Mapping

from ..driver import scratch_folder
from ..errors import LaunchError

_ARCHIVES = (".zip", ".egg", ".jar")
"""What Python imports from as it is."""


def check(settings: Mapping[str, str], folder: str) -> None:
    """Raise LaunchError if one of the local files is missing; *folder* is where the kernel will be."""
    for path in local(settings, folder):
        if not path.exists():
            raise LaunchError(f"there is no file {path}, which --py-files names", "correct --py-files, or put it there")


def local(settings: Mapping[str, str], folder: str) -> Iterator[Path]:
    """Yield the local files that `spark.submit.pyFiles` names: plain paths and `file:`, not those of HDFS or the web."""
    for entry in settings.get("spark.submit.pyFiles", "").split(","):
        name = entry.strip()
        url = urllib.parse.urlsplit(name)
        if url.scheme == "file":
            name = urllib.parse.unquote(url.path)
        elif url.scheme:
            continue
        if name:
            yield Path(folder, name.partition("#")[0])


def make_importable(settings: Mapping[str, str], env: Mapping[str, str]) -> None:
    """Put the local files on `sys.path`, single modules by a folder with copies of them, as pyspark does later."""
    found = [path for path in local(settings, os.getcwd()) if path.exists()]
    archives = [str(path) for path in found if path.suffix.lower() in _ARCHIVES]
    modules = [path for path in found if path.suffix.lower() not in _ARCHIVES and path.is_file()]
    places: list[str] = []
    if modules:
        with contextlib.suppress(OSError):  # a full disk: they are there once there is a session, or it says why not
            scratch = scratch_folder(env)
            inside = str(scratch) if scratch is not None and scratch.is_dir() else None
            folder = tempfile.mkdtemp(prefix="py-files-", dir=inside)
            places.append(folder)
            for path in modules:
                shutil.copy(path, folder)
    for place in reversed([*places, *archives]):
        if place not in sys.path:
            sys.path.insert(1, place)
