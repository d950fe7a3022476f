"""What a node and a gateway can do, whichever driver made them. Tests and benchmarks are written against these."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab.errors import LabError
from lab.kernelspecs import on_nodes, proxy_config
from lab.keys import HostEntry
from lab.names import short_name
from lab.topology.specs import GatewaySpec, NodeSpec, check_kernelspec_name

State = Literal["running", "paused", "stopped"]


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


class Machine(ABC):
    """A container, or a process that plays one."""

    name: str
    """Full name of a node (`node1.lab.test`), short name of a gateway (`gateway`)."""

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

    @abstractmethod
    def exec(self, argv: Sequence[str], user: str | None = None, timeout: float = 30) -> ExecResult:
        """Run *argv* on the machine, not through its SSH or HTTP; raise LabNotReady after *timeout* seconds."""

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

    @abstractmethod
    def start(self) -> None:
        """Start a stopped or killed machine and wait until it answers."""

    @abstractmethod
    def resume(self) -> None:
        """Make a stopped or paused machine run, without waiting until it answers; called by `lab up`."""

    @abstractmethod
    def wait_ready(self) -> None:
        """Wait until a running machine answers by its protocol; after a minute raise LabNotReady with its last lines."""

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
    """One Enterprise Gateway of the lab."""

    hosts: tuple[str, ...]
    """Full names of the nodes that it was made for."""

    python: str = "/opt/gateway/bin/python"
    """The interpreter that has Enterprise Gateway and our wheel, on the gateway's disk."""

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

    def logs(self, tail: int | None = None) -> str:
        """Return Enterprise Gateway's log; *tail* limits the number of lines."""
        return self.read_logs(tail)

    @abstractmethod
    def write_files(self, files: Mapping[str, str]) -> None:
        """Put files (path relative to the gateway's data root or home: see the driver) in place, owned by its user."""

    def add_kernelspec(self, name: str, spec: Mapping[str, Any]) -> None:
        """Offer one more kernelspec, or replace one; Enterprise Gateway reads it at the next request.

        One that names no hosts starts its kernels on any of the gateway's, or on those that this gateway is restricted to.
        """
        if self.restricted_to and not proxy_config(spec).get("remote_hosts"):
            spec = on_nodes(spec, self.restricted_to)
        self.write_files({f"kernels/{check_kernelspec_name(name)}/kernel.json": json.dumps(spec, indent=2)})

    @abstractmethod
    def trust(self, nodes: Iterable[HostEntry], identity: str, certificate: str = "") -> None:
        """Make *nodes* known hosts of the gateway's user, and *identity* (a private key) what it logs in with.

        *certificate* goes with the identity in a lab that has them.
        """
