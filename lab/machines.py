"""What a node and a gateway can do, whichever driver made them. Tests and benchmarks are written against these."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from lab.errors import LabError, LabUsageError
from lab.keys import HostEntry
from lab.names import check_name, fqdn, short_name

State = Literal["running", "paused", "stopped"]
Shell = Literal["bash", "csh", "fish"]
Python = Literal["3.11", "3.9", "none"]

_CHOICES: Final = {"shell": ("bash", "csh", "fish"), "python": ("3.11", "3.9", "none")}


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
class NodeSpec:
    """One node to be: what `Lab.add_node` says about it. Unknown variants raise LabUsageError."""

    name: str
    sshd_options: tuple[str, ...] = ()
    shell: str = "bash"
    noisy: bool = False
    python: str = "3.11"
    trusted: bool = True
    login_env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(short_name(self.name), "node")
        for what, choices in _CHOICES.items():
            value = getattr(self, what)
            if value not in choices:
                raise LabUsageError(
                    f"{self.name} can't have {what} {value!r}", remedy=f"choose one of {', '.join(choices)}"
                )
        for line in (*self.sshd_options, *self.login_env, *self.login_env.values()):
            if "\n" in line:
                raise LabUsageError(f"{self.name} can't have the option {line!r}", cause="it holds a line break")


@dataclass(frozen=True)
class GatewaySpec:
    """One gateway to be; *hosts* are full names, *options* go behind Enterprise Gateway's command line."""

    name: str
    hosts: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    kernelspecs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "gateway")
        for name in self.kernelspecs:
            check_kernelspec_name(name)

    def environment(self, address: str, login: Mapping[str, str]) -> dict[str, str]:
        """Return what Enterprise Gateway reads from its environment.

        *address* is where stock kernels answer to; *login* is how to reach nodes where no ssh_config says it.
        """
        return {
            "EG_REMOTE_HOSTS": ",".join(self.hosts),
            "EG_KERNEL_LAUNCH_TIMEOUT": "30",
            "EG_LIST_KERNELS": "True",
            "EG_RESPONSE_IP": address,
            **login,
            **self.env,
        }


def check_kernelspec_name(name: str) -> str:
    """Return *name* if Jupyter takes it for a kernelspec; it becomes a folder's name, so nothing else may pass."""
    if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
        raise LabUsageError(f"{name!r} can't be the name of a kernelspec", remedy="use letters, digits, '.', '_', '-'")
    return name


class Machine(ABC):
    """A container, or a process that plays one."""

    name: str
    """Full name of a node (`node1.lab.test`), short name of a gateway (`gateway`)."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

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

        *tail* lines of it, from *since* (UNIX seconds) on where the driver knows when a line came; with *timestamps* such
        a driver puts an RFC 3339 time in front of each line. A driver that doesn't know returns the lines as they are.
        """

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

    @abstractmethod
    def pause(self) -> None:
        """Freeze every process: the host hangs, its TCP connections stay open."""

    @abstractmethod
    def unpause(self) -> None:
        """Undo `pause`; fine if it isn't paused."""

    def entry(self) -> HostEntry:
        """Return what SSH clients need to know of this node."""
        return HostEntry(self.name, self.address, self.port, self.host_key)


class Gateway(Machine):
    """One Enterprise Gateway of the lab."""

    hosts: tuple[str, ...]
    """Full names of the nodes that it was made for."""

    python: str = "/opt/gateway/bin/python"
    """The interpreter that has Enterprise Gateway and our wheel, on the gateway's disk."""

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
        """Offer one more kernelspec, or replace one; Enterprise Gateway reads it at the next request."""
        self.write_files({f"kernels/{check_kernelspec_name(name)}/kernel.json": json.dumps(spec, indent=2)})

    @abstractmethod
    def trust(self, nodes: Iterable[HostEntry], identity: str) -> None:
        """Make *nodes* known hosts of the gateway's user, and *identity* (a private key) what it logs in with."""


def machine_name(name: str) -> str:
    """Return the full name for a node's short or full name; called with names that users typed."""
    return fqdn(check_name(short_name(name), "node"))
