"""Nodes and gateways as processes. What they are is in `machine.json`; whether they run is asked of /proc."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.errors import LabNotFound, LabNotReady
from lab.keys import HostEntry, known_hosts, ssh_config
from lab.local import processes
from lab.machines import ExecResult, Gateway, Machine, Node, State
from lab.names import fqdn
from lab.probes import ProbeFailed, probe_http, probe_ssh, wait_until

READY_SECONDS = 60.0
LOG_LINES = 20
ADDRESS = "127.0.0.1"


class LocalMachine(Machine):
    """One folder, one main process, and whatever that starts."""

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        self.folder = folder
        self.short = folder.name
        self.facts: dict[str, Any] = json.loads((folder / "machine.json").read_text())
        self._changed = changed

    @property
    def address(self) -> str:
        """Loopback: local machines have no addresses of their own."""
        return ADDRESS

    @property
    def state(self) -> State:
        """Look at the main process."""
        status = processes.main_process(self.folder).status
        return "stopped" if not status else "paused" if status in "Tt" else "running"

    def save(self, **facts: Any) -> None:
        """Keep *facts* in machine.json; called by the driver and when the main process is another one."""
        self.facts |= facts
        temporary = self.folder / ".machine.json"
        temporary.write_text(json.dumps(self.facts, indent=2))
        temporary.replace(self.folder / "machine.json")

    def exec(self, argv: Sequence[str], user: str | None = None, timeout: float = 30) -> ExecResult:
        """Run *argv* in the machine's environment; *user* has no meaning here, all is this user's."""
        try:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=self.facts["env"],
                cwd=self.folder / "home",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabNotReady(f"{argv[0]} on {self.name} did not end within {timeout:.0f} s") from None
        except OSError as error:
            # What a shell, and so a container's exec, would say.
            return ExecResult(tuple(argv), 127, "", str(error))
        text = [part.decode(errors="replace") for part in (done.stdout, done.stderr)]
        return ExecResult(tuple(argv), done.returncode, *text)

    def read_logs(self, tail: int | None = None) -> str:
        """Return what the main process printed, over all its starts."""
        try:
            text = (self.folder / "log").read_text(errors="replace")
        except OSError:
            return ""
        return text if tail is None else "".join(text.splitlines(keepends=True)[-tail:])

    def resume(self) -> None:
        """Start the main process, or let a paused machine go on."""
        if not self.folder.exists():
            raise LabNotFound(f"{self.name} is gone", remedy="`lab up` makes it again")
        state = self.state
        if state == "paused":
            processes.signal_all(self.folder, signal.SIGCONT)
        elif state == "stopped":
            for needed in ("home", "run"):
                Path(self.facts[needed]).mkdir(parents=True, exist_ok=True, mode=0o700)
            main = processes.spawn(
                self.facts["argv"],
                env=self.facts["env"],
                cwd=self.folder / "home",
                log=self.folder / "log",
            )
            self.save(process=[main.pid, main.started])

    def start(self) -> None:
        """Start or unpause, tell the lab, wait."""
        self.resume()
        self._changed()
        self.wait_ready()

    def stop(self) -> None:
        """SIGTERM to all of the machine's processes, SIGKILL after ten seconds."""
        processes.end_all(self.folder, [self.folder], grace=10)

    def kill(self) -> None:
        """SIGKILL to all of the machine's processes."""
        processes.end_all(self.folder, [self.folder], grace=0)

    def remove(self) -> None:
        """End the processes and delete the folder, then tell the lab."""
        processes.end_all(self.folder, [self.folder], grace=2)
        shutil.rmtree(self.facts["run"], ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._changed()

    def _wait(self, what: str, probe: Callable[[], None]) -> None:
        """Wait for *probe*, but not for a process that has ended meanwhile."""

        def attempt() -> None:
            try:
                probe()
            except ProbeFailed:
                if self.state == "stopped":
                    raise LabNotReady(f"{what} can't succeed", cause="its process ended", logs=self._last()) from None
                raise

        wait_until(what, attempt, seconds=READY_SECONDS, logs=self._last)

    def _last(self) -> str:
        return self.read_logs(LOG_LINES)


class LocalNode(LocalMachine, Node):
    """An SSH server on a loopback port, with a home of its own."""

    def __init__(self, folder: Path, identity: Path, changed: Callable[[], None]) -> None:
        super().__init__(folder, changed)
        self._identity = identity
        self.name = fqdn(self.short)
        self.host_key = str(self.facts["host_key"])
        self.trusted = bool(self.facts["trusted"])

    @property
    def port(self) -> int:
        """The port that the node was made with."""
        return int(self.facts["port"])

    def entry(self) -> HostEntry:
        """Name this user: nobody else can log in to an sshd that doesn't run as root."""
        return HostEntry(self.name, self.address, self.port, self.host_key, str(self.facts["user"]))

    def pause(self) -> None:
        """SIGSTOP to all of the node's processes; returns when the main one has stopped."""
        processes.signal_all(self.folder, signal.SIGSTOP)

        def check() -> None:
            if self.state != "paused":
                raise ProbeFailed(f"it is {self.state}")

        self._wait(f"{self.name} to stop", check)

    def unpause(self) -> None:
        """SIGCONT to all of the node's processes."""
        processes.signal_all(self.folder, signal.SIGCONT)

    def wait_ready(self) -> None:
        """Wait for an SSH login."""
        self._wait(f"an SSH login on {self.name}", lambda: probe_ssh(self.entry(), self._identity))


class LocalGateway(LocalMachine, Gateway):
    """Enterprise Gateway in an environment of its own, with a home of its own."""

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        super().__init__(folder, changed)
        self.name = self.short
        self.hosts = tuple(self.facts["hosts"])
        self.python = str(self.facts["python"])

    @property
    def url(self) -> str:
        """On the port that the gateway was made with."""
        return f"http://127.0.0.1:{self.facts['port']}"

    def wait_ready(self) -> None:
        """Wait for GET /api."""
        self._wait(f"GET /api of the gateway {self.name}", lambda: probe_http(self.url))

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write below the folder that JUPYTER_PATH names."""
        for path, text in files.items():
            target = self.folder / "jupyter" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)

    def trust(self, nodes: Iterable[HostEntry], identity: str) -> None:
        """Write ~/.ssh of the gateway's own home; names lead to loopback ports by its config alone."""
        entries = list(nodes)
        folder = self.folder / "home" / ".ssh"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key, hosts = folder / "id_ed25519", folder / "known_hosts"
        texts = {
            key: identity,
            hosts: known_hosts(entries),
            folder / "config": ssh_config(entries, identity=key, known_hosts_file=hosts),
        }
        for path, text in texts.items():
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600)
            partial.write_text(text)
            partial.replace(path)
