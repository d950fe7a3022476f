"""A node as a container: who may log in there, what proves it, and how it goes back to golden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lab.drivers.docker.engine import put_files
from lab.drivers.docker.machine import UID, ContainerMachine
from lab.drivers.machines import Node, Sshd
from lab.keys import Authority, read_key
from lab.names import (
    LABEL_AUTHORITY,
    LABEL_DEFINITION,
    LABEL_HOST_KEY,
    LABEL_TRUSTED,
    USER,
)
from lab.probes import probe_ssh
from lab.state import StateFolder
from lab.topology.specs import NodeSpec, node_spec


class ContainerNode(ContainerMachine, Node):
    """An SSH node in a container."""

    default_user = USER

    def __init__(self, container: Any, folder: StateFolder, changed: Callable[[], None]) -> None:
        super().__init__(container, changed)
        self._folder = folder
        self.name = str(container.attrs["Config"]["Hostname"])
        self.host_key = str(container.labels[LABEL_HOST_KEY])
        self.trusted = container.labels.get(LABEL_TRUSTED) != "no"

    @property
    def port(self) -> int:
        """Ask the engine: it gives a new one at every start; 0 while the node is down."""
        return self._published(22)

    @property
    def sshd(self) -> Sshd:
        """OpenSSH's, as images/node has it."""
        return Sshd(
            "openssh",
            22,
            f"{self.home}/.ssh/authorized_keys",
            "/etc/ssh/ssh_host_ed25519_key",
            "/etc/ssh/sshd_config",
            "/etc/ssh/sshd_config.d",
        )

    def daemon_command(self, verb: str, daemon: str, *words: str) -> tuple[str, ...]:
        """By the supervisor in the images of nodes with daemons: images/spark."""
        return ("/opt/lab/daemon.sh", verb, daemon, *words)

    def published(self, port: int) -> str:
        """On the loopback port that the engine chose."""
        number = self._published(port)
        return f"http://127.0.0.1:{number}" if number else ""

    def wait_ready(self) -> None:
        """Wait for an SSH login with a command."""
        self._wait(f"an SSH login on {self.name}", lambda: probe_ssh(self.entry(), self._folder.identity))

    @property
    def spec(self) -> NodeSpec:
        """From the label."""
        return node_spec(self.name, self._container.labels.get(LABEL_DEFINITION, ""))

    @property
    def certified(self) -> str:
        """From the label."""
        return str(self._container.labels.get(LABEL_AUTHORITY, ""))

    def authorize(self, identity: str) -> None:
        """Let *identity* (a public key) log in, by authorized_keys or by what the lab's authority signs."""
        spec = self.spec
        own = "" if self.certified else f"{identity}\n"
        self._replace_files("/home/lab/.ssh", {"authorized_keys": own.encode()}, mode=0o600, owner=UID)
        if spec.users:
            files = {
                f"users/{name}/authorized_keys": own + "".join(f"{key}\n" for key in user.keys)
                for name, user in spec.users.items()
            }
            put_files(self._container, "/opt/lab", {path: text.encode() for path, text in files.items()}, mode=0o600)
        if self.certified:
            authority = Authority(self._folder.authority, "", make=False)
            names = [self.name, self.short, self.address]
            certificate = authority.sign_host(self.host_key, names, spec.validity)
            proofs = {"ssh_host_ed25519_key-cert.pub": f"{certificate}\n", "lab_ca.pub": f"{authority.public}\n"}
            self._replace_files("/etc/ssh", {name: text.encode() for name, text in proofs.items()})
        if (spec.users or self.certified) and self.state == "running":
            self.exec(["/opt/lab/users.sh"], user="root").check()
            self._reload_sshd()

    def _reload_sshd(self) -> None:
        """Have sshd read its certificate anew; sessions live on."""
        # By its title: the oldest sshd may be a session that has outlived an earlier listener.
        self.exec(["pkill", "-HUP", "-f", r"^sshd: .*\[listener\]"], user="root")

    def reset(self) -> None:
        """Without ending the container: kill what the users run, put golden files back, start sshd anew."""
        woken = self.state != "running"
        self.resume()
        self.exec(["/opt/lab/reset.sh"], user="root").check()
        identity = read_key(self._folder.identity).public
        if identity:
            # Golden has the keys of the day on which the node was made.
            self.authorize(identity)
        if woken:
            self.announce()
        self.wait_ready()
