"""What a node says of itself to `jupyter distributed doctor`: its Python, the agent's place there, locks, limits, clock and disk.

Sent as text behind boot.py, whose functions it is given, and run by the same python3; so it keeps to what every Python 3 can
read. Nothing is started, and nothing made but the agent's folder, as by a boot. Prints a sentinel and one line of JSON.
"""

import contextlib
import fcntl
import json
import os
import pwd
import resource
import signal
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # see boot.py
    from types import ModuleType
    from typing import Any, Callable

PROBE_DEADLINE = 8  # seconds for each thing that a disk may hold up


def checkup(boot: "ModuleType", config: "dict[str, str]") -> None:
    """Print what there is to say; *boot* has the functions by which an agent is brought up here."""
    began = time.time()
    report = {
        "python": sys.version.split()[0],
        "executable": sys.executable or "",
        "old": sys.version_info < boot.OLDEST,
        "node": socket.gethostname(),
        "user": user(),
        "nofile": limits(resource.RLIMIT_NOFILE),
        "sshd_files": sshd_files(),
        "nproc": limits(resource.RLIMIT_NPROC),
        "processes": processes(),
    }  # type: dict[str, object]
    report.update(place(boot, config["protocol"]))
    report["took"] = time.time() - began
    report["time"] = time.time()
    sys.stdout.write(config["sentinel"] + json.dumps(report) + "\n")
    sys.stdout.flush()


def user() -> str:
    """Return the login's user name, or its number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def limits(which: int) -> "list[int]":
    """Return a limit's soft and hard value, -1 for none."""
    return [-1 if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(which)]


def sshd_files() -> int:
    """Return how many files the sshd of this login may have open, -1 for no limit, 0 where that is not known."""
    pid = os.getppid()
    try:
        for _ in range(16):
            with open("/proc/%d/stat" % pid) as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
            if name.startswith("sshd"):
                with open("/proc/%d/limits" % pid) as file:
                    soft = next(line.split()[3] for line in file if line.startswith("Max open files"))
                return -1 if soft == "unlimited" else int(soft)
            pid = int(rest.split()[1])
    except (OSError, ValueError, IndexError, StopIteration):  # no /proc, or one that hides other users' processes
        pass
    return 0


def processes() -> int:
    """Return how many processes this user has."""
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                found += os.stat("/proc/" + name).st_uid == os.getuid()
    return found


def place(boot: "ModuleType", protocol: str) -> "dict[str, object]":
    """Return the agent's folder, whether locks work there, whether an agent is there, and the free bytes of its disk."""
    try:
        folder, passed_over = within(boot.folder)
    except OSError as error:
        return {"why": str(error)}
    found = {"folder": folder, "lock": "", "agent": False, "free": -1, "passed_over": passed_over[:4]}  # type: dict[str, object]
    with contextlib.suppress(OSError):
        disk = os.statvfs(folder)
        found["free"] = disk.f_bavail * disk.f_frsize
    try:
        within(lambda: lock(os.path.join(folder, "lock")))
    except OSError as error:
        found["lock"] = str(error)
    path = os.path.join(folder, "agent-%s.sock" % protocol)
    with contextlib.suppress(OSError):
        found["agent"] = os.path.exists(path) and within(lambda: boot.answers(path))
    return found


def lock(path: str) -> None:
    """Take and give back the lock that a boot takes; one that another boot holds works. Raises OSError."""
    with open(path, "a") as file:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)


def within(function: "Callable[[], Any]") -> "Any":
    """Return what *function* returns; raises OSError if that takes too long, where the system can be interrupted."""

    def late(signum: int, frame: object) -> None:
        raise OSError("no answer within %d s" % PROBE_DEADLINE)

    signal.signal(signal.SIGALRM, late)
    signal.alarm(PROBE_DEADLINE)
    try:
        return function()
    finally:
        signal.alarm(0)
