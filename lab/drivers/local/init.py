"""What a local machine's main process runs under: namespaces of its own where the kernel allows, and the lease.

Run by file name (`python -I -S init.py …`), so that it costs no import of the lab; standard library only.

    init.py probe                                        print `root`, `user` or `none: REASON`
    init.py run ISOLATION NAME LEASE PLACES -- ARGV…     be a machine: host name NAME, lease in the file LEASE
    init.py enter PID HOME -- ARGV…                      run ARGV inside the machine whose main process is PID

What a machine prints goes to stdout, each line behind the time (UTC) at which it came, since sshd's own lines have none.

PLACES is JSON, what the machine sees in place of this one's own: `tmp` (its /tmp) and `run` (its sockets' folder, also
there), `passwd` (its /etc/passwd), `hosts_file` (its /etc/hosts), `needs` (an empty folder that shall be there). Without
namespaces it means nothing.

util-linux's `unshare` was rejected: for a user without root it would need two nested user namespaces to have a host name and
still be that user, and options that are younger than many a system's util-linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from types import FrameType

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x4000000, 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
PR_SET_PDEATHSIG = 1
POLL_SECONDS = 1.0
LINE_BYTES = 65536
"""A longer line is cut."""

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    kinds = kind.encode() if kind else None
    _call(_libc.mount(source.encode(), target.encode(), kinds, ctypes.c_ulong(flags), None), f"mount {target}")


def isolate(isolation: str) -> None:
    """Give this process (and, for processes, its children) namespaces of its own; raise OSError where it can't be."""
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWPID | (CLONE_NEWUSER if isolation == "user" else 0)
    _call(_libc.unshare(flags), "unshare")
    if isolation == "user":
        # The same user inside as outside: an SSH server that took itself for root would try to become others.
        for path, text in (
            ("/proc/self/setgroups", "deny"),
            ("/proc/self/uid_map", f"{uid} {uid} 1"),
            ("/proc/self/gid_map", f"{gid} {gid} 1"),
        ):
            with open(path, "w") as file:  # noqa: PTH123 -- as small as it gets: this runs once for each machine
                file.write(text)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)


def probe() -> str:
    """Say which isolation works here, trying each in a child."""
    reason = ""
    for isolation in ("root",) if os.geteuid() == 0 else ("user",):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                isolate(isolation)
                inner = os.fork()
                if inner == 0:
                    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
                    os._exit(0)
                if os.waitpid(inner, 0)[1]:
                    raise OSError("its /proc can't be mounted")
                _hostname("probe")
            except OSError as error:
                os.write(write, str(error).encode())
                os._exit(1)
            os._exit(0)
        os.close(write)
        reason = os.read(read, 500).decode()
        os.close(read)
        if os.waitpid(child, 0)[1] == 0:
            return isolation
    return f"none: {reason or 'it ended'}"


def _hostname(name: str) -> None:
    _call(_libc.sethostname(name.encode(), len(name.encode())), "sethostname")


def _private_tmp(tmp: str, run: str) -> None:
    """Put the machine's own folder in /tmp's place, with its sockets' folder where everybody looks for it."""
    if run.startswith("/tmp/"):  # noqa: S108 -- the folder that all of Unix knows by this name
        inside = tmp + run[4:]
        os.makedirs(inside, mode=0o700, exist_ok=True)  # noqa: PTH103
        _mount(run, inside, None, MS_BIND)
    _mount(tmp, "/tmp", None, MS_BIND | MS_REC)  # noqa: S108


def _empty_folder(path: str) -> None:
    """Let the empty folder *path* be there for this machine alone; raise OSError where it can't.

    The nearest folder that is there becomes a file system in memory, with all that is in it now mounted or linked there.
    """
    outer = os.path.dirname(path)  # noqa: PTH120
    while not os.path.isdir(outer):  # noqa: PTH112
        outer = os.path.dirname(outer)  # noqa: PTH120
    if os.path.isdir(path):  # noqa: PTH112
        return
    was = os.open(outer, os.O_RDONLY)
    _mount("tmpfs", outer, "tmpfs", MS_NOSUID | MS_NODEV)
    os.chmod(outer, 0o755)  # noqa: PTH101, S103 -- as /run is
    for entry in os.scandir(was):
        source, target = f"/proc/self/fd/{was}/{entry.name}", f"{outer}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211
            continue
        if entry.is_dir():
            os.mkdir(target)  # noqa: PTH102
        else:
            os.close(os.open(target, os.O_CREAT))
        # What goes away meanwhile is missed by nobody.
        with contextlib.suppress(OSError):
            _mount(source, target, None, MS_BIND | MS_REC)
    os.close(was)
    os.makedirs(path, mode=0o755)  # noqa: PTH103


def _furnish(places: dict[str, str]) -> None:
    """Put what is the machine's own in the place of what is everybody's; called in its own mount namespace."""
    if places.get("needs"):
        _empty_folder(places["needs"])
    if places.get("passwd"):
        _mount(places["passwd"], "/etc/passwd", None, MS_BIND)
    if places.get("hosts_file"):
        _mount(places["hosts_file"], "/etc/hosts", None, MS_BIND)
    if places.get("tmp"):
        _private_tmp(places["tmp"], places.get("run", ""))


def _child(argv: list[str]) -> int:
    """Start *argv*; it is killed if this process is."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() not in {parent, 0}:
            os._exit(1)
        try:
            os.execvp(argv[0], argv)  # noqa: S606 -- the machine's own main process
        except OSError as error:
            os.write(2, f"{argv[0]}: {error}\n".encode())
            os._exit(127)
    return child


def _first(argv: list[str]) -> int:
    """Be the machine's process 1: start *argv*, collect orphans, end when *argv* ends; return its exit code."""
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    main = _child(argv)
    _forward(main)
    while True:
        with contextlib.suppress(InterruptedError):
            pid, status = os.waitpid(-1, 0)
            if pid == main:
                return os.waitstatus_to_exitcode(status)


def _forward(pid: int) -> None:
    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, forward)


def is_over(lease: str) -> bool:
    """Say whether the UNIX time in the file *lease* has passed; no file, 0 or no number means never."""
    try:
        with open(lease) as file:  # noqa: PTH123
            until = float(file.read().strip() or 0)
    except (OSError, ValueError):
        return False
    return 0 < until <= time.time()


class _Log:
    """Takes what the machine prints, and writes it line by line with times to what stdout was."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        self.sources = [read]
        """What to wait for; nothing once the machine has closed its end."""
        for number in (1, 2):
            os.dup2(write, number)
        os.close(write)
        self._rest = b""
        self._taken = 0

    def opened(self) -> None:
        """Let go of the machine's end; called when the machine has it."""
        for number in (1, 2):
            os.dup2(self._out, number)

    def copy(self) -> None:
        """Write what has come until now."""
        for source in list(self.sources):
            try:
                data = os.read(source, LINE_BYTES)
            except BlockingIOError:
                return
            self._taken += len(data)
            if not data:
                self.sources.clear()
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._write(lines)
            if len(self._rest) > LINE_BYTES:
                self.end()

    def drain(self) -> None:
        """Write what has come, to the last line, which may lack its end; called when the main process has ended."""
        before = -1
        while self.sources and before != self._taken:
            before = self._taken
            self.copy()
        self.end()

    def end(self) -> None:
        """Write the line that has begun."""
        self._write([self._rest] if self._rest else [])
        self._rest = b""

    def say(self, text: bytes) -> None:
        """Write a line of this process's own."""
        self.end()
        self._write([text])

    def _write(self, lines: list[bytes]) -> None:
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z ".encode()
        # A full disk loses lines; the machine goes on.
        with contextlib.suppress(OSError):
            text = b"".join(stamp + line + b"\n" for line in lines)
            while text:
                text = text[os.write(self._out, text) :]


def run(isolation: str, name: str, lease: str, places: dict[str, str], argv: list[str]) -> int:
    """Be a machine until its main process ends or its lease is over."""
    awake = _wake_up()
    if isolation != "none":
        isolate(isolation)
        _hostname(name)
        _furnish(places)
    log = _Log()
    if isolation == "none":
        main = _child(argv)
    else:
        main = os.fork()
        if main == 0:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            os._exit(_first(argv) & 0xFF)
    log.opened()
    _forward(main)
    while True:
        pid, status = os.waitpid(main, os.WNOHANG)
        if pid:
            log.drain()
            return os.waitstatus_to_exitcode(status)
        log.copy()
        if is_over(lease):
            log.say(b"lab: the lease is over, this machine ends")
            # Without namespaces what left its session lives on; the lab's keeper and `lab gc` find that by its mark.
            os.kill(main, signal.SIGKILL)
            os.waitpid(main, 0)
            return 0
        # A child's end wakes this up early: its handler does nothing but interrupt.
        select.select([awake, *log.sources], [], [], POLL_SECONDS)
        with contextlib.suppress(BlockingIOError):
            os.read(awake, 64)


def _wake_up() -> int:
    """Return a file that can be read when a child has ended."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read


def enter(pid: str, home: str, argv: list[str]) -> int:
    """Run *argv* in the namespaces of the machine whose main process is *pid*; return its exit code."""
    kinds = ("user", "mnt", "uts", "pid_for_children")
    flags = (CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWPID)
    files = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in kinds]
    for kind, file, flag in zip(kinds, files, flags, strict=True):
        if kind == "user" and os.path.samefile(f"/proc/{pid}/ns/user", "/proc/self/ns/user"):  # noqa: PTH121
            continue
        _call(_libc.setns(file, flag), f"setns {kind}")
    os.chdir(home)
    child = _child(argv)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _main(words: list[str]) -> int:
    verb, rest = words[0], words[1:]
    if verb == "probe":
        print(probe())
        return 0
    split = rest.index("--")
    argv = rest[split + 1 :]
    if verb == "run":
        return run(rest[0], rest[1], rest[2], json.loads(rest[3]), argv)
    return enter(rest[0], rest[1], argv)


if __name__ == "__main__":
    code = _main(sys.argv[1:])
    sys.exit(code if code >= 0 else 128 - code)
