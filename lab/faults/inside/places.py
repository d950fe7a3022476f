"""What faults do to a node's packets and mounts, and undo."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lab.faults.inside.steps import StepFailed, run


def unchain(table: str, chain: str) -> None:
    """Take one chain and the jumps to it away, and nothing else; then look that it is gone."""
    base = ["iptables", "-w", "5", "-t", table]
    rules = run([*base, "-S"]).splitlines()
    for rule in rules:
        words = rule.split()
        if words[0] == "-A" and words[1] != chain and words[-2:] == ["-j", chain]:
            run([*base, "-D", *words[1:]])
    if f"-N {chain}" in rules:
        run([*base, "-F", chain])
        run([*base, "-X", chain])


def _mounted(path: str) -> bool:
    return any(line.split()[4] == path for line in Path("/proc/self/mountinfo").read_text().splitlines())


def mount(folder: str, path: str, *argv: str) -> None:
    """Run a mount command; note first that the mount on *path* is ours, unless one is there already."""
    if _mounted(path):
        raise StepFailed(f"something is mounted on {path} already")
    note = Path(folder, "mounts")
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.open("a") as file:
        file.write(f"{path}\n")
    run(argv)


def unmount(folder: str) -> None:
    """Take the mounts away that `mount` has noted, the last one first."""
    note = Path(folder, "mounts")
    for path in reversed(note.read_text().split() if note.exists() else []):
        if _mounted(path):
            run(["umount", "-l", path])
    note.unlink(missing_ok=True)


def fill(path: str, mark: str) -> None:
    """Write until the file system of *path* says that it is full; refuse one that isn't a small one of our own."""
    whole = os.statvfs(path)
    if whole.f_blocks * whole.f_frsize > 1 << 30:
        raise StepFailed(f"{path} is not on a file system of the fault's own")
    with contextlib.suppress(OSError), Path(path, f".{mark}").open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass
    with contextlib.suppress(OSError), Path(path, f".{mark}").open("ab", buffering=0) as file:
        while file.write(b"\0"):
            pass


def populate(path: str, source: str) -> None:
    """Copy what *source* holds below *path*: a fresh tmpfs has to show what it hides."""
    run(["cp", "-a", f"{source}/.", path])
    run(["chown", f"--reference={source}", path])
    run(["chmod", f"--reference={source}", path])
