"""Telling one process from another: a process is its pid and its start time, never a bare pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from typing import Optional

_LEFTOVERS_GRACE = 1.0  # seconds between SIGTERM and SIGKILL
OPEN_FILES = 65536
"""Files that an agent and a gateway may have open, as far as the hard limit allows: two for each stream, and each client of a
kernel has five. The soft limit of a login, 1024 as a rule, is over with a hundred kernels."""


def start_time(pid: int) -> Optional[str]:
    """Return when *pid* started, as a token to compare with (boot id and clock ticks since boot); None if it is gone.

    A zombie counts as gone: it runs no more.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command, in brackets, may itself hold spaces and brackets; what follows the last one is regular.
            fields = stat.read().rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            boot_id = boot.read().strip()
    except (OSError, ValueError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return f"{boot_id}:{fields[19].decode()}"


def is_running(pid: int, started: str) -> bool:
    """Whether the process that *pid* and *started* name still runs."""
    return pid > 0 and start_time(pid) == started


def signal_process(pid: int, started: str, signum: int, group: bool) -> bool:
    """Send *signum* to the process, or to its whole group; return False if it is gone (nothing is signalled then)."""
    if not is_running(pid, started):
        return False
    try:
        if group:
            os.killpg(pid, signum)
        else:
            os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):  # gone, or another user's, behind a launcher's sudo
        return False
    return True


def catches(pid: int, signum: int) -> bool:
    """Whether the process has a handler for *signum*."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    except (OSError, ValueError):
        pass  # gone, or a system that doesn't tell
    return False


def end_group(pgid: int, signum: int = signal.SIGKILL) -> bool:
    """Signal what is left of the process group *pgid*; return False if nothing is."""
    try:
        os.killpg(pgid, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def group_members(pgid: int) -> list[int]:
    """Return the pids in the process group *pgid* that still run (zombies don't)."""
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    fields = stat.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == pgid and fields[0] not in (b"Z", b"X"):
                members.append(int(entry))
    return members


async def exit_code(pid: int, started: str, *, is_child: bool) -> Optional[int]:
    """Wait for the process to end, without reaping it; return its code (-N for signal N), None if it is no child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, AttributeError):  # a system or a Python without pidfd (before Linux 5.3), or it is gone
        while is_running(pid, started):
            await asyncio.sleep(0.1)
    else:
        await _readable(descriptor, unless=not is_child and not is_running(pid, started))
    if not is_child:
        return None
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


async def _readable(descriptor: int, *, unless: bool) -> None:
    """Wait until *descriptor* can be read, *unless* there is no reason to, and close it."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def set_ended() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(descriptor, set_ended)
    try:
        if not unless:
            await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def end_leftovers(pgid: int) -> None:
    """End the process group that *pgid* led: SIGTERM, and SIGKILL a second later for what is left.

    The leader, unreaped, or a member of the group keeps its id from being reused meanwhile.
    """
    if end_group(pgid, signal.SIGTERM):
        deadline = time.monotonic() + _LEFTOVERS_GRACE
        while time.monotonic() < deadline and group_members(pgid):
            await asyncio.sleep(0.02)
        end_group(pgid, signal.SIGKILL)


def reset_signals() -> None:
    """Give the dispositions and the mask that kernels shall inherit their defaults back.

    Called once, when an agent starts: a login under nohup, or a shell's background job, ignores SIGINT and SIGHUP, and a
    kernel that inherits that can't be interrupted. Handlers don't survive execve, so setting it here is enough and
    spares every kernel a preexec function.
    """
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # Popen gives kernels the default back (restore_signals)


def raise_file_limit() -> int:
    """Raise our own limit of open files; return the soft limit as it was, which kernels shall have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if 0 <= soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return soft
