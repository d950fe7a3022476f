"""How checks look: a command with a deadline, and free space in words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SECONDS: Final = 15.0
"""One look. Even a machine that swaps starts a process in less."""

_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def tool(name: str) -> str | None:
    """Return the path of a program, in sbin as well, which users who aren't root seldom have on PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def run(argv: Sequence[str], *, seconds: float = SECONDS) -> tuple[bool, str]:
    """Run *argv*; return whether it ended well, and its last line of output (stderr first)."""
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"{argv[0]} did not end within {seconds:.0f} s"
    except OSError as error:
        return False, str(error)
    words = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return done.returncode == 0, words[-1] if words else f"exit code {done.returncode}"


def existing(path: Path) -> Path:
    """Return *path* or its nearest parent that is there: where a folder to be would be made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def megabytes_free(path: Path) -> int:
    """Return how many megabytes a user may still write at *path*."""
    return shutil.disk_usage(existing(path)).free // 1_000_000
