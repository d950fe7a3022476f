"""Bring an agent up on the node where this runs, or find the one that is there.

Sent as text to the node's python3, which may be any version, so this file keeps to what every Python 3 can read; the agent
itself needs 3.9. Prints a sentinel and one line of JSON: where the agent's socket is, or what stands in the way.
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing for real would cost each login some milliseconds
    from typing import IO, Callable

START_DEADLINE = 20.0  # seconds for a new agent to listen; a node under load takes its time to import asyncio
PLACE_DEADLINE = 4.0  # seconds for a folder to show that it will do
VISIT_DEADLINE = 5.0  # seconds for an agent that is there to answer
NURSERY_DEADLINE = 3.0  # seconds for a nursery to find its agent
RETURN_DEADLINE = 8.0  # seconds for an agent to make its folder again, which it looks at each second
END_DEADLINE = 10.0  # seconds for an older release's agent to end, before it is killed
MAX_MESSAGE = 1 << 20  # bytes of an agent's message, as gateways have it
OLDEST = (3, 9)
# Of the agent's folder: a UNIX socket's path may have 107 bytes, and the longest behind it is /k/, 17 of a kernel's folder, /s-5.
MAX_PATH = 107 - 24


def private(path: str) -> None:
    """Make *path* a folder that is ours alone and will do for an agent; raises OSError that says what it lacks."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise OSError("it is not a folder of this user")
    os.chmod(path, 0o700)
    probe = os.path.join(path, "probe-%d" % os.getpid())
    try:
        with open(probe, "wb") as file:
            file.write(b"x")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:  # a home on a network whose lock service is down
                raise OSError("locks fail there (%s)" % error.strerror) from None
        os.unlink(probe)
        # Some file systems that homes are on know no sockets.
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listening:
            try:
                listening.bind(probe)
            except OSError as error:
                raise OSError("sockets fail there (%s)" % error.strerror) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)


def machine() -> str:
    """Return a few digits that tell this machine from another of its name, "" if it has no id of its own."""
    with contextlib.suppress(OSError):
        with open("/etc/machine-id", "rb") as file:
            known = file.read().strip()
        if len(known) == 32:
            # Hashed: the id itself is not to be seen on a home that others may read.
            return hashlib.sha256(b"eg-distributed " + known).hexdigest()[:6]
    return ""


def places() -> "list[str]":
    """Return where an agent's folder may be: in the home, one for each node since homes may be shared, else in /tmp.

    By the machine's id too: those that share a home may have one name. Not $XDG_RUNTIME_DIR: logind empties it when the login
    ends, and the agent stays.
    """
    node = socket.gethostname()
    if len(node) > 20:
        node = hashlib.sha256(node.encode()).hexdigest()[:12]
    own = machine()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    # The fallback's name is the home's too: one user may have several, in containers and in tests.
    token = hashlib.sha256(cache.encode()).hexdigest()[:8]
    homes = [os.path.join(cache, "eg-distributed", name) for name in ([node + "-" + own] if own else []) + [node]]
    homes.append("/tmp/eg-distributed-%d-%s" % (os.getuid(), token))
    return homes


def try_place(path: str, is_former: bool) -> str:
    """Return "agent" if one listens in the folder *path*, "kernels" if one could be started there and kernels of this node run
    that its records name, "" if one could be started there, else what stands in the way.

    One *is_former* that older releases used, and is made no more: "former" if nothing is there that makes it of use.
    """
    if not os.path.isabs(path):
        return "it is not a whole path"
    if len(path) > MAX_PATH:
        return "its name is longer than %d characters" % MAX_PATH
    try:
        # Raised, whatever it is but absence: in a folder that cannot be read just now there may be kernels.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)
        if os.path.isdir(path) and os.lstat(path).st_uid == os.getuid():
            sockets = [name for name in os.listdir(path) if name.startswith("agent-") and name.endswith(".sock")]
            if any(answers(os.path.join(path, name)) for name in sockets):
                return "agent"
        found = has_kernels(path)
        if is_former and not found:
            return "former"
        private(path)
    except OSError as error:
        return error.strerror or str(error)
    return "kernels" if found else ""


def has_kernels(path: str) -> bool:
    """Return True if a kernel runs on this node whose record is in the folder *path*."""
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        for name in os.listdir(os.path.join(path, "k")):
            # RuntimeError: lists within lists, too deep to be read.
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError
            ):
                with open(os.path.join(path, "k", name, "record.json"), encoding="utf-8") as file:
                    record = json.load(file)
                if record["state"] != "exited" and record["started"].startswith(boot) and runs(record["pid"]):
                    return True
    return False


def folder() -> "tuple[str, list[str]]":
    """Return the agent's folder, and why others would not do; raises OSError that names each of them.

    One in which an agent listens comes first, then one that has kernels: they are where their agent is, or was. Each place is
    tried by a process of its own, since a home whose server is gone, or whose locks are, lets nobody go who touches it.
    """
    candidates, tries, said = places(), {}, {}
    formers = candidates[1:-1]
    for path in candidates:
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(theirs, (try_place(path, path in formers) or "ok").encode("utf-8", "replace")[:1000])
            finally:
                os._exit(0)
        os.close(theirs)
        tries[path] = (pid, ours)
    deadline = time.monotonic() + PLACE_DEADLINE
    for path, (pid, ours) in tries.items():
        if select.select([ours], [], [], max(deadline - time.monotonic(), 0))[0]:
            said[path] = os.read(ours, 1000).decode("utf-8", "replace")
            os.waitpid(pid, 0)
        else:
            said[path] = "nothing there answers within %d s" % PLACE_DEADLINE
            end(pid, signal.SIGKILL)  # not waited for: the kernel may hold it until the server is back
        os.close(ours)
    words = ("agent", "kernels", "ok", "former")
    for path in candidates:
        if said[path] not in words and agent_runs(path):
            # Another one elsewhere would not find its kernels, and they would look dead.
            raise OSError("%s: %s, and its agent runs" % (path, said[path]))
    bad = ["%s: %s" % (path, said[path]) for path in candidates if said[path] not in words]
    others = [path for path in candidates if path not in formers]
    # A former place last: an older release's agent there may serve another gateway, and does not have these kernels.
    for wanted, where in (
        ("agent", others),
        ("kernels", others),
        ("agent", formers),
        ("kernels", formers),
        ("ok", others),
    ):
        for path in where:
            if said[path] == wanted:
                return path, [each for each in bad if not each.startswith(tuple(former + ": " for former in formers))]
    raise OSError("no folder will do for the agent: %s" % "; ".join(bad))


def agent_runs(home: str) -> bool:
    """Return True if an agent of this user has its folder at *home*; looks at processes alone, not at the folder."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if os.stat("/proc/" + name).st_uid != os.getuid():
                continue
            with open("/proc/%s/cmdline" % name, "rb") as file:
                words = file.read().split(b"\0")
            # As `start` runs it: python -I ARCHIVE agent HOME DIGEST UMASK
            if words[3:5] == [b"agent", os.fsencode(home)]:
                return True
    return False


def await_return(home: str) -> None:
    """Wait for an agent that runs and whose socket is gone: its folder was removed, and it makes it again.

    Another one in its place would not have its kernels' streams, and take its kernels over without what these keep.
    """

    def is_there() -> bool:
        names = [name for name in os.listdir(home) if name.startswith("agent-") and name.endswith(".sock")]
        return any(answers(os.path.join(home, name)) for name in names)

    if not is_there() and agent_runs(home):
        wait_until(lambda: is_there() or not agent_runs(home), RETURN_DEADLINE, 0.05)


def answers(path: str) -> bool:
    """Whether an agent listens at *path*; one that is too busy to answer, or stands still, does: it has its kernels."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(2)  # less than a folder has to show that it will do
        probe.connect(path)
        return True
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError:
        return True
    finally:
        probe.close()


class Visit:
    """A control connection to the agent at *path*, for a few questions.

    Raises OSError where it does not answer in time, or with what is no message: whatever listens there, a boot goes on.
    """

    def __init__(self, path: str) -> None:
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._until = time.monotonic() + VISIT_DEADLINE
            self._peer.settimeout(VISIT_DEADLINE)
            self._peer.connect(path)
            # The process that listens, whatever it says of itself.
            credentials = self._peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.pid = struct.unpack("3i", credentials)[0]
            self._tell({"type": "control", "gateway": "boot", "incarnation": "boot-%d" % os.getpid()})
            self.hello = self._hear()
        except Exception:  # whatever it is, the socket must not stay open
            self._peer.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._peer.close()

    def _tell(self, message: "dict[str, object]") -> None:
        body = json.dumps(message).encode()
        self._peer.settimeout(VISIT_DEADLINE)
        self._peer.sendall(struct.pack(">I", len(body)) + body)

    def _hear(self) -> "dict[str, object]":
        """Return the next message, an empty one where the connection has ended."""
        header = self._read(4)
        if len(header) < 4:
            return {}
        size = struct.unpack(">I", header)[0]
        if size > MAX_MESSAGE:
            raise OSError("the agent's message has %d bytes" % size)
        try:
            message = json.loads(self._read(size).decode())
        except (ValueError, RecursionError) as error:
            raise OSError("the agent's message is malformed") from error
        if not isinstance(message, dict):
            raise OSError("the agent's message is malformed")
        return message

    def _read(self, size: int) -> bytes:
        """Return the next *size* bytes, fewer where the connection ends before."""
        data = b""
        while len(data) < size:
            left = self._until - time.monotonic()
            if left <= 0:
                raise OSError("the agent does not answer")
            self._peer.settimeout(left)
            chunk = self._peer.recv(min(size - len(data), 65536))
            if not chunk:
                break
            data += chunk
        return data

    def ask(self, method: str, **params: object) -> object:
        """Return the agent's answer to a request, None for an error."""
        self._until = time.monotonic() + VISIT_DEADLINE
        self._tell({"id": 1, "method": method, "params": params})
        answer = self._hear()
        while "event" in answer:
            answer = self._hear()
        return answer.get("result")


def is_wanted(path: str, digest: str, umask: int, archive: str, keep: bool) -> bool:
    """Return True if an agent listens at *path* that is to be used: ours, or one that cannot make room for ours.

    It is told what this login has, since kernels that start from now on are to have that, and not what the first login had.

    One of another release speaks the same protocol, or its socket would have another name. It makes room where nobody uses it:
    if it has no kernel, it leaves; if no gateway has its kernels it is ended, and ours takes them over with their records.
    With *keep* it stays in any case while it has kernels, as in `older_agent`.
    """
    try:
        with contextlib.closing(Visit(path)) as visit:
            pid = visit.pid
            is_kept = visit.hello.get("digest") == digest
            if not is_kept and not visit.hello.get("kernels"):
                is_kept = visit.ask("leave") is False
            elif not is_kept:
                listed = visit.ask("list")
                is_kept = keep or not isinstance(listed, list) or any(map(is_claimed, listed))
                if not is_kept:
                    end(pid, signal.SIGTERM)
            if is_kept:
                tell_login(visit, path, umask, archive)
                return True
    except OSError:
        return answers(path)
    return not (wait_until(lambda: not answers(path), START_DEADLINE) and ends(pid))


def tell_login(visit: "Visit", path: str, umask: int, archive: str) -> None:
    """Have the agent that is visited start kernels with what this login has, by a nursery if need be."""

    def is_taken() -> bool:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return visit.ask("login", env=environment(), umask=umask, open_files=soft, standing=standing()) is not False

    if not is_taken():
        start_nursery(archive, path)
        wait_until(is_taken, NURSERY_DEADLINE)


def environment() -> "dict[str, str]":
    """Return this login's environment; bytes that are no UTF-8 as lone surrogates, whatever its locale."""
    return {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in os.environb.items()
    }


def older_agent(home: str, protocols: "list[str]", keep: bool) -> str:
    """Return the socket of an agent of one of the older *protocols* that has to be used as it is, else "".

    An agent without kernels is asked to leave. One whose kernels no gateway answers for is ended: kernels outlive their
    agents, and the agent that is started next takes over their records. One that serves another gateway stays, since
    an agent that its gateway started in its place would not find the kernels. With *keep* so does one with any
    kernel: the gateway that boots has been connected to it, and output that it keeps for that gateway would be lost.
    """
    for protocol in protocols:
        path = os.path.join(home, "agent-%s.sock" % protocol)
        try:
            with contextlib.closing(Visit(path)) as visit:
                pid = visit.pid
                if not visit.hello.get("kernels"):
                    if visit.ask("leave") is False:
                        return path
                else:
                    listed = visit.ask("list")
                    if keep or not isinstance(listed, list) or any(map(is_claimed, listed)):
                        return path
                    end(pid, signal.SIGTERM)
        except OSError:
            if not answers(path):
                continue  # there is none
            return path
        if not ends(pid):
            end(pid, signal.SIGKILL)  # it stands still; what it had was on disk
            ends(pid)
    return ""


def is_claimed(kernel: object) -> bool:
    """Return False for the description of a kernel that no gateway has, nor may come back for; what is none may be of any."""
    return not isinstance(kernel, dict) or bool(kernel.get("claimed") or kernel.get("awaited"))


def end(pid: int, signum: int) -> None:
    """Signal the process *pid*, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def ends(pid: int) -> bool:
    """Wait for the end of the process *pid*; return False if it does not come in time."""
    return wait_until(lambda: not runs(pid), END_DEADLINE)


def runs(pid: int) -> bool:
    """Return True if the process *pid* runs; a zombie does not."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def wait_until(condition: "Callable[[], bool]", seconds: float, pause: float = 0.005) -> bool:
    """Wait until *condition* holds, for *seconds* at most, looking each *pause* seconds; return True if it does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def standing() -> str:
    """Return what this login's groups and limits come to: two logins with the same text have the same ones.

    But for the soft limit of open files, which the agent gives each kernel by itself, and a gateway raises for its own.
    """
    names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    limits = [(name, resource.getrlimit(getattr(resource, name))[name == "RLIMIT_NOFILE" :]) for name in names]
    groups = sorted({os.getegid(), *os.getgroups()})
    return hashlib.sha256(repr((groups, limits)).encode()).hexdigest()[:16]


def start_nursery(archive: str, path: str) -> None:
    """Leave a process behind that starts kernels with what this login has, for the agent at *path*."""
    with open(os.path.join(os.path.dirname(path), "agent.log"), "ab") as log:
        subprocess.Popen(
            [sys.executable or "python3", "-I", archive, "nursery", path, standing()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def start(home: str, archive: str, digest: str, path: str, umask: int) -> None:
    """Start an agent that outlives this login, and wait until it listens; *umask* is the login's, and will be its kernels'."""
    log_path = os.path.join(home, "agent.log")
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(log).st_size > 1 << 20:
            os.ftruncate(log, 0)
        process = subprocess.Popen(
            [sys.executable or "python3", "-I", archive, "agent", home, digest, "%03o" % umask, standing()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    deadline = time.monotonic() + START_DEADLINE
    while not answers(path):
        if process.poll() is not None:
            with open(log_path, "rb") as log_file:
                tail = log_file.read()[-800:].decode("utf-8", "replace")
            raise OSError("the agent ended at its start (exit code %s): %s" % (process.returncode, tail))
        if time.monotonic() > deadline:
            process.kill()
            raise OSError("the agent did not listen within %d s" % START_DEADLINE)
        time.sleep(0.005)


def install(home: str, digest: str, archive: str) -> str:
    """Put the agent's code into its folder, whole or not at all."""
    path = os.path.join(home, digest + ".zip")
    if not os.path.exists(path):
        temporary = "%s.%d" % (path, os.getpid())
        with open(temporary, "wb") as file:
            file.write(zlib.decompress(base64.b64decode(archive)))
        os.rename(temporary, path)
        for other in os.listdir(home):  # read as a whole when its agent started
            if other.endswith(".zip") and other != digest + ".zip":
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(home, other))
    return path


def take(lock: "IO[str]") -> None:
    """Lock *lock* against other logins that boot; raises OSError, since a lock that is never given would hold up the login."""

    def taken() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise OSError("locks fail in %s (%s)" % (os.path.dirname(lock.name), error.strerror)) from None
        return True

    if not wait_until(taken, START_DEADLINE):
        raise OSError("another login has held the lock %s for %d s" % (lock.name, START_DEADLINE))


def boot(config: "dict[str, str]") -> None:
    """Answer with the agent's socket; then, in bridge mode, become the bridge to it."""
    umask = os.umask(0o077)
    archive = path = None
    try:
        if sys.version_info < OLDEST:
            raise OSError("python3 is %s, the agent needs 3.9 or later" % sys.version.split()[0])
        home, passed_over = folder()
        path = os.path.join(home, "agent-%s.sock" % config["protocol"])
        archive = install(home, config["digest"], config["archive"])
        await_return(home)
        if not is_wanted(path, config["digest"], umask, archive, bool(config["keep"])):
            with open(os.path.join(home, "lock"), "w") as lock:
                take(lock)
                if not answers(path):
                    older = older_agent(home, config["older"].split(), bool(config["keep"]))
                    if not older:
                        start(home, archive, config["digest"], path, umask)
                    path = older or path
        answer = {"ok": True, "socket": path, "python": sys.version.split()[0], "node": socket.gethostname()}
        answer["passed_over"] = passed_over
    except Exception as error:  # noqa: BLE001 - whatever it is must reach the gateway, which has no other way to know
        answer = {"ok": False, "error": "%s" % (error,)}
    out = os.fdopen(os.dup(1), "wb")
    with contextlib.closing(out):
        out.write(config["sentinel"].encode() + json.dumps(answer).encode() + b"\n")
    if answer["ok"] and config["bridge"]:
        python = sys.executable or "python3"
        os.execv(python, [python, "-I", str(archive), "bridge", str(path)])
