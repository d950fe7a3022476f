"""Nodes and gateways as containers. What they are is in their labels; what they do is asked of the engine each time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests.exceptions

from lab.containers import copies
from lab.containers.engine import put_files, remove_container
from lab.errors import LabError, LabNotFound, LabNotReady
from lab.keys import Authority, HostEntry, known_hosts, read_key
from lab.machines import ExecResult, Gateway, Machine, Node, State, Usage
from lab.names import (
    LABEL_ADDRESS,
    LABEL_AUTHORITY,
    LABEL_DEFINITION,
    LABEL_HOST_KEY,
    LABEL_HOSTS,
    LABEL_MACHINE,
    LABEL_TRUSTED,
    USER,
)
from lab.probes import ProbeFailed, probe_http, probe_ssh, wait_until
from lab.specs import GatewaySpec, NodeSpec, gateway_spec, node_spec
from lab.state import StateFolder

UID = 1000
"""The login user of nodes and the gateway's user: images/*/Dockerfile."""

READY_SECONDS = 60.0
LOG_LINES = 20
KERNELS = "/usr/local/share/jupyter"
"""`write_files` of a gateway is relative to this."""


class ContainerMachine(Machine):
    """What both kinds of container have in common."""

    default_user = "root"

    def __init__(self, container: Any, changed: Callable[[], None]) -> None:
        self._container = container
        self._changed = changed
        self.short = str(container.labels[LABEL_MACHINE])

    @property
    def address(self) -> str:
        """From the label: a stopped container has no address of its own."""
        return str(self._container.labels[LABEL_ADDRESS])

    @property
    def state(self) -> State:
        """Ask the engine."""
        self._reload()
        status = self._container.status
        return "running" if status == "running" else "paused" if status == "paused" else "stopped"

    def _reload(self) -> None:
        try:
            self._container.reload()
        except docker.errors.NotFound:
            raise LabNotFound(f"{self.name} is gone", remedy="`lab up` makes it again") from None

    def _published(self, port: int) -> int:
        """Return the loopback port that the engine gave to the container's *port*; 0 while it doesn't run."""
        self._reload()
        bound = (self._container.attrs["NetworkSettings"].get("Ports") or {}).get(f"{port}/tcp") or []
        return int(bound[0]["HostPort"]) if bound else 0

    def exec(self, argv: Sequence[str], user: str | None = None, timeout: float = 30) -> ExecResult:
        """Run *argv* by the engine's exec; `timeout` in the container ends it, so nothing is left behind."""
        api = self._container.client.api
        limited = ["timeout", "--foreground", "--kill-after=1", str(math.ceil(timeout)), *argv]
        try:
            handle = api.exec_create(self._container.id, limited, user=user or self.default_user)["Id"]
        except docker.errors.APIError as error:
            raise LabError(f"can't run {argv[0]} on {self.name}", cause=str(error.explanation)) from error
        output: list[tuple[bytes | None, bytes | None]] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                output.append(api.exec_start(handle, demux=True))
            except (docker.errors.APIError, requests.exceptions.RequestException) as error:
                failure.append(error)

        # The engine's answer has no deadline of its own (a paused container keeps it open), so a thread waits for it.
        thread = threading.Thread(target=run, name=f"lab-exec-{self.short}", daemon=True)
        thread.start()
        thread.join(timeout + 5)
        if failure:
            raise LabError(f"running {argv[0]} on {self.name} failed", cause=str(failure[0]))
        code = None if thread.is_alive() else api.exec_inspect(handle)["ExitCode"]
        if code is None or (code in {124, 137} and not output):
            raise LabNotReady(f"{argv[0]} on {self.name} did not end within {timeout:.0f} s")
        stdout, stderr = output[0]
        text = [(part or b"").decode(errors="replace") for part in (stdout, stderr)]
        if code == 124:
            raise LabNotReady(f"{argv[0]} on {self.name} did not end within {timeout:.0f} s", cause=text[1][-300:])
        return ExecResult(tuple(argv), int(code), *text)

    def read_logs(self, tail: int | None = None, *, since: float | None = None, timestamps: bool = False) -> str:
        """Return stdout and stderr of the container, nothing if it is gone."""
        options: dict[str, Any] = {"tail": "all" if tail is None else tail, "timestamps": timestamps}
        if since is not None:
            options["since"] = since
        try:
            return str(self._container.logs(**options).decode(errors="replace"))
        except docker.errors.NotFound:
            return ""

    def follow_logs(self, *, since: float | None = None, timestamps: bool = False) -> Iterator[str]:
        """Yield lines until the container ends, or the caller stops listening."""
        options: dict[str, Any] = {"stream": True, "follow": True, "timestamps": timestamps}
        options |= {"tail": 0} if since is None else {"since": since}
        stream = self._container.logs(**options)
        rest = b""
        try:
            for part in stream:
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")
        finally:
            stream.close()

    def inspect(self) -> dict[str, Any]:
        """Return the engine's facts that matter here, and the labels."""
        self._reload()
        facts, host = self._container.attrs, self._container.attrs["HostConfig"]
        return {
            "container": self._container.id,
            "container_name": self._container.name,
            "image": facts["Config"]["Image"],
            "created": facts["Created"],
            "started": facts["State"]["StartedAt"],
            "pid": facts["State"]["Pid"],
            "exit_code": facts["State"]["ExitCode"],
            "limits": {
                "cpus": host.get("NanoCpus", 0) / 1e9 or None,
                "memory": host.get("Memory") or None,
                "pids": host.get("PidsLimit") if (host.get("PidsLimit") or 0) > 0 else None,
            },
            "labels": dict(self._container.labels),
        }

    def usage(self) -> Usage:
        """Ask the engine once; its second look, for a rate, would take a second."""
        if self.state == "stopped":
            raise LabError(f"{self.name} is stopped", remedy=f"`lab start {self.short}`")
        found = self._container.client.api.stats(self._container.id, stream=False, one_shot=True)
        memory = found.get("memory_stats", {})
        # As `docker stats` does: the page cache is nobody's use.
        cache = memory.get("stats", {}).get("total_inactive_file", memory.get("stats", {}).get("inactive_file", 0))
        return Usage(
            found["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
            max(0, memory.get("usage", 0) - cache),
            found.get("pids_stats", {}).get("current", 0),
        )

    def copy_in(self, source: Path, target: str) -> None:
        """Through the engine, so that it works on a stopped or a cut-off machine."""
        copies.copy_in(self._container, self.name, source, target, uid=UID)

    def copy_out(self, source: str, target: Path) -> None:
        """As `copy_in`."""
        copies.copy_out(self._container, self.name, source, target)

    def extend_lease(self, until: float) -> None:
        """Write /run/lab/lease, which works on paused and stopped containers too."""
        try:
            put_files(self._container, "/run/lab", {"lease": f"{until:.0f}\n".encode()})
        except docker.errors.APIError as error:
            raise LabError(f"the lease of {self.name} can't be written", cause=str(error.explanation)) from error

    def pause(self) -> None:
        """Freeze by the cgroup freezer."""
        if self.state == "running":
            self._container.pause()

    def unpause(self) -> None:
        """Thaw."""
        if self.state == "paused":
            self._container.unpause()

    def resume(self) -> None:
        """Start or unpause the container, whatever its state, without waiting for what runs in it."""
        state = self.state
        if state == "paused":
            self._container.unpause()
        elif state == "stopped":
            try:
                self._container.start()
            except docker.errors.APIError as error:
                raise LabError(f"{self.name} does not start", cause=str(error.explanation)) from error

    def start(self) -> None:
        """Start or unpause, tell the lab of the new port, wait."""
        self.resume()
        self._changed()
        self.wait_ready()

    def stop(self) -> None:
        """SIGTERM to init, which passes it on."""
        if self.state == "paused":
            self._container.unpause()
        self._container.stop(timeout=10)

    def kill(self) -> None:
        """SIGKILL to everything in the container."""
        if self.state != "stopped":
            self._container.kill("SIGKILL")
            # The engine answers before the processes are gone.
            self._container.wait(timeout=30)

    def remove(self) -> None:
        """Remove the container, then tell the lab."""
        remove_container(self._container)
        self._changed()

    def _wait(self, what: str, probe: Callable[[], None]) -> None:
        """Wait for *probe*, but not for a container that has ended meanwhile."""

        def attempt() -> None:
            try:
                probe()
            except ProbeFailed:
                if self.state == "stopped":
                    code = self._container.attrs["State"]["ExitCode"]
                    cause = f"its container ended with exit code {code}"
                    raise LabNotReady(f"{what} can't succeed", cause=cause, logs=self._last_logs()) from None
                raise

        wait_until(what, attempt, seconds=READY_SECONDS, logs=self._last_logs)

    def _last_logs(self) -> str:
        return self.read_logs(LOG_LINES)


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

    def wait_ready(self) -> None:
        """Wait for the protocol to answer: an SSH login, or GET /api."""
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
        spec, owner = self.spec, {"uid": UID, "gid": UID}
        own = "" if self.certified else f"{identity}\n"
        put_files(self._container, "/home/lab/.ssh", {"authorized_keys": own.encode()}, mode=0o600, **owner)
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
            put_files(self._container, "/etc/ssh", {path: text.encode() for path, text in proofs.items()})
        if (spec.users or self.certified) and self.state == "running":
            self.exec(["/opt/lab/users.sh"], user="root").check()
            self._reload_sshd()

    def _reload_sshd(self) -> None:
        """Have sshd read its certificate anew; sessions live on."""
        self.exec(["pkill", "-HUP", "-o", "-x", "sshd"], user="root")

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
            self._changed()
        self.wait_ready()


class ContainerGateway(ContainerMachine, Gateway):
    """An Enterprise Gateway in a container; its disk survives `kill` and `start`."""

    default_user = "gateway"

    def __init__(self, container: Any, changed: Callable[[], None]) -> None:
        super().__init__(container, changed)
        self.name = self.short
        self.hosts = tuple(filter(None, container.labels.get(LABEL_HOSTS, "").split(",")))

    @property
    def spec(self) -> GatewaySpec:
        """From the label."""
        return gateway_spec(self.name, self.hosts, self._container.labels.get(LABEL_DEFINITION, ""))

    @property
    def url(self) -> str:
        """On the loopback port that the engine chose."""
        return f"http://127.0.0.1:{self._published(8888)}"

    def wait_ready(self) -> None:
        """Wait for the protocol to answer: an SSH login, or GET /api."""
        self._wait(f"GET /api of the gateway {self.name}", lambda: probe_http(self.url))

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write below /usr/local/share/jupyter, at once, running or not."""
        content = {path: text.encode() for path, text in files.items()}
        put_files(self._container, KERNELS, content, uid=UID, gid=UID)

    def trust(self, nodes: Iterable[HostEntry], identity: str, certificate: str = "") -> None:
        """Write the gateway user's ~/.ssh: names and addresses, since EG's own proxy looks up by address."""
        files = {"known_hosts": known_hosts(nodes).encode(), "id_ed25519": identity.encode()}
        if certificate:
            files["id_ed25519-cert.pub"] = f"{certificate}\n".encode()
        put_files(self._container, "/home/gateway/.ssh", files, mode=0o600, uid=UID, gid=UID)
