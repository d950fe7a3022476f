"""A stand-in for a kernel: listens on the five sockets of its connection file and echoes what it gets. Any Python 3.

Run as `python standin.py CONNECTION_FILE [BEHAVIOUR[:VALUE]]...`, see `BEHAVIOURS`; no ZMQ, no ipykernel, up in 30 ms.
"""

# It has to start quickly, so no pathlib.
# ruff: noqa: PTH104, PTH109, PTH110, PTH115, PTH123, PTH208, UP031
from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any


def put(path: str, text: str) -> None:
    """Write *text* to *path* at once, so that whoever sees the file sees all of it."""
    with open(path + ".part", "w") as file:
        file.write(text)
    os.rename(path + ".part", path)


def ignore(name: str) -> None:
    """Ignore a signal, e.g. ignore:SIGTERM."""
    signal.signal(getattr(signal, name), signal.SIG_IGN)


def note(path: str) -> None:
    """Write the name of each SIGINT and SIGUSR1 to a file."""

    def heard(signum: int, frame: object) -> None:
        put(path, signal.Signals(signum).name)

    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, heard)
    put(path + ".set", "")


def say(text: str) -> None:
    """Print a line."""
    print(text, flush=True)


def flood(size: str) -> None:
    """Print that many bytes, in numbered lines of 100."""
    for number in range(int(size) // 100):
        sys.stdout.write("%099d\n" % number)
    sys.stdout.flush()


def facts(path: str) -> None:
    """Write what this process was started with to a file, as JSON; the environment byte for byte."""
    with open("/proc/self/environ", "rb") as file:
        pairs = [entry.split(b"=", 1) for entry in file.read().split(b"\0") if entry]
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    found = {
        "env": {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs},
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "ignored": int(status["SigIgn"], 16),
        "blocked": int(status["SigBlk"], 16),
        "descriptors": sorted(
            os.readlink("/proc/self/fd/%s" % fd)
            for fd in os.listdir("/proc/self/fd")
            if int(fd) > 2 and os.path.exists("/proc/self/fd/%s" % fd)
        ),
    }
    put(path, json.dumps(found))


def child(path: str) -> None:
    """Leave a process in our group that ignores SIGTERM, and write its pid to a file."""
    code = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-ISc", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    put(path, str(process.pid))
    children.append(process)


def leave(code: str) -> None:
    """Exit with a code, before anything listens."""
    sys.stdout.flush()
    os._exit(int(code))


def die(name: str) -> None:
    """End by a signal of one's own, before anything listens."""
    os.kill(os.getpid(), getattr(signal, name))


def deaf(_: str) -> None:
    """Never listen."""
    while True:
        time.sleep(3600)


def answer(text: str) -> None:
    """Play a launcher: CONNECTION_FILE is `{response_address}`; send *text* there and go on."""
    host, _, port = sys.argv[1].rpartition(":")
    with contextlib.closing(socket.create_connection((host, int(port)))) as connection:
        connection.sendall(text.encode())


def refused(path: str) -> None:
    """Have another listen on the port of the heartbeat, the first time that it is run with *path*."""
    if not os.path.exists(path):
        put(path, "")
        with open(sys.argv[1]) as file:
            others.append(socket.create_server(("127.0.0.1", json.load(file)["hb_port"])))


def complains(path: str) -> None:
    """Say that a port is taken and never listen, the first time that it is run with *path*."""
    if not os.path.exists(path):
        put(path, "")
        say("zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:1')")
        deaf("")


def count(path: str) -> None:
    """Add an x to a file."""
    with open(path, "a") as file:
        file.write("x")


def ports(when: str) -> None:
    """Take no UNIX sockets: end with code 9 before (ports:at once) or as soon as all are open (ports:late)."""
    with open(sys.argv[1]) as file:
        info = json.load(file)
    if info["transport"] == "ipc":
        if when == "late":
            listen(info)
            time.sleep(0.3)
        sys.stderr.write("RuntimeError: Invalid argument\n")
        os._exit(9)


others: list[socket.socket] = []
children: list[subprocess.Popen[bytes]] = []
BEHAVIOURS = {
    function.__name__: function
    for function in (ignore, note, say, flood, facts, child, leave, die, deaf, answer, refused, complains, ports, count)
}


def echo(connection: socket.socket) -> None:
    """Send back what comes, until the other end closes; `bye` ends the process with code 7."""
    with contextlib.closing(connection):
        while True:
            data = connection.recv(1 << 16)
            if not data:
                return
            connection.sendall(data)
            if data == b"bye":
                os._exit(7)


def listen(info: dict[str, Any]) -> None:
    """Listen on the five sockets, each in a thread of its own."""
    for channel in ("shell", "iopub", "stdin", "hb", "control"):
        port = info[channel + "_port"]
        if info["transport"] == "ipc":
            server = socket.socket(socket.AF_UNIX)
            server.bind("%s-%d" % (info["ip"], port))
        else:
            server = socket.socket(socket.AF_INET)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((info["ip"], port))
        server.listen(50)
        threading.Thread(target=accept, args=(server,), daemon=True).start()


def accept(server: socket.socket) -> None:
    """Serve each connection in a thread of its own."""
    while True:
        connection, _ = server.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def main() -> None:
    """Do what the command line says, then listen and echo for as long as we live."""
    for behaviour in sys.argv[2:]:
        name, _, value = behaviour.partition(":")
        BEHAVIOURS[name](value)
    if os.path.exists(sys.argv[1]):
        with open(sys.argv[1]) as file:
            listen(json.load(file))
    while True:
        # In short: a signal that comes just before a sleep does not end it, and its handler runs afterwards.
        time.sleep(0.2)


if __name__ == "__main__":
    main()
