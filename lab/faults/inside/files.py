"""What faults do to files and accounts of a node, and undo."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
from pathlib import Path

from lab.faults.inside.steps import StepFailed, need, run, write


def aside(path: str, mark: str) -> None:
    """Take a file away without losing it."""
    if not os.path.lexists(path):
        raise StepFailed(f"there is no {path}")
    Path(path).rename(f"{path}.{mark}")


def back(path: str, mark: str) -> None:
    """Put it back over whatever stands there."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"{path}.{mark}").replace(path)


def vanish(path: str, mark: str, *within: str) -> None:
    """Remove a folder or file that others use, if it lies below one of *within*; out of sight at once, then piece by piece."""
    target = Path(path)
    place = target.parent.resolve()
    allowed = [Path(folder).resolve() for folder in within]
    if target.name in {"", ".."} or not any(folder == place or folder in place.parents for folder in allowed):
        raise StepFailed(f"{path} is not below {' or '.join(within)}")
    if not os.path.lexists(target):
        raise StepFailed(f"there is no {path}")
    hidden = place / f".{mark}"
    (place / target.name).rename(hidden)
    if hidden.is_dir() and not hidden.is_symlink():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()


def _rewrite(path: Path, text: str) -> None:
    """Write in place where a rename can't be (a bind-mounted /etc/hosts), keeping owner and mode in any case."""
    with path.open("r+") as file:
        file.write(text)
        file.truncate()


def block(path: str, mark: str, text: str, owner: str = "") -> None:
    """Put marked lines at the top of a file, so that several faults share it and each finds its own again."""
    target = Path(path)
    note = ""
    if not target.exists():
        # How many of its folders are made here as well: they go with it.
        made = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(mode=0o644)
        if owner:
            found = pwd.getpwnam(owner)
            for item in (target, *made):
                os.chown(item, found.pw_uid, found.pw_gid)
        note = f" made {len(made)}"
    old = target.read_text(errors="replace")
    _rewrite(target, f"# {mark} begin{note}\n{text.rstrip()}\n# {mark} end\n{old}")


def unblock(path: str, mark: str) -> None:
    """Take the marked lines out again; a file that exists because of them goes with them."""
    target = Path(path)
    if not target.exists():
        return
    found = re.search(
        rf"^# {re.escape(mark)} begin(?: made (\d+))?\n.*?^# {re.escape(mark)} end\n",
        target.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    if found is None:
        return
    rest = found.string[: found.start()] + found.string[found.end() :]
    if found.group(1) is not None:
        # Another fault's lines may keep the file for now: whoever takes the last ones away has to know who made it.
        rest = re.sub(r"(?m)^(# lab-fault-\S+ begin)$", rf"\1 made {found.group(1)}", rest, count=1)
    if found.group(1) is not None and not rest:
        target.unlink()
        for folder in list(target.parents)[: int(found.group(1))]:
            with contextlib.suppress(OSError):
                folder.rmdir()
    else:
        _rewrite(target, rest)


def environment(path: str, mark: str, kib: str) -> None:
    """Put *kib* KiB of variables into pam_env's file; made here because one argument can't hold them."""
    lines = [f"LAB_FAULT_{mark[-4:].upper()}_{number:04}={'x' * 1000}" for number in range(int(kib) * 1024 // 1000 + 1)]
    block(path, mark, "\n".join(lines))


def comment(path: str, mark: str, pattern: str) -> None:
    """Make comments of the lines that match; at least one has to."""
    target = Path(path)
    text, count = re.subn(f"(?m)^(?={pattern})", f"#{mark} ", target.read_text())
    if not count:
        raise StepFailed(f"no line of {path} matches {pattern}")
    _rewrite(target, text)


def uncomment(path: str, mark: str) -> None:
    """Undo `comment`."""
    target = Path(path)
    if target.exists():
        _rewrite(target, target.read_text().replace(f"#{mark} ", ""))


def deny(path: str, folder: str) -> None:
    """Make a folder root's, for its owner to read only; note how it was."""
    was = Path(path).stat()
    write(f"{folder}/denied", f"{was.st_uid} {was.st_gid} {was.st_mode & 0o7777:o}")
    os.chown(path, 0, was.st_gid)
    Path(path).chmod(0o555)


def allow(path: str, folder: str) -> None:
    """Undo `deny`."""
    note = Path(folder, "denied")
    if note.exists():
        uid, gid, mode = note.read_text().split()
        os.chown(path, int(uid), int(gid))
        Path(path).chmod(int(mode, 8))
        note.unlink()


def login_shell(user: str, shell: str, folder: str) -> None:
    """Give *user* another login shell; note which it was."""
    need(shell)
    write(f"{folder}/shell", pwd.getpwnam(user).pw_shell)
    run(["usermod", "--shell", shell, user])


def login_shell_back(user: str, folder: str) -> None:
    """Undo `login_shell`."""
    note = Path(folder, "shell")
    if note.exists():
        run(["usermod", "--shell", note.read_text(), user])
        note.unlink()


def public(private: str, target: str) -> None:
    """Write the public half of a key."""
    write(target, run(["ssh-keygen", "-y", "-f", private]), "644")


def first_key(keys: str, target: str) -> None:
    """Write the first key of an authorized_keys file."""
    lines = [line for line in Path(keys).read_text().splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise StepFailed(f"{keys} holds no key")
    write(target, lines[0] + "\n", "644")
