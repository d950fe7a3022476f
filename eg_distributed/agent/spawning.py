"""Starting one process on the node: its environment, its log, its working directory, and what to say if it can't be started."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Mapping, Optional

from .aside import aside
from .expansion import expand_all
from .processes import end_group

_STRIPPED = (
    "JPY_",
    "SSH_",
)  # of the login's environment: a parent pid that is not ours, a connection that will be gone

KERNELS_FAULT = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.E2BIG, errno.ENOTDIR, errno.ELOOP, errno.EPERM)
"""Errors of an execve that would come on any host; others (a full disk, no processes left) are this one's."""

LOG_REMEDY = "set Distributed.log_dir (EG_KERNEL_LOG_DIR) to a folder that the login may write to on its hosts"
_PATH_REMEDY = (
    'write the program\'s whole path, or begin argv with "bash", "-lc", or put '
    '"env": {"PATH": "/opt/site/bin:${PATH}"} into kernel.json'
)
_PATH_SHOWN = 500  # characters of a PATH in an error
_LINE_READ = 200  # bytes of a script's first line


if sys.version_info < (3, 11, 4):
    # With vfork, Python before 3.11.4 holds its global lock until the new process has executed its program: one on a disk that
    # hangs would stop the whole agent. The attribute is the documented way to do without. Later ones keep it, since a fork of a
    # big agent takes a hundred times as long.
    setattr(subprocess, "_USE_VFORK", False)  # noqa: B010 - its stubs don't have it


@dataclasses.dataclass
class Progress:
    """What a spawn is at, for the case that it gets no further: *what* may hang, and whether that is the host's fault."""

    what: str = "the disk of its program"
    host_fault: bool = True


class StartError(Exception):
    """The kernel could not be started; text and *remedy* are for the user. *host_fault*: another host might do better."""

    def __init__(self, text: str, host_fault: bool = False, remedy: str = "") -> None:
        super().__init__(text)
        self.host_fault = host_fault
        self.remedy = remedy


@contextlib.contextmanager
def step(doing: str, *, host_fault: bool = True, remedy: str = "") -> Iterator[None]:
    """Name the step of a start that an OSError ended: an error's number alone does not say whose it was.

    Raises StartError ("cannot *doing*: …") for an OSError.
    """
    try:
        yield
    except asyncio.TimeoutError:  # an OSError from Python 3.11 on, and its caller's to explain
        raise
    except OSError as error:
        raise StartError(f"cannot {doing}: {error.strerror or error}", host_fault=host_fault, remedy=remedy) from error


def kernel_environment(
    spec_env: dict[str, str], data: dict[str, str], login: Optional[dict[str, str]] = None
) -> dict[bytes, bytes]:
    """Return a kernel's environment: the *login*'s (None: the agent's own), the kernelspec's expanded, the client's as it is.

    Bytes, so that the node's locale has no say in what a value is. Raises StartError for options that can't be expanded.
    """
    encode = os.fsencode if login is None else _encoded
    source: Mapping[str, str] = os.environ if login is None else login
    own = {name: value for name, value in source.items() if not name.startswith(_STRIPPED)}
    try:
        given = {**expand_all(spec_env, own, data), **data}
    except ValueError as error:
        raise StartError(str(error)) from error
    own_bytes = {encode(name): encode(value) for name, value in own.items()}
    return {**own_bytes, **{_encoded(name): _encoded(value) for name, value in given.items()}}


def spawn(
    argv: list[str],
    environment: dict[bytes, bytes],
    cwd: Optional[str],
    umask: int,
    log: Path,
    open_files: int = -1,
    progress: Optional[Progress] = None,
) -> tuple[subprocess.Popen[bytes], str]:
    """Execute *argv* in a session of its own, with its output appended to *log*; called in a thread, since disks may hang.

    *open_files* is its soft limit of open files; -1: the agent's. Returns the process, and what the user should be warned of:
    a working directory that is not the one that was asked for.

    Raises StartError.
    """
    progress = progress or Progress()
    progress.what, progress.host_fault = f"the folder of its log, {log.parent},", True
    with step(f"write the kernel's log {log}", host_fault=False, remedy=LOG_REMEDY):
        descriptor = open_log(log)
    program = argv[0]
    try:
        progress.what = f"a folder of the PATH in which {program!r} is looked for"
        program = executable(program, environment)
        process, warning = _execute(argv, program, environment, cwd, umask, descriptor, progress)
        if open_files >= 0:
            # Of the running process, since a function between fork and exec would need a fork without threads.
            with contextlib.suppress(OSError, ValueError):  # it has ended already
                hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[1]
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_files, hard))
        return process, warning
    except OSError as error:
        raise _not_executed(error, argv[0], program) from error
    except ValueError as error:
        raise StartError(f"the command or an environment value cannot be passed on: {error}") from error
    finally:
        os.close(descriptor)


def _execute(
    argv: list[str],
    program: str,
    environment: dict[bytes, bytes],
    cwd: Optional[str],
    umask: int,
    log: int,
    progress: Progress,
) -> tuple[subprocess.Popen[bytes], str]:
    """Execute *program* in the first folder that can be entered: *cwd*, the kernel's home, or the root. Raises OSError."""
    home = os.fsdecode(environment.get(b"HOME", b"")) or "/"
    if cwd:
        progress.what, progress.host_fault = f"working directory {cwd}", False  # a client's choice, and so on any host
    reasons: list[str] = []
    for what, name, folder in _folders(cwd, home):
        progress.what, progress.host_fault = f"{what} {name}", name != cwd
        if reason := _not_enterable(folder):
            reasons.append(f"{what} {name} {reason}")
            continue
        # Notebook servers send the notebook's folder on their own disk; it need not exist here.
        warning = _warning(reasons, folder)
        if warning:
            os.write(log, f"{warning}\n".encode("utf-8", "replace"))
        progress.what, progress.host_fault = f"{what} {name}, or the program {program!r},", True
        try:
            process = subprocess.Popen(
                argv,
                env={**environment, b"PWD": _encoded(folder)},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=umask,  # files that cells write are not the agent's secrets
                executable=program,
            )
        except OSError as error:
            if error.filename != folder or folder == "/":
                raise
            reasons.append(f"{what} {name} cannot be entered ({error.strerror})")
        else:
            return process, warning
    raise FileNotFoundError(errno.ENOENT, "no folder can be entered", "/")


def _folders(cwd: Optional[str], home: str) -> list[tuple[str, str, str]]:
    """Return where a kernel starts, as far as it can be entered: what each is, its name, and its path."""
    wanted = [("working directory", cwd, _expanded(cwd, home))] if cwd else []
    return [*wanted, ("home", home, home), ("root", "/", "/")]


def _warning(reasons: list[str], folder: str) -> str:
    return f"{' and '.join(reasons)}: started in {folder}" if reasons else ""


def _expanded(folder: str, home: str) -> str:
    """Return *folder* as a path: what exists by that very name, else with `~` and the login's $NAME; relative to *home*."""
    with contextlib.suppress(ValueError):  # a NUL in it, say
        if not os.path.isdir(os.path.join(home, folder)):
            folder = os.path.expandvars(os.path.expanduser(folder))
    return os.path.join(home, folder)


def _not_enterable(folder: str) -> str:
    """Return why *folder* cannot be entered, empty if it can."""
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            return "is not a directory"
        return "" if os.access(folder, os.X_OK) else "cannot be entered (Permission denied)"
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist on this node"
    except OSError as error:
        return f"cannot be entered ({error.strerror})"
    except ValueError:
        return "is not a path"


def first_enterable(cwd: Optional[str], home: str) -> tuple[str, str]:
    """Return the folder in which `spawn` would execute a kernel, and what it would warn of; raises StartError without any."""
    reasons: list[str] = []
    for what, name, folder in _folders(cwd, home):
        if reason := _not_enterable(folder):
            reasons.append(f"{what} {name} {reason}")
        else:
            return folder, _warning(reasons, folder)
    raise StartError("no folder can be entered")


def open_log(path: Path) -> int:
    """Open a kernel's log for appending; raises OSError, and StartError for what is no log of this user."""
    # O_NONBLOCK for the open alone: a folder for logs may be shared, and hold a FIFO of that name.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    log = os.open(path, flags, 0o600)
    found = os.fstat(log)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        os.close(log)
        raise StartError(f"the kernel's log {path} exists and is not a file of this user", remedy=LOG_REMEDY)
    os.set_blocking(log, True)
    return log


async def spawn_aside(
    argv: list[str],
    environment: dict[bytes, bytes],
    cwd: Optional[str],
    umask: int,
    log: Path,
    open_files: int,
    seconds: float,
) -> tuple[subprocess.Popen[bytes], str]:
    """Do as `spawn`, in a thread of its own, for *seconds* at most: one user's mount that hangs is to hold up nobody else.

    Raises StartError. A process that comes later than that is ended.
    """
    # What it says before its thread has begun: then others wait for the same.
    progress = Progress(f"working directory {cwd}", host_fault=False) if cwd else Progress()
    # All that may hang, and is a client's or a kernelspec's choice.
    key = ("spawn", cwd, argv[0], environment.get(b"HOME"), environment.get(b"PATH"), log.parent)
    try:
        spawned: tuple[subprocess.Popen[bytes], str] = await aside(
            key, seconds, spawn, argv, environment, cwd, umask, log, open_files, progress, late=_end
        )
    except asyncio.TimeoutError:
        remedy = "check the mounts of that host, or name another folder"
        raise StartError(f"{progress.what} does not answer", host_fault=progress.host_fault, remedy=remedy) from None
    except OSError as error:
        remedy = "check the mounts of that host"
        raise StartError(f"cannot start a kernel: {error.strerror}", host_fault=True, remedy=remedy) from error
    return spawned


def _end(spawned: tuple[subprocess.Popen[bytes], str]) -> None:
    """End what was started after its start had been given up."""
    process, _ = spawned
    end_group(process.pid)
    process.wait()


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
    """Return the path that *program* names in the kernel's own PATH, not the agent's; raises StartError."""
    if "/" in program:
        return program
    path = os.fsdecode(environment.get(b"PATH", os.fsencode(os.defpath)))
    found = shutil.which(program, path=path)
    if found is None:
        text = f"cannot execute {program!r}: not found on the node's PATH, which is {path[:_PATH_SHOWN]!r}"
        raise StartError(f"{text}; no profile of a login shell is read", remedy=_PATH_REMEDY)
    return found


def _not_executed(error: OSError, program: str, path: str) -> StartError:
    """Return what is said of an *error* that came from executing *program*, which is at *path*."""
    if error.errno not in KERNELS_FAULT:
        return StartError(f"cannot start a kernel: {error.strerror or error}", host_fault=True)
    reason = str(error.strerror or error)
    if error.errno in (errno.ENOENT, errno.ENOEXEC) and os.path.isfile(path):
        reason = _first_line(path) or reason
    return StartError(f"cannot execute {program!r}: {reason}")


def _first_line(script: str) -> str:
    """Return what is wrong with how *script* begins: the system says of it, too, that "no such file" is there."""
    try:
        with open(script, "rb") as file:
            line = file.readline(_LINE_READ).rstrip(b"\n").decode("utf-8", "replace")
    except OSError:
        return ""
    if line.startswith("\x7fELF"):
        return "the file is there, but not the loader that it needs: it was made for another system"
    if not line.startswith("#!"):
        return "it has no #! line, and is not a program of this system"
    if line.endswith("\r"):
        return f"its first line, {line!r}, ends in a carriage return: save the file with the line ends of Unix"
    return f"its first line, {line!r}, names an interpreter that is not there"
