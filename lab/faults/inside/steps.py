"""What all steps on a node share: how a command is run, how a file is made, and how a step fails."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SECONDS = 8.0
"""For one step. A step that hangs would keep the fault's lock from everybody else."""


class StepFailed(Exception):
    """One step could not be carried out; the text is the reason."""


def run(argv: Sequence[str]) -> str:
    """Run a command to its end and return its stdout."""
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except FileNotFoundError:
        raise StepFailed(f"{argv[0]} is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StepFailed(f"{argv[0]}: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")[-300:]
        raise StepFailed(f"{' '.join(argv)[:120]}: {said}")
    return done.stdout


def write(path: str, text: str, mode: str = "600") -> None:
    """Make a file of the fault's own; its folders are readable, as sshd wants them."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(int(mode, 8))


def remove(*paths: str) -> None:
    """Delete files or folders of the fault's own."""
    for path in map(Path, paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def need(path: str) -> None:
    """Fail unless *path* is there."""
    if not Path(path).exists():
        raise StepFailed(f"this node has no {path}")


def tolerate(*argv: str) -> None:
    """Run a command whose failure means that there was nothing to do."""
    with contextlib.suppress(StepFailed):
        run(argv)


def stat(pid: int) -> tuple[str, str, int, int] | None:
    """Return (name, state, parent, start time) of a process, None if it is gone."""
    try:
        head, _, tail = Path("/proc", str(pid), "stat").read_text().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return head.partition("(")[2], fields[0], int(fields[1]), int(fields[19])


def pids() -> list[int]:
    """Return all that this process can see."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
