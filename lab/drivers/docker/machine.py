"""What nodes and gateways as containers have in common: labels say what they are, the engine is asked what they do."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests.exceptions
import urllib3.exceptions

from lab.drivers.docker import copies
from lab.drivers.docker.engine import put_files, remove_container
from lab.drivers.docker.outputs import output_of
from lab.drivers.machines import ExecResult, Machine, State, Usage
from lab.errors import LabError, LabNotFound, LabNotReady
from lab.names import (
    LABEL_ADDRESS,
    LABEL_MACHINE,
)
from lab.probes import ProbeFailed, remedy_for, wait_until

UID = 1000
"""The login user of nodes and the gateway's user: images/*/Dockerfile."""

READY_SECONDS = 60.0
LOG_LINES = 20


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
                raise LabError(
                    f"{self.name} does not start", cause=str(error.explanation), remedy=remedy_for(self.short)
                ) from error

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
        remedy = remedy_for(self.short)

        def attempt() -> None:
            try:
                probe()
            except ProbeFailed:
                if self.state == "stopped":
                    code = self._container.attrs["State"]["ExitCode"]
                    cause = f"its container ended with exit code {code}"
                    logs = self._last_logs()
                    raise LabNotReady(f"{what} can't succeed", cause=cause, remedy=remedy, logs=logs) from None
                raise

        wait_until(what, attempt, seconds=READY_SECONDS, logs=self._last_logs, remedy=remedy)

    def _last_logs(self) -> str:
        return self.read_logs(LOG_LINES)
