"""What local machines have in common: processes. What they are is in `machine.json`; whether they run is asked of /proc."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lab import files
from lab.drivers.capabilities import Capability
from lab.drivers.local import logs, namespaces, processes, programs
from lab.drivers.local.capabilities import CAPABILITIES
from lab.drivers.local.files import copy, make_own
from lab.drivers.machines import ExecResult, Limits, Machine, Share, State, Usage, run_here
from lab.errors import LabError, LabNotFound, LabNotReady
from lab.processes import argv
from lab.state import locked

ADDRESS = "127.0.0.1"
LACKING = "nodes of a local lab share this machine's kernel, network and users"
"""Why a local machine has none of the capabilities that it lacks."""
POLL_SECONDS = 0.2
"""How often a followed log is looked at."""


class LocalMachine(Machine):
    """One folder, one main process, and whatever that starts."""

    capabilities = CAPABILITIES
    # Its faults' folder and all that they change is below the lab's own folder, and goes with it.
    keeps_notes = False
    changes_while_down = True

    def __init__(self, folder: Path, changed: Callable[[], None]) -> None:
        super().__init__(changed)
        self.folder = folder
        self.short = folder.name
        self.facts: dict[str, Any] = json.loads((folder / "machine.json").read_text())
        self.faults_folder = f"{folder}/faults"

    def refusal(self, needs: Collection[Capability]) -> str:
        """Say what all local machines lack."""
        return "" if set(needs) <= self.capabilities else LACKING

    @property
    def user(self) -> str:
        """This user, who alone can log in to an sshd that doesn't run as root."""
        return str(self.facts.get("user") or pwd.getpwuid(os.getuid()).pw_name)

    @property
    def home(self) -> str:
        """Below the machine's folder."""
        return str(self.facts["home"])

    @property
    def own_port(self) -> int:
        """The port that the machine was made with."""
        return int(self.facts["port"])

    @property
    def main_pid(self) -> int:
        """As the machine was last started from here, or before this object was made."""
        return int((self.facts.get("process") or [0])[0])

    def share(self) -> Share:
        """Look at the processes with the machine's mark, and at its folders."""
        main = processes.main_process(self.folder)
        pids = {process.pid for process in processes.belonging(self.folder, [main])}
        commands = {pid: " ".join(argv(pid)) for pid in pids}
        home, run = Path(self.facts["home"]), Path(self.facts["run"])
        return Share(
            main.pid,
            frozenset(pids - {main.pid}),
            frozenset(
                pid for pid, command in commands.items() if command.startswith("sshd") or programs.is_server(command)
            ),
            (home, run),
            (self.folder / "authorized_keys", self.folder / "sshd_config", *(home / ".ssh").glob("*")),
            self.own_port if self.sshd is not None else 0,
        )

    @property
    def address(self) -> str:
        """Loopback: local machines have no addresses of their own."""
        return ADDRESS

    @property
    def state(self) -> State:
        """Look at the main process."""
        main = processes.main_process(self.folder)
        return "paused" if main.is_stopped else "running" if main.status else "stopped"

    def save(self, **facts: Any) -> None:
        """Keep *facts* in machine.json; called by the driver and when the main process is another one."""
        self.facts |= facts
        files.write(self.folder / "machine.json", json.dumps(self.facts, indent=2))

    def exec(self, argv: Sequence[str], user: str | None = None, timeout: float = 30) -> ExecResult:
        """Run *argv* in the machine's environment; *user* has no meaning here, all is this user's."""
        inside = list(argv)
        if self.facts.get("isolation", "none") != "none" and self.state != "stopped":
            main = processes.main_process(self.folder)
            inside = [*namespaces.command("enter", str(main.pid), str(self.folder / "home")), *argv]
        try:
            done = subprocess.run(
                inside,
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

    def privileged_exec(self, argv: Sequence[str], timeout: float = 30) -> ExecResult:
        """Run on this side, outside of the machine's namespaces, where all that is the machine's is this user's."""
        # Without the mark of the lab's processes: what runs here is the caller's, not the machine's.
        env = {name: value for name, value in os.environ.items() if name != processes.MARK}
        return run_here(argv, timeout, env)

    def run_python(self, arguments: Sequence[str], *, privileged: bool = False, timeout: float = 30) -> ExecResult:
        """Run by this interpreter, always as `privileged_exec` does."""
        return self.privileged_exec([sys.executable, *arguments], timeout)

    def limits(self) -> Limits:
        """Refuse: nothing bounds this user's processes by machine."""
        raise LabError(f"{self.name} has no limits", cause=LACKING)

    def set_limits(self, limits: Limits) -> None:
        """Refuse, as `limits`."""
        raise LabError(f"{self.name} can't be given limits", cause=LACKING)

    def read_logs(self, tail: int | None = None, *, since: float | None = None, timestamps: bool = False) -> str:
        """Return what the main process printed, over all its starts; `init.py` puts a time in front of each line."""
        try:
            text = (self.folder / "log").read_text(errors="replace")
        except OSError:
            return ""
        lines = list(logs.told(text.splitlines(), since=since, timestamps=timestamps))
        return "".join(f"{line}\n" for line in (lines if tail is None else lines[-tail:] if tail else []))

    def follow_logs(self, *, since: float | None = None, timestamps: bool = False) -> Iterator[str]:
        """Yield lines as the file grows, until the machine ends."""
        with (self.folder / "log").open(errors="replace") as file:
            if since is None:
                file.seek(0, os.SEEK_END)
            rest = ""
            while True:
                *lines, rest = (rest + file.read()).split("\n")
                yield from logs.told(lines, since=since, timestamps=timestamps)
                if not lines:
                    if self.state == "stopped":
                        return
                    time.sleep(POLL_SECONDS)

    def inspect(self) -> dict[str, Any]:
        """Return what machine.json says, and the processes."""
        members = processes.belonging(self.folder, [processes.main_process(self.folder)])
        return {
            "folder": str(self.folder),
            "pid": processes.main_process(self.folder).pid or None,
            "processes": sorted(process.pid for process in members),
            "isolation": self.facts.get("isolation", "none"),
            **{
                key: self.facts[key]
                for key in ("role", "home", "run", "tmp", "port", "argv", "sshd")
                if key in self.facts
            },
        }

    def usage(self) -> Usage:
        """Add up what /proc says of the machine's processes."""
        if self.state == "stopped":
            raise LabError(f"{self.name} is stopped", remedy=f"`lab start {self.short}`")
        members = processes.belonging(self.folder, [processes.main_process(self.folder)])
        return processes.usage(members)

    def copy_in(self, source: Path, target: str) -> None:
        """A copy on this machine's own disk; a relative *target* begins at the machine's home."""
        if not source.exists():
            raise LabNotFound(f"there is no {source} here")
        folder = self._place(target)
        if not folder.is_dir():
            raise LabNotFound(f"{self.name} has no folder {target}", remedy="make it, or name another")
        copy(source, folder)

    def copy_out(self, source: str, target: Path) -> None:
        """As `copy_in`."""
        if not target.is_dir():
            raise LabNotFound(f"there is no folder {target} here", remedy="make it, or name another")
        found = self._place(source)
        if not found.exists():
            raise LabNotFound(f"{self.name} has no {source}")
        copy(found, target)

    def _place(self, path: str) -> Path:
        """Return where the machine's *path* is on this machine: its /tmp may be a folder of its own."""
        home = self.folder / "home"
        found = home / path.removeprefix("~/")
        if self.facts.get("tmp") and found.is_relative_to("/tmp"):  # noqa: S108 -- the folder known by this name
            return Path(self.facts["tmp"]) / found.relative_to("/tmp")  # noqa: S108
        return found

    def extend_lease(self, until: float) -> None:
        """Write the file that the machine's init looks at."""
        files.write(self.folder / "lease", f"{until:.0f}\n")

    def pause(self) -> None:
        """SIGSTOP to all of the machine's processes."""
        processes.stop_all(self.folder)

    def unpause(self) -> None:
        """SIGCONT to all of the machine's processes."""
        processes.signal_all(self.folder, signal.SIGCONT)

    def resume(self) -> None:
        """Start the main process, or let a paused machine go on."""
        if not self.folder.exists():
            raise LabNotFound(f"{self.name} is gone", remedy="`lab up` makes it again")
        state = self.state
        if state == "paused":
            processes.signal_all(self.folder, signal.SIGCONT)
        elif state == "stopped":
            # What a command that was killed has started and not written down would keep the port.
            processes.end_all(self.folder, [self.folder], grace=0)
            self._furnish()
            main = processes.spawn(
                programs.with_current_names([*self.facts.get("init", []), *self.facts["argv"]]),
                env=self.facts["env"],
                cwd=self.folder / "home",
                log=self.folder / "log",
            )
            self.save(process=[main.pid, main.started])

    def _furnish(self) -> None:
        """Make the folders that the machine needs; raise LabNotFound if it is removed meanwhile: it must not come back."""
        try:
            for needed in filter(None, (self.facts["home"], self.facts.get("tmp"))):
                Path(needed).mkdir(exist_ok=True, mode=0o700)
        except FileNotFoundError:
            raise LabNotFound(f"{self.name} is gone", remedy="`lab up` makes it again") from None
        make_own(Path(self.facts["run"]))

    def stop(self) -> None:
        """SIGTERM to all of the machine's processes, SIGKILL after ten seconds."""
        processes.end_all(self.folder, [self.folder], grace=10)

    def kill(self) -> None:
        """SIGKILL to all of the machine's processes."""
        processes.end_all(self.folder, [self.folder], grace=0)

    def remove(self) -> None:
        """End the processes and delete the folder, then tell the lab."""
        # Nobody tells it of its nodes meanwhile: that would bring its folder back (`Lab.refresh`).
        name = self.folder.parents[1].name
        with locked(f"refresh-{name}", what=f"the lab {name}"):
            processes.end_all(self.folder, [self.folder], grace=2)
            shutil.rmtree(self.facts["run"], ignore_errors=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.announce()

    def end_cause(self) -> str:
        """Say no more: nobody has waited for the process."""
        return "its process ended"
