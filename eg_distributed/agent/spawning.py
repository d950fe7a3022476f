"""Starting one process on the node: its environment, its log, its working directory, and what to say if it can't be started."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Mapping, Optional

from .expansion import expand_all

_STRIPPED = (
    "JPY_",
    "SSH_",
)  # of the login's environment: a parent pid that is not ours, a connection that will be gone

KERNELS_FAULT = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.E2BIG, errno.ENOTDIR, errno.ELOOP, errno.EPERM)
"""Errors of an execve that would come on any host; others (a full disk, no processes left) are this one's."""


class StartError(Exception):
    """The kernel could not be started; the text is for the user. *host_fault*: another host might do better."""

    def __init__(self, text: str, host_fault: bool = False) -> None:
        super().__init__(text)
        self.host_fault = host_fault


def kernel_environment(spec_env: dict[str, str], data: dict[str, str]) -> dict[bytes, bytes]:
    """Return a kernel's environment: the login's own, the kernelspec's expanded, the client's as it is.

    Bytes, so that the node's locale has no say in what a value is. Raises StartError for options that can't be expanded.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(_STRIPPED)}
    try:
        given = {**expand_all(spec_env, own, data), **data}
    except ValueError as error:
        raise StartError(str(error)) from error
    own_bytes = {os.fsencode(name): os.fsencode(value) for name, value in own.items()}
    return {**own_bytes, **{_encoded(name): _encoded(value) for name, value in given.items()}}


def spawn(
    argv: list[str], environment: dict[bytes, bytes], cwd: Optional[str], umask: int, log: Path, open_files: int = -1
) -> subprocess.Popen[bytes]:
    """Execute *argv* in a session of its own, with its output appended to *log*; called in a thread, since disks may hang.

    *open_files* is its soft limit of open files; -1: the agent's.

    Raises OSError, or StartError for what can't be executed anywhere.
    """
    descriptor = _open_log(log)
    home = os.fsdecode(environment.get(b"HOME", b"")) or "/"
    folder = cwd if cwd and os.path.isdir(cwd) else home
    if not os.path.isdir(folder):
        folder = "/"
    try:
        if cwd and folder != cwd:
            # Notebook servers send the notebook's folder on their own disk; it need not exist here.
            said = f"working directory {cwd} does not exist on this node: started in {folder}\n"
            os.write(descriptor, said.encode())
        process = subprocess.Popen(
            argv,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
            umask=umask,  # files that cells write are not the agent's secrets
            executable=executable(argv[0], environment),
        )
        if open_files >= 0:
            # Of the running process, since a function between fork and exec would need a fork without threads.
            with contextlib.suppress(OSError, ValueError):  # it has ended already
                hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[1]
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_files, hard))
        return process
    except ValueError as error:
        raise StartError(f"the command or an environment value cannot be passed on: {error}") from error
    finally:
        os.close(descriptor)


def _open_log(path: Path) -> int:
    # O_NONBLOCK for the open alone: a folder for logs may be shared, and hold a FIFO of that name.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    log = os.open(path, flags, 0o600)
    found = os.fstat(log)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        os.close(log)
        raise StartError(f"the kernel's log {path} exists and is not a file of this user")
    os.set_blocking(log, True)
    return log


def fill(argument: str, substitutions: dict[str, str]) -> str:
    """Put the node's own values into *argument*; everything else in braces was filled in by the gateway."""
    for name, value in substitutions.items():
        argument = argument.replace("{" + name + "}", value)
    return argument


def _encoded(text: str) -> bytes:
    """Return *text* as UTF-8, with what the node's own values had of other bytes, or of lone surrogates, as it was."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def executable(program: str, environment: Mapping[bytes, bytes]) -> str:
    """Return the path that *program* names in the kernel's own PATH, not the agent's; raises FileNotFoundError."""
    if "/" in program:
        return program
    found = shutil.which(program, path=os.fsdecode(environment.get(b"PATH", os.fsencode(os.defpath))))
    if found is None:
        raise FileNotFoundError(2, "not found on the node's PATH", program)
    return found


def explain(error: OSError, argv: list[str]) -> str:
    """Return the user-facing message for a start of *argv* that failed with *error*."""
    program = argv[0] if argv else ""
    what = error.filename if isinstance(error.filename, str) else program
    doing = f"execute {program!r}" if error.errno in KERNELS_FAULT else "start a kernel"
    return f"cannot {doing}: {error.strerror or error} ({what})"
