"""The files of local machines, which are this user's own files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_server_files(facts: Mapping[str, Any]) -> None:
    """Write what the SSH server reads (path: text) as it was when the node was made; called by the driver and by `reset`."""
    for path, text in facts.get("files", {}).items():
        Path(path).write_text(text)


def copy(source: Path, folder: Path) -> None:
    """Copy a file or a folder into *folder*, with its modes and times."""
    target = folder / source.resolve().name
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def empty(folder: Path, *, spared: set[Path]) -> None:
    """Delete what is in *folder* but *spared* folders, whose own content goes."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path in spared:
            empty(path, spared=spared)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
