"""Telling one process from another: a process is its pid and its start time, never a bare pid."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Awaitable, Callable, Iterable, NamedTuple, Optional

_PIDFD_GET_INFO = 0xC040FF0B
"""The ioctl of Linux 6.13 that tells of a pidfd's process; from 6.15 on with its exit status, also of another process' child."""
_PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")
_REAPED_WITHIN = 0.5  # seconds that a process' parent has to take its exit status, which is told only then
_EXECUTES_WITHIN = (
    0.3  # seconds that a process has to execute a program, seen from outside, also on a machine that is busy
)
OPEN_FILES = 65536
"""Files that an agent and a gateway may have open, as far as the hard limit allows: two for each stream, and each client of a
kernel has five. The soft limit of a login, 1024 as a rule, is over with a hundred kernels."""


_looks = ThreadPoolExecutor(2, thread_name_prefix="look")
"""Threads for looks at all processes: not the loop's own, whose threads a disk that hangs may all have."""
_readings = ThreadPoolExecutor(4, thread_name_prefix="read")
"""Threads for looks that read command lines as well, which hang with the memory of the process."""


async def in_thread(function: Callable[..., Any], *arguments: Any, reads_lines: bool = False) -> Any:
    """Call *function*, which looks at all processes, in a thread: that takes milliseconds where there are many."""
    return await asyncio.get_running_loop().run_in_executor(_readings if reads_lines else _looks, function, *arguments)


class Process(NamedTuple):
    """A process that ran when it was looked at."""

    pid: int
    started: str
    """See `start_time`."""
    group: int
    session: int
    parent: int


def look(pid: int) -> Optional[Process]:
    """Return the process *pid*, None if it is gone. A zombie counts as gone: it runs no more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The command, in brackets, may itself hold spaces and brackets; what follows the last one is regular.
            fields = stat.read().rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            boot_id = boot.read().strip()
    except (OSError, ValueError):
        return None
    return _read(pid, fields, boot_id)


def _read(pid: int, fields: list[bytes], boot_id: str) -> Optional[Process]:
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return Process(pid, f"{boot_id}:{fields[19].decode()}", int(fields[2]), int(fields[3]), int(fields[1]))


def all_running() -> dict[int, Process]:
    """Return all processes of this node by their pids, without zombies."""
    found = {}
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
        boot_id = boot.read().strip()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    process = _read(int(entry), stat.read().rpartition(b")")[2].split(), boot_id)
            except OSError:
                continue
            if process is not None:
                found[process.pid] = process
    return found


def command_lines(found: Iterable[Process]) -> dict[int, bytes]:
    """Return the argv of each process by its pid, the words ended by NUL; empty if it is gone, or is a thread of the system.

    While a process executes another program its command line is empty for a moment. A kernel that is missed counts as dead, so
    that moment is waited for: `_EXECUTES_WITHIN` for all of them together.
    """
    deadline = time.monotonic() + _EXECUTES_WITHIN
    return {each.pid: _command_line(each, deadline) for each in found}


def _command_line(process: Process, deadline: float) -> bytes:
    try:
        while True:
            with open(f"/proc/{process.pid}/cmdline", "rb") as file:
                line = file.read()
            # Threads of the system have no group, and never a command line; nor has a zombie.
            if line or not process.group or time.monotonic() > deadline or not is_running(process.pid, process.started):
                return line
            time.sleep(0.001)
    except OSError:
        return b""


def start_time(pid: int) -> Optional[str]:
    """Return when *pid* started, as a token to compare with (boot id and clock ticks since boot); None if it is gone.

    A zombie counts as gone: it runs no more.
    """
    found = look(pid)
    return None if found is None else found.started


def ticks(started: str) -> int:
    """Return the clock ticks since boot of a token of `start_time`; -1 for one that is none."""
    last = started.rpartition(":")[2]
    return int(last) if last.isdigit() else -1


def is_same_boot(started: str) -> bool:
    """Return True unless the token is of before this machine was started: pids of then mean nothing."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            return ":" not in started or started.startswith(boot.read().strip())
    except OSError:
        return True


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


def signal_one(pid: int, started: str, signum: int) -> bool:
    """Send *signum* to the process alone; return False if it is gone.

    By a pidfd where there are any: no other process can get the pid between the look at it and the signal.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, AttributeError):  # gone, or a system or a Python without pidfd
        return signal_process(pid, started, signum, group=False)
    try:
        if not is_running(pid, started):
            return False
        signal.pidfd_send_signal(descriptor, signum)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True


def may_signal(pid: int) -> bool:
    """Return False if the process is another user's, behind a launcher's sudo."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except OSError:  # gone
        pass
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
    return [process.pid for process in all_running().values() if process.group == pgid]


async def exit_code(
    pid: int, started: str, *, is_child: bool, ask: Optional[Callable[[], Awaitable[Optional[int]]]] = None
) -> Optional[int]:
    """Wait for the process to end, without reaping it; return its code (-N for signal N), None if it can't be known.

    It is known of children, and of others as far as the system tells, or their parent: *ask* asks it, once it has ended.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, AttributeError):  # a system or a Python without pidfd (before Linux 5.3), or it is gone
        while is_running(pid, started):
            await asyncio.sleep(0.1)
        if ask is not None:
            return await ask()
        return _childs_code(pid) if is_child else None
    try:
        if is_child or is_running(pid, started):
            await _readable(descriptor)
            if ask is not None and (code := await ask()) is not None:
                return code
            return _childs_code(pid) if is_child else await _strangers_code(pid, descriptor)
    finally:
        os.close(descriptor)
    return None if ask is None else await ask()


def _childs_code(pid: int) -> Optional[int]:
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


async def _strangers_code(pid: int, descriptor: int) -> Optional[int]:
    """Return the exit code of a process that has ended and is another's child, None where the system does not tell."""
    deadline = time.monotonic() + _REAPED_WITHIN
    while True:
        try:  # once its parent has taken the status
            told = fcntl.ioctl(descriptor, _PIDFD_GET_INFO, _INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
        except OSError:
            return _zombies_code(pid)
        mask, *_, status = _INFO.unpack(told)
        if mask & _PIDFD_INFO_EXIT:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return _zombies_code(pid)
        await asyncio.sleep(0.01)


def _zombies_code(pid: int) -> Optional[int]:
    """Return the exit code of a zombie, None if it has been reaped, or for 0, which may also mean that we must not know."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        status = int(fields[49]) if fields[0] == b"Z" else 0
        return os.waitstatus_to_exitcode(status) if status else None
    except (OSError, ValueError, IndexError):
        return None


async def _readable(descriptor: int) -> None:
    """Wait until *descriptor* can be read."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def set_ended() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(descriptor, set_ended)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)


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
