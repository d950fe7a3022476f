"""Keeps the JVM beside an R kernel: starts it, holds the connection by which it knows that R lives, ends it with R.

Besides, it answers R, by files in the launcher's folder, whether the cluster can be reached, what an error of Spark's means and
why no task runs, and tells what a waiting cell waits for.

Run by `command.py` before it becomes R: `python3 backend.py R_PID FOLDER java …`. R itself can't hold that connection:
the JVM ends if it isn't made within ten seconds, and R may be busy with a cell then.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import IO, TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from ..last_words import LastWords

PORTS = "rbackend"
"""File in the launcher's folder that the JVM writes: where it listens, and the secret that it wants to hear."""
ENDED = "rbackend.ended"
"""File that says why there is no JVM any more, with host and remedy where the JVM was there at all."""
ASKED, ANSWER, NEWS = "rbackend.asked", "rbackend.answer", "rbackend.news"
"""What R asks before it makes a session (a number), when Spark could not (a number, and Spark's words) or when no task runs
(a number, `STUCK`, and what is known of executors), the answer (the number, and the reason), and what is new while `ASKED` is
there."""
STUCK = "stuck"
_GRACE = 2.0  # seconds for the JVM to end by itself once R has
_LOOK = 0.05


def main(arguments: list[str]) -> int:
    """Run the JVM until it or R ends."""
    from ..last_words import LastWords
    from ..reasons import explain_end

    parent, folder, command = int(arguments[0]), Path(arguments[1]), arguments[2:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are R's; an ignored signal stays ignored in the JVM
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        jvm = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        _write(folder / ENDED, f"{command[0]} can't be run: {error.strerror}")
        return 1
    assert jvm.stdout is not None
    said = LastWords()
    reader = threading.Thread(target=_pass_on, args=(jvm.stdout, sys.stderr.buffer, said), daemon=True)
    reader.start()
    threading.Thread(target=_attend, args=(folder,), daemon=True).start()
    monitor: Optional[socket.socket] = None
    while jvm.poll() is None and os.getppid() == parent:
        if monitor is None and (folder / PORTS).exists():
            monitor = _hold(folder / PORTS)
        time.sleep(_LOOK)
    if jvm.poll() is None:
        _end(jvm, monitor)
        return 0
    reader.join(1.0)
    started = (folder / PORTS).exists()
    when = "while the kernel ran" if started else "at its start"
    _write(folder / ENDED, ("" if started else _refusal(folder)) or str(explain_end(when, jvm.returncode, said.told())))
    return 1


def _refusal(folder: Path) -> str:
    """Return what is wrong with the cluster's configuration, with host and remedy; "" if nothing is.

    Asked once a JVM has ended before it said where it listens: Spark refuses to start without one, in words of Java.
    """
    from ..checks import check_configuration
    from ..errors import LaunchError
    from ..options import parse

    try:
        check_configuration(parse([], os.environ, str(folder)))
    except LaunchError as error:
        return str(error)
    return ""


def _pass_on(output: IO[bytes], log: IO[bytes], said: LastWords) -> None:
    for line in output:
        log.write(line)
        log.flush()
        said.add(line.decode("utf-8", "replace").rstrip())


def _attend(folder: Path) -> None:
    """Answer R's questions, for as long as this process lives."""
    from ..checks import check_cluster
    from ..errors import LaunchError
    from ..options import parse
    from ..reasons import explain
    from ..stuck import say
    from ..watch import Watch

    options = parse([], os.environ, str(folder))
    watch, answered = Watch(lambda: options), ""
    while True:
        time.sleep(_LOOK)
        try:
            asked, _, failure = (folder / ASKED).read_text("utf-8", "replace").strip().partition("\n")
        except OSError:
            continue
        if asked and asked != answered:
            refusal = ""
            try:
                if failure.startswith(f"{STUCK}\n"):
                    refusal = say(failure.partition("\n")[2])
                elif failure:
                    refusal = str(explain(RuntimeError(failure), options))
                else:
                    check_cluster(options)
            except LaunchError as error:
                refusal = str(error)
            watch, answered = Watch(lambda: options), asked
            _write(folder / ANSWER, f"{asked}\n{refusal}\n")
        elif asked:
            words = io.StringIO()
            with contextlib.redirect_stderr(words):
                watch.look()
            if words.getvalue():
                with open(folder / NEWS, "a", encoding="utf-8") as news:
                    news.write(words.getvalue())


def _hold(ports: Path) -> socket.socket:
    """Connect to where the JVM watches for R's end, and return the connection."""
    content = ports.read_bytes()
    port = struct.unpack_from(">i", content, 4)[0]
    at = 8
    (length,) = struct.unpack_from(">i", content, at)
    at += 4 + length + 4  # R's library path, and a timeout
    (length,) = struct.unpack_from(">i", content, at)
    secret = content[at + 4 : at + 4 + length]
    monitor = socket.create_connection(("localhost", port), timeout=10)
    monitor.sendall(struct.pack(">i", len(secret) + 1) + secret + b"\0")
    return monitor


def _end(jvm: subprocess.Popen[bytes], monitor: Optional[socket.socket]) -> None:
    """End the JVM in order, by what it takes for R's end; less kindly if it takes its time."""
    if monitor is not None:
        monitor.close()
    else:
        jvm.terminate()
    for harder in (jvm.terminate, jvm.kill):
        try:
            jvm.wait(_GRACE)
        except subprocess.TimeoutExpired:
            harder()
    jvm.wait()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    # So that imports are relative here, too.
    _package = types.ModuleType("eg_distributed_launcher")
    _package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules[_package.__name__] = _package
    __package__ = f"{_package.__name__}.r"
    sys.exit(main(sys.argv[1:]))
