"""Carry out a fault's steps on a node: `python -I -c SOURCE STEPS FACTS`, as root where the node has one.

STEPS is a JSON list of argv lists. A plain one is a command that has to end with 0; one whose first word begins with @ is
a verb of this file. All undoing verbs may be repeated and don't mind what is gone already: a restarted node has lost its
rules and processes, not its files. FACTS: `port` of sshd; in a local lab `root` (the node's own process) and `config`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SECONDS = 8.0
"""For one step. A step that hangs would keep the fault's lock from everybody else."""


LEVELS = 16
OURS = 1 << 30
"""The bit that all marks of ours have, above those of the levels."""


class StepFailed(Exception):
    """One step could not be carried out; the text is the reason."""


def run(argv: Sequence[str]) -> str:
    """Run a command to its end and return its stdout."""
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except FileNotFoundError:
        raise StepFailed(f"{argv[0]} is not installed") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StepFailed(f"{argv[0]}: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}")[-300:]
        raise StepFailed(f"{' '.join(argv)[:120]}: {said}")
    return done.stdout


# -- files -------------------------------------------------------------------------------------------------------------


def write(path: str, text: str, mode: str = "600") -> None:
    """Make a file of the fault's own; its folders are readable, as sshd wants them."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(int(mode, 8))


def remove(*paths: str) -> None:
    """Delete files or folders of the fault's own."""
    for path in map(Path, paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def aside(path: str, mark: str) -> None:
    """Take a file away without losing it."""
    if not os.path.lexists(path):
        raise StepFailed(f"there is no {path}")
    Path(path).rename(f"{path}.{mark}")


def back(path: str, mark: str) -> None:
    """Put it back over whatever stands there."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"{path}.{mark}").replace(path)


def _rewrite(path: Path, text: str) -> None:
    """Write in place where a rename can't be (a bind-mounted /etc/hosts), keeping owner and mode in any case."""
    with path.open("r+") as file:
        file.write(text)
        file.truncate()


def block(path: str, mark: str, text: str, owner: str = "") -> None:
    """Put marked lines at the top of a file, so that several faults share it and each finds its own again."""
    target = Path(path)
    note = ""
    if not target.exists():
        # How many of its folders are made here as well: they go with it.
        made = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(mode=0o644)
        if owner:
            found = pwd.getpwnam(owner)
            for item in (target, *made):
                os.chown(item, found.pw_uid, found.pw_gid)
        note = f" made {len(made)}"
    old = target.read_text(errors="replace")
    _rewrite(target, f"# {mark} begin{note}\n{text.rstrip()}\n# {mark} end\n{old}")


def unblock(path: str, mark: str) -> None:
    """Take the marked lines out again; a file that exists because of them goes with them."""
    target = Path(path)
    if not target.exists():
        return
    found = re.search(
        rf"^# {re.escape(mark)} begin(?: made (\d+))?\n.*?^# {re.escape(mark)} end\n",
        target.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    if found is None:
        return
    rest = found.string[: found.start()] + found.string[found.end() :]
    if found.group(1) is not None and not rest:
        target.unlink()
        for folder in list(target.parents)[: int(found.group(1))]:
            with contextlib.suppress(OSError):
                folder.rmdir()
    else:
        _rewrite(target, rest)


def environment(path: str, mark: str, kib: str) -> None:
    """Put *kib* KiB of variables into pam_env's file; made here because one argument can't hold them."""
    lines = [f"LAB_FAULT_{mark[-4:].upper()}_{number:04}={'x' * 1000}" for number in range(int(kib) * 1024 // 1000 + 1)]
    block(path, mark, "\n".join(lines))


def comment(path: str, mark: str, pattern: str) -> None:
    """Make comments of the lines that match; at least one has to."""
    target = Path(path)
    text, count = re.subn(f"(?m)^(?={pattern})", f"#{mark} ", target.read_text())
    if not count:
        raise StepFailed(f"no line of {path} matches {pattern}")
    _rewrite(target, text)


def uncomment(path: str, mark: str) -> None:
    """Undo `comment`."""
    target = Path(path)
    if target.exists():
        _rewrite(target, target.read_text().replace(f"#{mark} ", ""))


# -- packets and mounts ------------------------------------------------------------------------------------------------


def unchain(table: str, chain: str) -> None:
    """Take one chain and the jumps to it away, and nothing else; then look that it is gone."""
    base = ["iptables", "-w", "5", "-t", table]
    rules = run([*base, "-S"]).splitlines()
    for rule in rules:
        words = rule.split()
        if words[0] == "-A" and words[1] != chain and words[-2:] == ["-j", chain]:
            run([*base, "-D", *words[1:]])
    if f"-N {chain}" in rules:
        run([*base, "-F", chain])
        run([*base, "-X", chain])


def _mounted(path: str) -> bool:
    return any(line.split()[4] == path for line in Path("/proc/self/mountinfo").read_text().splitlines())


def mount(folder: str, path: str, *argv: str) -> None:
    """Run a mount command; note first that the mount on *path* is ours, unless one is there already."""
    if _mounted(path):
        raise StepFailed(f"something is mounted on {path} already")
    note = Path(folder, "mounts")
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.open("a") as file:
        file.write(f"{path}\n")
    run(argv)


def unmount(folder: str) -> None:
    """Take the mounts away that `mount` has noted, the last one first."""
    note = Path(folder, "mounts")
    for path in reversed(note.read_text().split() if note.exists() else []):
        if _mounted(path):
            run(["umount", "-l", path])
    note.unlink(missing_ok=True)


def fill(path: str, mark: str) -> None:
    """Write until the file system of *path* says that it is full; refuse one that isn't a small one of our own."""
    whole = os.statvfs(path)
    if whole.f_blocks * whole.f_frsize > 1 << 30:
        raise StepFailed(f"{path} is not on a file system of the fault's own")
    with contextlib.suppress(OSError), Path(path, f".{mark}").open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass
    with contextlib.suppress(OSError), Path(path, f".{mark}").open("ab", buffering=0) as file:
        while file.write(b"\0"):
            pass


def populate(path: str, source: str) -> None:
    """Copy what *source* holds below *path*: a fresh tmpfs has to show what it hides."""
    run(["cp", "-a", f"{source}/.", path])
    run(["chown", f"--reference={source}", path])
    run(["chmod", f"--reference={source}", path])


def deny(path: str, folder: str) -> None:
    """Make a folder root's, for its owner to read only; note how it was."""
    was = Path(path).stat()
    write(f"{folder}/denied", f"{was.st_uid} {was.st_gid} {was.st_mode & 0o7777:o}")
    os.chown(path, 0, was.st_gid)
    Path(path).chmod(0o555)


def allow(path: str, folder: str) -> None:
    """Undo `deny`."""
    note = Path(folder, "denied")
    if note.exists():
        uid, gid, mode = note.read_text().split()
        os.chown(path, int(uid), int(gid))
        Path(path).chmod(int(mode, 8))
        note.unlink()


def login_shell(user: str, shell: str, folder: str) -> None:
    """Give *user* another login shell; note which it was."""
    need(shell)
    write(f"{folder}/shell", pwd.getpwnam(user).pw_shell)
    run(["usermod", "--shell", shell, user])


def login_shell_back(user: str, folder: str) -> None:
    """Undo `login_shell`."""
    note = Path(folder, "shell")
    if note.exists():
        run(["usermod", "--shell", note.read_text(), user])
        note.unlink()


def public(private: str, target: str) -> None:
    """Write the public half of a key."""
    write(target, run(["ssh-keygen", "-y", "-f", private]), "644")


def first_key(keys: str, target: str) -> None:
    """Write the first key of an authorized_keys file."""
    lines = [line for line in Path(keys).read_text().splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise StepFailed(f"{keys} holds no key")
    write(target, lines[0] + "\n", "644")


def python(program: str, *argv: str) -> None:
    """Run a program of the fault's own to its end, if it is there."""
    if Path(program).exists():
        run([sys.executable, "-I", program, *argv])


# -- processes -----------------------------------------------------------------------------------------------------------


def stat(pid: int) -> tuple[str, str, int, int] | None:
    """Return (name, state, parent, start time) of a process, None if it is gone."""
    try:
        head, _, tail = Path("/proc", str(pid), "stat").read_text().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return head.partition("(")[2], fields[0], int(fields[1]), int(fields[19])


def pids() -> list[int]:
    """Return all that this process can see."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def sshd(facts: dict[str, Any]) -> int:
    """Return the pid of the listening sshd: the one whose parent is none; in a local lab, below the node's own process."""
    names = {pid: found for pid in pids() if (found := stat(pid))}
    members = below(int(facts["root"]), names) if "root" in facts else set(names)
    for pid in sorted(members):
        name, state, parent, _ = names.get(pid, ("", "", 0, 0))
        if name == "sshd" and state not in "ZX" and names.get(parent, ("",))[0] != "sshd":
            return pid
    raise StepFailed("no sshd runs here")


def below(root: int, names: dict[int, tuple[str, str, int, int]]) -> set[int]:
    """Return a process and all its descendants."""
    members = {root}
    while more := {pid for pid, found in names.items() if found[2] in members} - members:
        members |= more
    return members


def sessions(facts: dict[str, Any]) -> list[int]:
    """Return the processes that serve logins: descendants of the main sshd that are sshd themselves."""
    main = sshd(facts)
    names = {pid: found for pid in pids() if (found := stat(pid)) and found[0].startswith("sshd")}
    return sorted(below(main, names) - {main})


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
    return run(["/usr/sbin/sshd", "-T", *(["-f", facts["config"]] if facts.get("config") else [])]).lower().splitlines()


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


def descriptors(folder: str, count: str, *, facts: dict[str, Any]) -> None:
    """Let sshd have no more than *count* files open; note how many it could have."""
    import resource

    pid = sshd(facts)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    write(f"{folder}/descriptors", str(soft))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (int(count), hard))


def descriptors_back(folder: str, *, facts: dict[str, Any]) -> None:
    """Undo `descriptors`."""
    import resource

    note = Path(folder, "descriptors")
    if note.exists():
        pid = sshd(facts)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (int(note.read_text()), resource.prlimit(pid, 7)[1]))
        note.unlink()


def spawn(folder: str, name: str, *argv: str) -> None:
    """Start a program of the fault's own beside everything, wait until it says `ready`, and note who it is.

    Its last argument is the mark for its packets. Later programs stand before earlier ones: each has a level, and the mark
    says which levels a packet has behind it, so that several faults on one port are passed one after the other.
    """
    levels = [int(path.read_text()) for path in Path(folder).parent.glob("*/*.level")]
    level = max(levels, default=-1) + 1
    if level >= LEVELS:
        raise StepFailed(f"there are {LEVELS} faults of this sort on the node already")
    mark = OURS | sum(1 << other for other in range(level, LEVELS))
    reader, writer = os.pipe()
    log = Path(folder, f"{name}.log").open("ab")  # noqa: SIM115 -- the child's
    child = subprocess.Popen(
        [sys.executable, "-I", f"{folder}/{name}.py", *argv, str(mark)],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=log,
        start_new_session=True,
        cwd="/",
    )
    os.close(writer)
    with os.fdopen(reader) as pipe:  # ends with the first line or with the child
        line = pipe.readline().strip()
    if not line.startswith("ready"):
        child.kill()
        raise StepFailed(f"{name}: {line or Path(folder, f'{name}.log').read_text()[-300:].strip() or 'it ended'}")
    found = stat(child.pid)
    write(f"{folder}/{name}.pid", f"{child.pid} {found[3] if found else -1}")
    write(f"{folder}/{name}.level", str(level))
    write(f"{folder}/{name}.port", line.partition(" ")[2])
    child.returncode = 0  # nobody waits for it here: init does


def redirect(folder: str, name: str, chain: str, protocol: str, port: str) -> None:
    """Lead a port's packets to what `spawn` started: TCP that comes in, UDP that goes out.

    What other faults' programs send on passes the levels that it has not behind it yet.
    """
    level = int(Path(folder, f"{name}.level").read_text())
    target = Path(folder, f"{name}.port").read_text()
    base = ["iptables", "-w", "5", "-t", "nat"]
    run([*base, "-N", chain])
    run([*base, "-A", chain, "-p", protocol, "--dport", port, "-j", "REDIRECT", "--to-ports", target])
    if protocol == "tcp":
        run([*base, "-I", "PREROUTING", "-j", chain])
        value, mask = OURS, OURS | 1 << level
    else:
        value, mask = 0, 1 << level
    run([*base, "-I", "OUTPUT", "-m", "mark", "--mark", f"{value:#x}/{mask:#x}", "-j", chain])


def dismiss(folder: str, name: str) -> None:
    """Tell what `spawn` started to do no more harm and to leave when it can."""
    note = Path(folder, f"{name}.pid")
    if note.exists():
        pid, started = map(int, note.read_text().split())
        if (found := stat(pid)) and found[3] == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        note.unlink()


def end(folder: str, name: str) -> None:
    """End what `spawn` started: SIGTERM, so that it puts right what it has changed, after two seconds SIGKILL."""
    note = Path(folder, f"{name}.pid")
    if not note.exists():
        return
    pid, started = map(int, note.read_text().split())
    deadline = time.monotonic() + 2
    sent = 0
    while (found := stat(pid)) and found[3] == started and found[1] not in "ZX":
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        if number != sent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        sent = number
        time.sleep(0.01)
    note.unlink(missing_ok=True)


def need(path: str) -> None:
    """Fail unless *path* is there."""
    if not Path(path).exists():
        raise StepFailed(f"this node has no {path}")


def tolerate(*argv: str) -> None:
    """Run a command whose failure means that there was nothing to do."""
    with contextlib.suppress(StepFailed):
        run(argv)


VERBS: dict[str, Callable[..., None]] = {
    "@write": write,
    "@remove": remove,
    "@aside": aside,
    "@back": back,
    "@block": block,
    "@unblock": unblock,
    "@environment": environment,
    "@comment": comment,
    "@uncomment": uncomment,
    "@unchain": unchain,
    "@mount": mount,
    "@unmount": unmount,
    "@fill": fill,
    "@populate": populate,
    "@deny": deny,
    "@allow": allow,
    "@login-shell": login_shell,
    "@login-shell-back": login_shell_back,
    "@public": public,
    "@first-key": first_key,
    "@python": python,
    "@spawn": spawn,
    "@redirect": redirect,
    "@dismiss": dismiss,
    "@end": end,
    "@need": need,
    "@tolerate": tolerate,
}

OF_SSHD: dict[str, Callable[..., None]] = {
    "@hup": hup,
    "@signal": send,
    "@knows": knows,
    "@up": up,
    "@down": down,
    "@descriptors": descriptors,
    "@descriptors-back": descriptors_back,
}


def carry_out(steps: Sequence[Sequence[str]], facts: dict[str, Any], *, undoing: bool) -> str:
    """Do all steps, in order; return why it stopped, empty if it didn't.

    An undo goes on behind a failure, so that as much as possible is healed, and reports the first one.
    """
    failure = ""
    for step in steps:
        try:
            if step[0] in OF_SSHD:
                OF_SSHD[step[0]](*step[1:], facts=facts)
            elif step[0].startswith("@"):
                VERBS[step[0]](*step[1:])
            else:
                run(step)
        except (StepFailed, OSError) as error:
            failure = failure or str(error) or type(error).__name__
            if not undoing:
                break
    return failure


if __name__ == "__main__":
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
    failed = carry_out(json.loads(sys.argv[1]), json.loads(sys.argv[2]), undoing=sys.argv[3:] == ["undo"])
    sys.stdout.write(json.dumps({"failed": failed}) + "\n")
