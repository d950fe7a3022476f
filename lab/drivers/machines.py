"""What a node and a gateway can do, whichever driver made them. Tests and benchmarks are written against these."""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab.drivers.capabilities import Capability
from lab.errors import LabError, LabNotReady
from lab.kernelspecs import for_provisioner, on_nodes, proxy_config
from lab.keys import HostEntry
from lab.names import short_name
from lab.probes import ProbeFailed, probe_http, remedy_for, wait_until
from lab.topology.daemons import JUPYTERLAB
from lab.topology.specs import GatewaySpec, NodeSpec, check_kernelspec_name

State = Literal["running", "paused", "stopped"]

READY_SECONDS = 60.0
"""How long `wait_ready` waits for a machine."""
LOG_LINES = 20
"""How many last lines of its log an error has."""


@dataclass(frozen=True)
class ExecResult:
    """The end of a command on a machine, as in subprocess.CompletedProcess."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    def check(self) -> ExecResult:
        """Return self, or raise LabError with the command's last words if it failed."""
        if self.exit_code:
            raise LabError(f"{self.argv[0]} ended with exit code {self.exit_code}", cause=self.stderr.strip()[-500:])
        return self


@dataclass(frozen=True)
class Usage:
    """What a machine uses now: processor time (seconds since it started), memory (bytes), processes and threads."""

    cpu_seconds: float
    memory_bytes: int
    pids: int


@dataclass(frozen=True)
class Limits:
    """What a machine as a whole may use: *memory* and *swap* (memory and swap together) in bytes, *pids*; 0 is no limit.

    None is a limit that `set_limits` leaves alone.
    """

    memory: int | None = None
    swap: int | None = None
    pids: int | None = None


@dataclass(frozen=True)
class Sshd:
    """A node's SSH server, as those have to know it who change or signal it. Paths are those that `run_python` sees.

    *kind* is `openssh`, or `asyncssh` for a server without an sshd_config and without a process for each session. *config* is
    its sshd_config, *dropins* the folder of files that this includes first; without such a folder a change is made in *config*
    itself. *argv* runs the program on the machine, so that it can be asked for its configuration.
    """

    kind: Literal["openssh", "asyncssh"]
    port: int
    authorized_keys: str
    host_key: str
    config: str = ""
    dropins: str = ""
    argv: tuple[str, ...] = ("/usr/sbin/sshd",)


@dataclass(frozen=True)
class Share:
    """What of this computer belongs to a machine that shares its process table, its disk and its loopback with others.

    *pids* are its processes without the *main* one; *servers* are those of them that are its SSH server's. *folders* hold all
    its files, and *guarded* are the configuration and keys among them or elsewhere. *port* is where its SSH server listens, 0
    for a machine that has none.
    """

    main: int
    pids: frozenset[int]
    servers: frozenset[int]
    folders: tuple[Path, ...]
    guarded: tuple[Path, ...]
    port: int


def run_here(argv: Sequence[str], timeout: float, env: Mapping[str, str] | None = None) -> ExecResult:
    """Run *argv* on this side, with this process's environment or *env*; raise LabNotReady if it doesn't end in time.

    For drivers, where something has to be done to a machine from outside.
    """
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabNotReady(f"{argv[0]} did not end well", cause=str(error)) from None
    return ExecResult(tuple(argv), done.returncode, done.stdout, done.stderr)


class Machine(ABC):
    """A container, or a process that plays one."""

    name: str
    """Full name of a node (`node1.lab.test`), short name of a gateway (`gateway`)."""
    faults_folder: str = "/run/lab-faults"
    """Where faults keep what they need on the machine, a folder for each; as `run_python` sees it."""
    keeps_notes: bool = True
    """Whether the machine outlives the lab's folder on this side, so that a fault leaves a note of itself there."""
    changes_while_down: bool = False
    """Whether `run_python` works on a machine that is paused or stopped, since what it changes is on this side."""
    needs_privilege: bool = False
    """Whether what is done to the machine needs `privileged_exec` in any case: its own root may not even set its network."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    @abstractmethod
    def group(self) -> str:
        """The group of the topology that it belongs to; empty for what `add_node` and `add_gateway` made."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The address inside the lab's network; pinned, so that it survives restarts."""

    @property
    @abstractmethod
    def state(self) -> State:
        """What the machine is doing, asked now."""

    @property
    @abstractmethod
    def capabilities(self) -> frozenset[Capability]:
        """What can be done to the machine; as its driver declares it for all its machines."""

    @abstractmethod
    def refusal(self, needs: Collection[Capability]) -> str:
        """Return why the machine lacks one of *needs*, in words for users; empty if it has them all."""

    @property
    @abstractmethod
    def user(self) -> str:
        """Who logs in to a node, or whom a gateway runs as."""

    @property
    @abstractmethod
    def home(self) -> str:
        """The home of `user`, as `run_python` sees it."""

    @property
    @abstractmethod
    def own_port(self) -> int:
        """The port on which it serves inside the lab's network: SSH of a node, HTTP of a gateway."""

    @property
    def sshd(self) -> Sshd | None:
        """Its SSH server; None for a machine that has none."""
        return None

    @property
    def native(self) -> Any:
        """The engine's own object for the machine, for callers who know that engine; None where there is no such thing."""
        return None

    @property
    def main_pid(self) -> int | None:
        """The process that all others of the machine are below, where `run_python` sees those of other machines, too; else None.

        0 is a machine that has never been started.
        """
        return None

    def share(self) -> Share | None:
        """Return what of this computer is the machine's; None if it has a process table, a network and a disk of its own."""
        return None

    def announce(self) -> None:
        """Tell the lab that the machine came, went or has another port; called by whoever made it so by other means."""
        self._changed()

    @abstractmethod
    def exec(self, argv: Sequence[str], user: str | None = None, timeout: float = 30) -> ExecResult:
        """Run *argv* on the machine, not through its SSH or HTTP; raise LabNotReady after *timeout* seconds."""

    @abstractmethod
    def privileged_exec(self, argv: Sequence[str], timeout: float = 30) -> ExecResult:
        """Run *argv* with every capability that can be had over the machine, for a moment; called for faults.

        In a container that is its root, with what the machine itself is not given (mounts, say). A machine of this user's
        processes is changed from this side, by this user. Raises LabNotReady after *timeout* seconds, and LabError with the
        reason where nobody gives the capabilities.
        """

    @property
    def interpreters(self) -> tuple[str, ...]:
        """The Pythons of the machine, in the order in which `run_python` tries them.

        By full names, the hidden ones first: a fault may be that `python3` is gone.
        """
        return ("/opt/kernel/bin/python", "/usr/bin/python3.11", "/opt/gateway/bin/python", "/usr/bin/python3")

    def run_python(self, arguments: Sequence[str], *, privileged: bool = False, timeout: float = 30) -> ExecResult:
        """Run a Python program (*arguments* behind the interpreter) as root on the machine, with all capabilities if
        *privileged*; how faults act inside. It is no process of the machine's own: a driver may run it on this side.

        Raises as `exec` and `privileged_exec` do.
        """
        for interpreter in self.interpreters:
            argv = [interpreter, *arguments]
            done = self.privileged_exec(argv, timeout) if privileged else self.exec(argv, user="root", timeout=timeout)
            if done.exit_code not in {126, 127}:
                break
        return done

    @abstractmethod
    def limits(self) -> Limits:
        """Return what the machine as a whole may use now; raise LabError where nothing limits it (`limits`)."""

    @abstractmethod
    def set_limits(self, limits: Limits) -> None:
        """Bound what the machine as a whole may use, while it runs; raise LabError if that can't be done."""

    @abstractmethod
    def read_logs(self, tail: int | None = None, *, since: float | None = None, timestamps: bool = False) -> str:
        """Return what the machine's main process printed: sshd's log, or Enterprise Gateway's.

        *tail* lines of it, from *since* (UNIX seconds) on; with *timestamps* an RFC 3339 time is in front of each line.
        """

    @abstractmethod
    def follow_logs(self, *, since: float | None = None, timestamps: bool = False) -> Iterator[str]:
        """Yield the log's lines as they come, without their ends, until the machine ends; from *since* (UNIX seconds) on."""

    @abstractmethod
    def inspect(self) -> dict[str, Any]:
        """Return what the driver knows of the machine, as JSON can hold it; for `lab inspect`."""

    @abstractmethod
    def usage(self) -> Usage:
        """Return what a running machine uses; raise LabError for one that is down."""

    @abstractmethod
    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file or folder of this machine into the folder *target*, owned by the machine's login user.

        *target* has to exist; raises LabNotFound where *source* or *target* does not.
        """

    @abstractmethod
    def copy_out(self, source: str, target: Path) -> None:
        """Copy the machine's file or folder *source* into the folder *target* of this machine; as `copy_in`."""

    @abstractmethod
    def extend_lease(self, until: float) -> None:
        """Let the machine end itself at *until* (UNIX seconds), 0 for never; called by the lab's keeper."""

    def start(self) -> None:
        """Start a stopped or killed machine, tell the lab of it, and wait until it answers."""
        self.resume()
        self.announce()
        self.wait_ready()

    @abstractmethod
    def resume(self) -> None:
        """Make a stopped or paused machine run, without waiting until it answers; called by `lab up`."""

    @abstractmethod
    def wait_ready(self) -> None:
        """Wait until a running machine answers by its protocol; after a minute raise LabNotReady with its last lines."""

    @abstractmethod
    def end_cause(self) -> str:
        """Return how the main process of a machine that is down ended, for an error's cause."""

    def _wait(self, what: str, probe: Callable[[], None]) -> None:
        """Wait for *probe*, but not for a machine that has ended meanwhile; for `wait_ready`."""
        remedy = remedy_for(short_name(self.name))

        def last() -> str:
            return self.read_logs(LOG_LINES)

        def attempt() -> None:
            try:
                probe()
            except ProbeFailed:
                if self.state == "stopped":
                    cause = self.end_cause()
                    raise LabNotReady(f"{what} can't succeed", cause=cause, remedy=remedy, logs=last()) from None
                raise

        wait_until(what, attempt, seconds=READY_SECONDS, logs=last, remedy=remedy)

    @abstractmethod
    def stop(self) -> None:
        """End it orderly (SIGTERM, then SIGKILL after 10 s); a machine that is down already stays so."""

    def restart(self) -> None:
        """End it orderly and start it; its address stays, the port on this machine may be another."""
        self.stop()
        self.start()

    @abstractmethod
    def pause(self) -> None:
        """Freeze every process: the machine hangs, its TCP connections stay open."""

    @abstractmethod
    def unpause(self) -> None:
        """Undo `pause`; fine if it isn't paused."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once (SIGKILL); its disk stays."""

    @abstractmethod
    def remove(self) -> None:
        """End it and forget it, disk and all; fine if it is gone already."""


class Node(Machine):
    """One SSH host of the lab."""

    trusted: bool
    host_key: str

    @property
    def short_name(self) -> str:
        """`node1` for `node1.lab.test`."""
        return short_name(self.name)

    @property
    @abstractmethod
    def port(self) -> int:
        """The port of its sshd on 127.0.0.1 of this machine; may change when the node is started again."""

    def published(self, port: int) -> str:
        """Return this machine's base URL of what answers to HTTP on *port* there; empty if it is not published or down."""
        return ""

    @property
    def host(self) -> str:
        """What the daemons of the lab's clusters (lab/spark) call this machine: its name, unless only an address resolves."""
        return self.name

    def endpoint(self, port: int) -> str:
        """Return HOST:PORT for the lab's machines of what listens on *port* here, where each machine has all ports."""
        return f"{self.host}:{port}"

    daemon_logs: str = "/var/log/daemons"
    """Where its daemons' logs are on its disk."""
    daemon_files: str = "/var/lib"
    """Where its daemons' own folders are, `spark` and `yarn`."""

    @property
    @abstractmethod
    def sshd(self) -> Sshd:
        """Its SSH server."""

    @abstractmethod
    def daemon_command(self, verb: str, daemon: str, *words: str) -> tuple[str, ...]:
        """Return the argv that tells the supervisor of *daemon*: `down` (with the word `stay` what it began lives on) or `up`.

        It is run beside `run_python`, as root.
        """

    @property
    def own_port(self) -> int:
        """As its SSH server says."""
        return self.sshd.port

    @abstractmethod
    def reset(self) -> None:
        """Bring the node back to golden: processes, homes, /tmp, SSH server and keys as they were when it was made.

        Returns when it answers to SSH again. What faults did below (firewall, mounts) is theirs to heal: `Lab.reset`.
        """

    @property
    @abstractmethod
    def spec(self) -> NodeSpec:
        """What the node was made as."""

    @property
    def group(self) -> str:
        """As its spec says."""
        return self.spec.group

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that the topology gives it."""
        return self.spec.roles

    @property
    def certified(self) -> str:
        """The public key of the authority that signed its host key; empty in a lab without certificates."""
        return ""

    def entry(self) -> HostEntry:
        """Return what SSH clients need to know of this node."""
        return HostEntry(self.name, self.address, self.port, self.host_key, authority=self.certified)


class Gateway(Machine):
    """One gateway of the lab: an Enterprise Gateway, or a JupyterLab."""

    hosts: tuple[str, ...]
    """Full names of the nodes that it was made for."""

    python: str = "/opt/gateway/bin/python"
    """The interpreter that has its program and our wheel, on the gateway's disk."""
    token: str = ""
    """What requests have to name; empty where none is asked for."""

    restricted_to: tuple[str, ...] = ()
    """Full names of the only nodes that kernels may get by kernelspecs added here; empty for all. Set for a test's gateway."""

    @property
    @abstractmethod
    def spec(self) -> GatewaySpec:
        """What the gateway was made as."""

    @property
    def group(self) -> str:
        """As its spec says."""
        return self.spec.group

    @property
    @abstractmethod
    def url(self) -> str:
        """Base URL from this machine, without a slash at its end; the port may change with a restart."""

    @property
    def ws_url(self) -> str:
        """The same for WebSockets."""
        return "ws" + self.url.removeprefix("http")

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every request to it."""
        return {"Authorization": f"token {self.token}"} if self.token else {}

    @property
    def page(self) -> str:
        """What a person opens: JupyterLab's page, with its token; the `url` of an Enterprise Gateway."""
        return f"{self.url}/lab?token={self.token}" if self.spec.program == JUPYTERLAB else self.url

    def wait_ready(self) -> None:
        """Wait for GET /api."""
        self._wait(f"GET /api of the gateway {self.name}", lambda: probe_http(self.url))

    def logs(self, tail: int | None = None) -> str:
        """Return its program's log; *tail* limits the number of lines."""
        return self.read_logs(tail)

    @abstractmethod
    def write_files(self, files: Mapping[str, str]) -> None:
        """Put files (path relative to the gateway's data root or home: see the driver) in place, owned by its user."""

    def add_kernelspec(self, name: str, spec: Mapping[str, Any]) -> None:
        """Offer one more kernelspec, or replace one; it is read at the next request.

        One that names no hosts starts its kernels on any of the gateway's, or on those that this gateway is restricted to.
        """
        if self.restricted_to and not proxy_config(spec).get("remote_hosts"):
            spec = on_nodes(spec, self.restricted_to)
        if self.spec.program == JUPYTERLAB:
            spec = for_provisioner(spec)
        self.write_files({f"kernels/{check_kernelspec_name(name)}/kernel.json": json.dumps(spec, indent=2)})

    @abstractmethod
    def trust(self, nodes: Iterable[HostEntry], identity: str, certificate: str = "") -> None:
        """Make *nodes* known hosts of the gateway's user, and *identity* (a private key) what it logs in with.

        *certificate* goes with the identity in a lab that has them.
        """
