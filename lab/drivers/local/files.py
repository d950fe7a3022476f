"""The files of local machines, which are this user's own files."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.errors import LabConflict
from lab.names import short_name

ACCOUNTS = Path("/etc/passwd")
HOSTS = Path("/etc/hosts")


def write_server_files(facts: Mapping[str, Any]) -> None:
    """Write what the SSH server reads (path: text) as it was when the node was made; called by the driver and by `reset`."""
    for path, text in facts.get("files", {}).items():
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        Path(path).write_text(text)
    if facts.get("passwd"):
        Path(facts["passwd"]).write_text(accounts(ACCOUNTS.read_text(errors="surrogateescape"), facts["home"]))
    if facts.get("hosts_file"):
        known = HOSTS.read_text(errors="surrogateescape") if HOSTS.exists() else ""
        Path(facts["hosts_file"]).write_text(hosts(known, facts["name"], facts["host"]))


def hosts(known: str, name: str, address: str) -> str:
    """Return /etc/hosts as *known*, with a machine's own *name* as well, and its *address* as a name.

    Hadoop calls a node by the name of its address. Its neighbours know no name of it, so that name is the address; and the
    machine's own means another address, as on Debian.
    """
    return f"{address} {address}\n127.0.1.1 {name} {short_name(name)}\n{known}"


def accounts(passwd: str, home: str) -> str:
    """Return *passwd* with *home* as this user's: sshd sends a login there, whatever HOME says.

    The user may be in a directory instead of the file: the line is put first then, where it is looked for first.
    """
    me = pwd.getpwuid(os.getuid())
    mine = [me.pw_name, "x", str(me.pw_uid), str(me.pw_gid), me.pw_gecos, home, me.pw_shell]
    others = [line for line in passwd.splitlines() if line.partition(":")[0] != me.pw_name]
    return "\n".join([":".join(mine), *others]) + "\n"


def make_own(folder: Path) -> None:
    """Make *folder*, and what is lacking above it, for this user alone; raise LabConflict if it is somebody else's.

    Its place in a shared /tmp can be guessed, and what lies there is sockets of agents and kernels.
    """
    for each in (folder.parent, folder):
        each.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = each.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise LabConflict(
                f"the folder {each} can't be used for a machine's sockets",
                cause="another user made it, or others may write to it",
                remedy="remove it, or set TMPDIR to a folder of yours and make the lab anew (`lab down`, `lab up`)",
            )
        each.chmod(0o700)


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
