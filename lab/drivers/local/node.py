"""A node as processes: an SSH server and what its logins start."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lab.drivers.local import namespaces, processes, programs
from lab.drivers.local.daemon_plan import FOLDER
from lab.drivers.local.files import empty, write_server_files
from lab.drivers.local.machine import LocalMachine
from lab.drivers.local.spark_daemons import supervisor_held
from lab.drivers.machines import Node, Sshd
from lab.keys import HostEntry
from lab.names import fqdn
from lab.probes import probe_ssh
from lab.topology.specs import NodeSpec, node_spec


class LocalNode(LocalMachine, Node):
    """An SSH server on a loopback port, with a home of its own."""

    def __init__(self, folder: Path, identity: Path, changed: Callable[[], None]) -> None:
        super().__init__(folder, changed)
        self._identity = identity
        self.name = str(self.facts.get("name") or fqdn(self.short))
        self.host_key = str(self.facts["host_key"])
        self.trusted = bool(self.facts["trusted"])
        # As /proc names them.
        self.daemon_logs = self.daemon_files = str((folder / FOLDER).resolve())

    @property
    def port(self) -> int:
        """The port that the node was made with."""
        return self.own_port

    @property
    def sshd(self) -> Sshd:
        """OpenSSH's, which is this user's and has one file of settings, or asyncssh's."""
        program, *_, settings = map(str, self.facts["argv"])
        # Not by facts["sshd"], which labs of earlier days lack.
        is_openssh = settings.endswith("sshd_config")
        enter: list[str] = []
        if self.facts.get("isolation", "none") != "none":
            enter = namespaces.command("enter", str(self.main_pid), self.home)
        return Sshd(
            "openssh" if is_openssh else "asyncssh",
            self.own_port,
            str(self.folder / "authorized_keys"),
            str(self.folder.parents[1] / "host_keys" / self.short),
            settings if is_openssh else "",
            argv=(*enter, program),
        )

    def daemon_command(self, verb: str, daemon: str, *words: str) -> tuple[str, ...]:
        """By files that the supervisor looks at, from this side."""
        return (sys.executable, "-I", "-S", programs.SUPERVISOR, verb, self.daemon_logs, daemon, *words)

    @property
    def host(self) -> str:
        """An address: nothing resolves a local node's name but an ssh_config."""
        return str(self.facts.get("host") or self.address)

    def endpoint(self, port: int) -> str:
        """By the port that stands for *port* here."""
        return f"{self.host}:{self.facts.get('ports', {}).get(str(port), port)}"

    def published(self, port: int) -> str:
        """On the port that stands for *port* here: this machine is where it listens."""
        there = str(port) in self.facts.get("ports", {}) and self.state != "stopped"
        return f"http://{self.endpoint(port)}" if there else ""

    def entry(self) -> HostEntry:
        """Name this user: nobody else can log in to an sshd that doesn't run as root."""
        user = str(self.facts["user"])
        return HostEntry(self.name, self.address, self.port, self.host_key, user, self.certified)

    @property
    def spec(self) -> NodeSpec:
        """From machine.json."""
        return node_spec(self.name, str(self.facts.get("definition", "")))

    @property
    def certified(self) -> str:
        """From machine.json."""
        return str(self.facts.get("authority", ""))

    def reset(self) -> None:
        """End all its processes but its SSH server, empty its home and /tmp, have the server hang up and read its files."""
        if self.state == "running":
            kept = processes.chain(self.folder)
            with supervisor_held(self.folder) as supervisors:
                processes.end_others(self.folder, [*kept, *supervisors])
            self._empty()
            write_server_files(self.facts)
            kept[-1].signal(signal.SIGHUP)
            self.wait_ready()
        else:
            self.kill()
            self._empty()
            write_server_files(self.facts)
            self.start()

    def wait_ready(self) -> None:
        """Wait for an SSH login."""
        self._wait(f"an SSH login on {self.name}", lambda: probe_ssh(self.entry(), self._identity))

    def _empty(self) -> None:
        # The folders themselves stay: they are mounted inside the node, and so is the sockets' folder below its /tmp.
        run, tmp = Path(self.facts["run"]), self.facts.get("tmp")
        empty(Path(self.facts["home"]), spared=set())
        empty(run, spared=set())
        if tmp:
            inside = Path(tmp) / run.relative_to("/tmp") if run.is_relative_to("/tmp") else Path(tmp)  # noqa: S108
            empty(Path(tmp), spared={inside, *inside.parents})
