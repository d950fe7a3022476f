"""What nodes and gateways as containers have in common: labels say what they are, the engine is asked what they do."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions

from lab.drivers.capabilities import Capability
from lab.drivers.docker import copies
from lab.drivers.docker.capabilities import CAPABILITIES
from lab.drivers.docker.engine import post, put_files, remove_container
from lab.drivers.docker.outputs import output_of
from lab.drivers.machines import ExecResult, Limits, Machine, State, Usage, run_here
from lab.errors import LabError, LabNotFound, LabNotReady
from lab.names import (
    LABEL_ADDRESS,
    LABEL_MACHINE,
)
from lab.probes import remedy_for

UID = 1000
"""The login user of nodes and the gateway's user: images/*/Dockerfile."""

UNLIMITED = 9223372036854771712
"""What the kernel calls no limit of memory. The engine takes no -1 here."""

LACKING: dict[Capability, str] = {
    "stop-signals": "containers are paused by the cgroup freezer",
    "sshd-main": "sshd has a supervisor here, and the container outlives it",
}

REFUSED = 126
"""The exit code of an exec that could not begin, though the program is there (without it: 127)."""

_FREEZING = 10.0
"""Seconds for a container to let itself be frozen."""


class ContainerMachine(Machine):
    """What both kinds of container have in common."""

    default_user = "root"
    capabilities = CAPABILITIES

    def __init__(self, container: Any, changed: Callable[[], None]) -> None:
        super().__init__(changed)
        self._container = container
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

    def refusal(self, needs: Collection[Capability]) -> str:
        """Say what a container has in place of what it lacks."""
        return "; ".join(
            LACKING.get(each, f"a container has no {each}") for each in sorted(set(needs) - self.capabilities)
        )

    @property
    def user(self) -> str:
        """The login user of a node, the gateway's user."""
        return self.default_user

    @property
    def home(self) -> str:
        """In the container."""
        return f"/home/{self.default_user}"

    @property
    def native(self) -> Any:
        """docker-py's container."""
        return self._container

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
        limit = math.ceil(timeout)
        limited = ["timeout", "--foreground", "--kill-after=1", str(limit), *argv]
        try:
            handle = api.exec_create(self._container.id, limited, user=user or self.default_user)["Id"]
        except docker.errors.APIError as error:
            raise LabError(f"can't run {argv[0]} on {self.name}", cause=str(error.explanation)) from error
        output: list[tuple[bytes, bytes]] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                output.append(output_of(api, handle))
            except (
                docker.errors.APIError,
                requests.exceptions.RequestException,
                urllib3.exceptions.HTTPError,
                OSError,
                EOFError,
            ) as error:
                failure.append(error)

        # The engine's answer has no deadline of its own (a paused container keeps it open), so a thread waits for it.
        began = time.monotonic()
        thread = threading.Thread(target=run, name=f"lab-exec-{self.short}", daemon=True)
        thread.start()
        thread.join(timeout + 5)
        if failure:
            raise LabError(f"running {argv[0]} on {self.name} failed", cause=str(failure[0]))
        code = None if thread.is_alive() else api.exec_inspect(handle)["ExitCode"]
        text = [part.decode(errors="replace") for part in (output[0] if output else (b"", b""))]
        # A command may itself end with the 124 of `timeout`, or be killed: then it did so earlier.
        if code is None or not output or (code in {124, 137} and time.monotonic() - began >= limit):
            raise LabNotReady(
                f"{argv[0]} on {self.name} did not end within {timeout:.0f} s",
                cause=text[1][-300:],
                remedy=f"`lab status` says whether it hangs; give it longer (`lab exec --timeout`) or `lab restart {self.short}`",
            )
        return ExecResult(tuple(argv), int(code), *text)

    def privileged_exec(self, argv: Sequence[str], timeout: float = 30) -> ExecResult:
        """Run by the engine's privileged exec, else by entering the container's namespaces.

        A node with more capabilities was rejected: all nodes would have them all the time, for the few minutes of a mount. The
        privileged exec asks for every capability there is, so an engine that lacks one itself can't give it; root on the
        engine's own machine can still enter the node.
        """
        done = self._by_engine(argv, timeout)
        if done.exit_code != REFUSED:
            return done
        why = (done.stdout + done.stderr).strip()[-200:]
        self._reload()
        pid = int(self._container.attrs["State"]["Pid"])
        if os.geteuid() == 0 and _is_in(pid, self._container.id):
            enter = ["nsenter", "--target", str(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
            done = run_here([*enter, *argv], timeout)
            if done.exit_code != REFUSED:
                return done
            why += f"; nsenter: {done.stderr.strip()[-200:]}"
        raise LabError(
            f"{self.name} can't be given the capability to mount",
            cause=f"the engine refuses a privileged exec ({why}), and this process is not root beside the engine",
        )

    def _by_engine(self, argv: Sequence[str], timeout: float) -> ExecResult:
        """Run with all capabilities; a thread waits, since the engine's answer has no deadline of its own."""
        api = self._container.client.api
        ended: list[ExecResult | Exception] = []

        def execute() -> None:
            try:
                handle = api.exec_create(self._container.id, list(argv), user="root", privileged=True)["Id"]
                output = api.exec_start(handle, demux=True)
                text = [(part or b"").decode(errors="replace") for part in output]
                ended.append(ExecResult(tuple(argv), int(api.exec_inspect(handle)["ExitCode"]), *text))
            except Exception as error:  # noqa: BLE001 -- docker's and requests' errors have no common root
                ended.append(error)

        thread = threading.Thread(target=execute, name="lab-fault-exec", daemon=True)
        thread.start()
        thread.join(timeout)
        found = ended[0] if ended else TimeoutError(f"no answer within {timeout:.0f} s")
        if isinstance(found, Exception):
            raise LabNotReady(f"{self.name} does not carry out what it is told", cause=str(found))
        return found

    def limits(self) -> Limits:
        """Ask the engine."""
        self._reload()
        found = self._container.attrs["HostConfig"]
        memory, swap, pids = (int(found.get(name) or 0) for name in ("Memory", "MemorySwap", "PidsLimit"))
        return Limits(memory, max(swap, 0), max(pids, 0))

    def set_limits(self, limits: Limits) -> None:
        """Ask the engine itself: docker-py's `update` knows no limit of processes."""
        wanted: dict[str, int] = {}
        if limits.memory is not None:
            # Both, and swap as a number: on cgroup v1 the engine writes a -1 in an order that the kernel refuses.
            memory = limits.memory or UNLIMITED
            wanted |= {"Memory": memory, "MemorySwap": max(memory, limits.swap or 0)}
        if limits.pids is not None:
            wanted["PidsLimit"] = limits.pids or -1
        answer = post(self._container.client.api, f"/containers/{self._container.id}/update", wanted)
        if not answer.ok:
            raise LabError(f"the engine does not change the limits of {self.name}", cause=answer.text.strip())

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

    def _replace_files(self, folder: str, files: Mapping[str, bytes], *, mode: int = 0o644, owner: int = 0) -> None:
        """Write *files* (names, no paths) into *folder* by a rename each: who reads meanwhile sees a whole version.

        The engine alone removes each file before it writes it anew, and a login just then finds no key.
        """
        for _ in range(2):
            if self.state == "running":
                with contextlib.suppress(LabError):  # it was stopped, or even started again, just now
                    self._move_files(folder, files, mode, owner)
                    return
        put_files(self._container, folder, files, mode=mode, uid=owner, gid=owner)

    def _move_files(self, folder: str, files: Mapping[str, bytes], mode: int, owner: int) -> None:
        # A folder for each call: several processes work on one lab.
        aside = f"next-{os.getpid()}-{threading.get_ident()}"
        content = {f"{aside}/{name}": text for name, text in files.items()}
        put_files(self._container, "/run/lab", content, mode=mode, uid=owner, gid=owner)
        move = ["sh", "-c", 'mv -f -t "$1" "$2"/* && rmdir "$2"', "sh", folder, f"/run/lab/{aside}"]
        self.exec(move, user="root").check()

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
        """Freeze by the cgroup freezer; tried again, since what waits for its vfork's program can't be frozen."""
        deadline = time.monotonic() + _FREEZING
        while self.state == "running":
            try:
                self._container.pause()
            except docker.errors.APIError as error:
                if "unable to freeze" not in str(error.explanation) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

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
                raise LabError(
                    f"{self.name} does not start", cause=str(error.explanation), remedy=remedy_for(self.short)
                ) from error

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
        self.announce()

    def end_cause(self) -> str:
        """Return its container's exit code; as it was when the state was last asked."""
        return f"its container ended with exit code {self._container.attrs['State']['ExitCode']}"


def _is_in(pid: int, container: str) -> bool:
    """Return True if *pid* on this machine is in *container*: the engine may be on another one."""
    try:
        return pid > 1 and container in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
