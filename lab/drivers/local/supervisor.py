"""The supervisor of a local machine's daemons: a Spark master, a worker, a ResourceManager, a NodeManager.

Run by file name (`python -I -S supervisor.py …`) inside the machine, whose `init.py` it stands behind; standard library only.

    supervisor.py run FOLDER -- ARGV…      leave a supervisor behind and become ARGV, the machine's SSH server
    supervisor.py down FOLDER NAME [stay]  have a daemon killed and kept down; with `stay` what it began lives on
    supervisor.py up FOLDER NAME           let it be started again; wait until its port accepts

FOLDER holds all that there is to know, so that `down` and `up` work from outside of the machine's namespaces as well:

    daemons.json   what to run, by name: argv, env, cwd, fresh, work, after, listens (see `Daemon`)
    NAME.log       what the daemon prints; the run's before that is NAME.log.1
    NAME.pid       there while it runs
    NAME.down      while it exists, the daemon stays down
    control        a fifo: a byte written here has the supervisor look at once

As an init system does, what a daemon leaves behind when it dies (executors, containers) is ended with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LOOK_SECONDS = 0.5
AGAIN_SECONDS, LATEST_SECONDS, STEADY_SECONDS = 1.0, 8.0, 10.0
"""A daemon that has not run for STEADY_SECONDS is started again after AGAIN_SECONDS, then after twice that, up to LATEST_SECONDS:
a JVM that can't start would keep the machine busy with nothing else."""
MOVE_SECONDS = 5.0
"""For `down` and `up`."""
EX_UNAVAILABLE, EX_TEMPFAIL = 69, 75


def is_open(place: tuple[str, int]) -> bool:
    """Say whether something accepts there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(place) == 0


class Daemon:
    """One daemon as daemons.json has it, and its process.

    *fresh* are folders that it finds empty; *work* is the folder that what it begins runs in; *after* is where its master
    listens, which it waits for.
    """

    def __init__(self, folder: Path, name: str, facts: dict[str, Any]) -> None:
        self.name = name
        self.argv: list[str] = facts["argv"]
        self.env: dict[str, str] = facts["env"]
        self.cwd: str = facts["cwd"]
        self.fresh: list[str] = facts.get("fresh", [])
        self.work: str = facts.get("work", "")
        self.after: tuple[str, int] | None = _place(facts.get("after"))
        self.listens: tuple[str, int] | None = _place(facts.get("listens"))
        self.log, self.pid, self.marker = (folder / f"{name}.{end}" for end in ("log", "pid", "down"))
        self.process: subprocess.Popen[bytes] | None = None
        self.begun, self.pause, self.due = 0.0, AGAIN_SECONDS, 0.0

    def look(self) -> None:
        """Do what is to be done now: note that it has ended, kill it, start it."""
        word = self._told()
        kept_down = word is not None
        if self.process is not None and kept_down:
            self.process.kill()
            self.process.wait()
        if self.process is not None and self.process.poll() is not None:
            if word != "stay":
                self.end_leftovers()
            self.process = None
            self.pid.unlink(missing_ok=True)
            steady = kept_down or time.monotonic() - self.begun > STEADY_SECONDS
            self.pause = AGAIN_SECONDS if steady else min(2 * self.pause, LATEST_SECONDS)
            self.due = 0 if steady else self.begun + self.pause
        if self.process is None and not kept_down and time.monotonic() >= self.due:
            self.start()

    def _told(self) -> str | None:
        """Return the word of whoever wants it down; None while it may run."""
        try:
            return self.marker.read_text()
        except FileNotFoundError:
            return None

    def start(self) -> None:
        """Start it, unless its master does not listen yet."""
        if self.after is not None and not is_open(self.after):
            return
        self.begun = time.monotonic()
        for path in self.fresh:
            shutil.rmtree(path, ignore_errors=True)
            Path(path).mkdir(mode=0o700, parents=True)
        with contextlib.suppress(FileNotFoundError):
            self.log.replace(f"{self.log}.1")
        with self.log.open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    self.argv,
                    env=self.env,
                    cwd=self.cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                self.due = self.begun + LATEST_SECONDS
                log.write(f"{self.argv[0]}: {error}\n".encode())
                return
        _write(self.pid, str(self.process.pid))

    def end_leftovers(self) -> None:
        """Kill what runs in its folder of work: executors and containers have sessions of their own."""
        for entry in Path("/proc").iterdir() if self.work else ():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "cwd").readlink().is_relative_to(self.work):
                        os.kill(int(entry.name), signal.SIGKILL)


def supervise(folder: Path, main: int) -> None:
    """Keep the daemons of *folder* running until the process *main* has ended, and then end them."""
    daemons = [Daemon(folder, name, facts) for name, facts in _facts(folder).items()]
    for daemon in daemons:
        daemon.pid.unlink(missing_ok=True)
    fifo = folder / "control"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(fifo, 0o600)
    # For writing as well: a fifo whose last writer has left would count as readable for ever.
    ear = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while _lives(main):
        for daemon in daemons:
            daemon.look()
        for file in select.select([ear, awake], [], [], LOOK_SECONDS)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(file, 64)
    for daemon in daemons:
        if daemon.process is not None:
            daemon.process.kill()
            daemon.process.wait()
            daemon.end_leftovers()


def run(folder: Path, argv: list[str]) -> None:
    """Become *argv*, with a supervisor as an orphan beside it: an SSH server waits for no children but its own."""
    main = os.getpid()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            supervise(folder, main)
        os._exit(0)
    os.waitpid(child, 0)
    os.execvp(argv[0], argv)  # noqa: S606 -- the machine's own server


def down(folder: Path, name: str, stay: str = "") -> int:
    """Have the daemon killed; return an exit code of sysexits.h."""
    daemon = Daemon(folder, name, _facts(folder)[name])
    if not daemon.pid.exists() or not _ring(folder):
        return _failed(EX_UNAVAILABLE, f"no {name} runs here")
    _write(daemon.marker, stay)
    _ring(folder)
    deadline = time.monotonic() + MOVE_SECONDS
    while daemon.pid.exists():
        if time.monotonic() > deadline:
            return _failed(EX_TEMPFAIL, f"{name} is still there")
        time.sleep(0.02)
    return 0


def up(folder: Path, name: str) -> int:
    """Let the daemon be started; return an exit code of sysexits.h. Where nothing supervises, the machine's start will."""
    daemon = Daemon(folder, name, _facts(folder)[name])
    daemon.marker.unlink(missing_ok=True)
    if not _ring(folder):
        return 0
    deadline = time.monotonic() + MOVE_SECONDS
    while time.monotonic() < deadline:
        if daemon.after is not None and not is_open(daemon.after):
            return 0
        if daemon.listens is None or is_open(daemon.listens):
            return 0
        time.sleep(0.05)
    # A slow machine: it has been started, and whoever needs it waits for what its master says.
    return 0 if daemon.pid.exists() else _failed(EX_TEMPFAIL, f"{name} is not started again: {daemon.log}")


def _ring(folder: Path) -> bool:
    """Have the supervisor look; say whether there is one."""
    try:
        fifo = os.open(folder / "control", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    os.write(fifo, b"\n")
    os.close(fifo)
    return True


def _facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "daemons.json").read_text())
    return found


def _place(words: list[Any] | None) -> tuple[str, int] | None:
    return (str(words[0]), int(words[1])) if words else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    # Whole or not at all: what is there the moment the file is there must be all of it.
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _failed(code: int, why: str) -> int:
    sys.stderr.write(f"{why}\n")
    return code


if __name__ == "__main__":
    verb, place, *rest = sys.argv[1:]
    if verb == "run":
        run(Path(place), rest[1:])
    sys.exit({"down": down, "up": up}[verb](Path(place), *rest))
