"""Who an agent is: its folder's identity, and the machine and boot on which it runs.

That an agent has no kernel of some id means that the kernel is dead only if it is the agent that started it, or one that has
that agent's records, which is one in the same folder; or if the machine has been booted since.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from pathlib import Path

from ..protocol import AgentIdentity

FILE = "identity"
"""The file in an agent's folder that makes it another folder than one of the same name."""
_DIGITS = 32


def identity_of(directory: Path) -> AgentIdentity:
    """Return who an agent in *directory* is, and keep it there; raises nothing, since a full disk must not end an agent."""
    return AgentIdentity(id=_folder_id(directory / FILE), folder=str(directory), machine=_machine(), boot=_boot())


def is_here(agent: AgentIdentity) -> bool:
    """Return True if *agent* runs where this process does; asked by gateways. False where that cannot be told.

    By the machine as well: containers of one system that were started in the same hundredth of a second have one boot.
    """
    return bool(agent.boot) and (agent.machine, agent.boot) == (_machine(), _boot())


def keep(identity: AgentIdentity) -> None:
    """Write the identity of an agent whose folder has lost it; raises OSError."""
    _put(Path(identity.folder) / FILE, identity.id)


def _folder_id(path: Path) -> str:
    found = _read(path)
    if not found:
        found = os.urandom(_DIGITS // 2).hex()
        with contextlib.suppress(OSError):
            _put(path, found)
    return _read(path) or found


def _read(path: Path) -> str:
    """Return the identity in *path*, empty if there is none, or what a full disk has left of one."""
    with contextlib.suppress(OSError, ValueError):
        text = path.read_text("ascii").strip()
        if len(text) == _DIGITS and not text.strip("0123456789abcdef"):
            return text
    return ""


def _put(path: Path, text: str) -> None:
    """Write *text* to *path*, unless an agent of another release has been quicker; raises OSError."""
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(text + "\n")
        if path.exists() and not _read(path):
            os.unlink(path)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.rename(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _machine() -> str:
    """Return what tells this machine from others: its name, since machines without a disk get another id with each boot."""
    known = socket.gethostname()
    return hashlib.sha256(f"eg-distributed {known}".encode()).hexdigest()[:16]


def _boot() -> str:
    """Return what tells this boot from others of the machine; of a container, from its earlier runs. Empty if it is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        stat = Path("/proc/1/stat").read_bytes()
        return f"{boot}-{stat.rpartition(b')')[2].split()[19].decode('ascii')}"
    except (OSError, ValueError, IndexError):  # /proc may hide the first process, whose start tells a container's run
        return ""
