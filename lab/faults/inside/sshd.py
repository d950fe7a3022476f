"""What faults do to a node's sshd, and undo. FACTS of the node come with each call: see hand.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lab.faults.inside.steps import SECONDS, StepFailed, pids, run, stat, write


def sshd(facts: dict[str, Any]) -> int:
    """Return the pid of the listening sshd.

    Sessions may have its name (before OpenSSH 9.8), and no sshd as their parent once they have outlived an earlier listener:
    what tells them apart is that a session calls itself `sshd: USER…`, and a listener keeps its command line or says so.
    """
    names = servers(facts)
    for pid, (name, state, parent, _) in sorted(names.items()):
        if name == "sshd" and state not in "ZX" and names.get(parent, ("",))[0] != "sshd" and is_listener(title(pid)):
            return pid
    raise StepFailed("no sshd runs here")


def servers(facts: dict[str, Any]) -> dict[int, tuple[str, str, int, int]]:
    """Return what `stat` says of all sshd processes, listener and sessions; in a local lab, of those below the node's own."""
    names = {pid: found for pid in pids() if (found := stat(pid))}
    members = below(int(facts["root"]), names) if "root" in facts else set(names)
    return {pid: names[pid] for pid in members if names.get(pid, ("",))[0].startswith("sshd")}


def title(pid: int) -> str:
    """Return what a process shows as its command line, empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def is_listener(shown: str) -> bool:
    """Say whether what an sshd shows as its command line is a listener's; before OpenSSH 8.2 that is its argv."""
    return "[listener]" in shown or not shown.startswith("sshd:")


def below(root: int, names: dict[int, tuple[str, str, int, int]]) -> set[int]:
    """Return a process and all its descendants."""
    members = {root}
    while more := {pid for pid, found in names.items() if found[2] in members} - members:
        members |= more
    return members


def sessions(facts: dict[str, Any]) -> list[int]:
    """Return the processes that serve logins, those of an earlier listener as well."""
    main = 0
    with contextlib.suppress(StepFailed):  # sessions live on without one
        main = sshd(facts)
    return sorted(set(servers(facts)) - {main})


def send(which: str, name: str, *, facts: dict[str, Any]) -> None:
    """Signal the listening sshd or its sessions."""
    for pid in [sshd(facts)] if which == "sshd" else sessions(facts):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, f"SIG{name}"))


def listeners(port: int) -> set[str]:
    """Return the inodes of the sockets that listen on *port*."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _told(facts: dict[str, Any]) -> list[str]:
    """Return what sshd's configuration comes to, in lower case; raise StepFailed for a bad one."""
    config = ["-f", facts["config"]] if facts.get("config") else []
    return run([*facts.get("sshd", ["/usr/sbin/sshd"]), "-T", *config]).lower().splitlines()


def knows(option: str, since: str, *, facts: dict[str, Any]) -> None:
    """Fail unless this sshd has an option; *since* is the version that brought it."""
    if not any(line.split()[0] == option.lower() for line in _told(facts)):
        done = subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=SECONDS, check=False)
        version = (done.stderr or done.stdout).partition(",")[0].strip()
        raise StepFailed(f"this node's sshd ({version}) has no {option}, which came with OpenSSH {since}")


def hup(expected: str = "", *, facts: dict[str, Any]) -> None:
    """Make sshd read its configuration, and wait until it does what that says; sessions live on.

    *expected* `silent`: it has to listen no more; `healed`: fine if no sshd runs. A bad configuration would end sshd, and
    with it the node: so it is tried first.
    """
    try:
        pid = sshd(facts)
        if stat(pid) is None:
            raise StepFailed("no sshd runs here")
    except StepFailed:
        if expected == "healed":
            return
        raise
    port = int(facts.get("port", 22))
    listens = f"port {port}" in _told(facts)
    if expected == "silent" and listens:
        raise StepFailed(f"another setting makes sshd listen on port {port}")
    before = listeners(port)
    os.kill(pid, signal.SIGHUP)
    if (stat(pid) or ("", "T"))[1] == "T":
        return  # it hears of it when it goes on
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        now = listeners(port)
        if (now and not now & before) if listens else not now:
            return
        time.sleep(0.01)
    raise StepFailed("sshd did not come back after SIGHUP")


def up(*, facts: dict[str, Any]) -> None:
    """Wait until sshd listens again after a start, if it should."""
    deadline = time.monotonic() + SECONDS
    while not listeners(int(facts.get("port", 22))) and time.monotonic() < deadline:
        time.sleep(0.02)


def down(*, facts: dict[str, Any]) -> None:
    """Wait until nothing listens for SSH any more."""
    deadline = time.monotonic() + SECONDS
    while listeners(int(facts.get("port", 22))):
        if time.monotonic() > deadline:
            raise StepFailed("sshd did not end")
        time.sleep(0.01)


def descriptors(folder: str, which: str, count: str, *, facts: dict[str, Any]) -> None:
    """Let sshd have no more than *count* files open, its `listener` or all its `sessions`; note how many they could have.

    A session keeps what it has: with fewer, poll() itself would fail, and sshd end.
    """
    chosen = [sshd(facts)] if which == "listener" else sessions(facts)
    known = [(pid, found[3], open_files(pid)) for pid in chosen if (found := stat(pid))]
    known = [each for each in known if each[2] > int(count)]  # one that has not logged in yet may open nothing as it is
    if not known:
        raise StepFailed(f"no {which} runs that may have more")
    write(f"{folder}/descriptors", "\n".join(" ".join(map(str, each)) for each in known))
    for pid, _, _ in known:
        limit_files(pid, int(count) if which == "listener" else max(int(count), fewest_files(pid)))


def descriptors_back(folder: str, *, facts: dict[str, Any]) -> None:
    """Undo `descriptors` for those that are still there."""
    note = Path(folder, "descriptors")
    if note.exists():
        for line in note.read_text().splitlines():
            pid, began, soft = map(int, line.split())
            if (found := stat(pid)) and found[3] == began:
                limit_files(pid, soft)
        note.unlink()


def open_files(pid: int) -> int:
    """Return how many files a process may have open."""
    lines = Path("/proc", str(pid), "limits").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Max open files")).split()[3])


def fewest_files(pid: int) -> int:
    """Return the limit with which a session's sshd opens nothing more, or little, and poll() takes what it waits for.

    Waited for is all but its three standard ones. Needs CAP_SYS_PTRACE for another user's.
    """
    taken = {int(entry.name) for entry in Path("/proc", str(pid), "fd").iterdir()}
    return max(min(set(range(len(taken) + 1)) - taken), len(taken) - 3)


_LIMIT = """
import resource, sys
pid, soft = map(int, sys.argv[1:])
resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))
"""


def limit_files(pid: int, soft: int) -> None:
    """Let a process have *soft* files open; done as its own user, since root would need a capability for another's."""
    status = Path("/proc", str(pid), "status").read_text().splitlines()
    ids = {line.split()[0]: int(line.split()[1]) for line in status if line.startswith(("Uid:", "Gid:"))}
    whose: dict[str, Any] = (
        {"user": ids["Uid:"], "group": ids["Gid:"], "extra_groups": []} if ids["Uid:"] != os.getuid() else {}
    )
    argv = [sys.executable, "-I", "-c", _LIMIT, str(pid), str(soft)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False, cwd="/", **whose)
    if done.returncode and stat(pid):
        raise StepFailed(f"the limit of process {pid}: {done.stderr.strip()[-300:]}")
