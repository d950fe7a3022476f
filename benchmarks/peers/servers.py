"""The server of one contender: a process with a home of its own, so that what it leaves behind is known by that."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil

from benchmarks.peers.contenders import ENTERPRISE_GATEWAY, Contender, alias, local_spec
from benchmarks.peers.memory import pss
from lab.ports import free_port

if TYPE_CHECKING:
    from typing_extensions import Self

START_SECONDS, END_SECONDS = 60.0, 20.0
ROOT = "/tmp"  # noqa: S108
"""The servers' folder, which nodes have as well: a kernel that has to look for another one is not forked."""
SPEC, LOCAL_SPEC = "bench", "beside"
"""What its kernelspecs are called, with a number behind; and that of a local kernel, which every server has as well."""
_KEPT_OF_ENVIRONMENT = ("PATH", "LANG", "TZ", "TMPDIR")
_LAST_WORDS = 2000


@dataclass(frozen=True)
class Host:
    """A machine that kernels run on: by which *address* it is reached, its host key, and who logs in."""

    address: str
    host_key: str
    user: str = "lab"


class Server:
    """The server of *contender* for *hosts*, started when the block is entered and ended when it is left.

    *here* is the address at which nodes reach this machine. A round trip to them takes *round_trip* seconds.
    """

    def __init__(
        self, contender: Contender, hosts: Sequence[Host], identity: Path, here: str, round_trip: float = 0.0
    ) -> None:
        self.contender = contender
        self._more = contender.far_env(round_trip)
        self._hosts, self._identity, self._here = hosts, identity, here
        self.home = Path(tempfile.mkdtemp(prefix="egbench-"))  # short: ssh's sockets are below it
        self.log = self.home / "server.log"
        self.url = ""
        self.specs: list[str] = []
        """The names of its kernelspecs."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:  # an interrupt included: nothing is to be left
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        for process in self.processes():  # kernels that it left, and ssh, which makes itself independent
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait(END_SECONDS)
        shutil.rmtree(self.home, ignore_errors=True)

    def _start(self) -> None:
        self._write_ssh()
        found = {
            f"{SPEC}{n}": spec for n, spec in enumerate(self.contender.specs([host.address for host in self._hosts]))
        }
        self.specs = list(found)
        for name, spec in {**found, LOCAL_SPEC: local_spec()}.items():
            folder = self.home / "data" / "kernels" / name
            folder.mkdir(parents=True)
            (folder / "kernel.json").write_text(json.dumps(spec).replace("{home}", str(self.home)))
        (self.home / "runtime").mkdir(mode=0o700)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        python = self.contender.environment() / "bin" / "python"
        argv = [str(python), *self.contender.program, *self._options(port)]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=self._environment(python),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _options(self, port: int) -> list[str]:
        if self.contender.program == ENTERPRISE_GATEWAY:
            app = "EnterpriseGatewayApp"
            given = {"ip": "127.0.0.1", "port": port, "port_retries": 0}
        else:
            app = "ServerApp"
            given = {"ip": "127.0.0.1", "port": port, "port_retries": 0, "allow_root": True, "open_browser": False}
            given |= {"disable_check_xsrf": True, "root_dir": ROOT}
        options = [f"--{app}.{name}={value}" for name, value in given.items()]
        return options if app == "EnterpriseGatewayApp" else [*options, "--IdentityProvider.token="]

    def _environment(self, python: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in _KEPT_OF_ENVIRONMENT}
        addresses = ",".join(host.address for host in self._hosts)
        user = self._hosts[0].user if self._hosts else ""
        each = {"REMOTE_HOSTS": addresses, "REMOTE_USER": user, "RESPONSE_IP": self._here}
        return {
            **kept,
            "PATH": f"{python.parent}:{kept.get('PATH', os.defpath)}",
            "HOME": str(self.home),
            "JUPYTER_DATA_DIR": str(self.home / "data"),
            "JUPYTER_CONFIG_DIR": str(self.home / "config"),
            "JUPYTER_RUNTIME_DIR": str(self.home / "runtime"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "KERNEL_USERNAME": "bench",  # EG's and gateway_provisioners' kernels are not root's
            "EG_KERNEL_LAUNCH_TIMEOUT": "60",
            "GP_LAUNCH_TIMEOUT": "60",
            **(
                {f"{prefix}_{name}": value for name, value in each.items() for prefix in ("EG", "GP")}
                if addresses
                else {}
            ),
            **self._more,
        }

    def _write_ssh(self) -> None:
        folder = self.home / ".ssh"
        folder.mkdir(mode=0o700)
        key = folder / "id_ed25519"
        key.write_bytes(self._identity.read_bytes())
        key.chmod(0o600)
        known = folder / "known_hosts"
        known.write_text("".join(f"{host.address} {host.host_key}\n" for host in self._hosts))
        lines = []
        for host in self._hosts:
            common = [
                f"  HostName {host.address}",
                f"  User {host.user}",
                f"  IdentityFile {key}",
                "  IdentitiesOnly yes",
                f"  UserKnownHostsFile {known}",
                "  BatchMode yes",
            ]
            # What sshpyk's README recommends.
            shared = [
                "  ControlMaster auto",
                f"  ControlPath {folder}/%h",
                "  ControlPersist 10m",
                "  ServerAliveInterval 5",
                "  ServerAliveCountMax 120000",
                "  ConnectTimeout 5",
            ]
            lines += [f"Host {host.address}", *common, f"Host {alias(host.address)}", *common, *shared]
        (folder / "config").write_text("\n".join(lines) + "\n")

    def terminate(self) -> None:
        """Tell it to end, and do not wait for it."""
        if self._process is not None:
            self._process.terminate()

    def await_answer(self) -> None:
        """Wait until it answers; raise RuntimeError with its last words if it does not."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/api", trust_env=False, timeout=5).is_success:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server of {self.contender.label} does not answer: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-_LAST_WORDS:] if self.log.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Return all that it has started on this machine, whoever their parent is now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.home):
                    found.append(process)
        return found

    def memory(self) -> tuple[float, float]:
        """Return the MiB of the server with its helpers, and of kernels on this machine."""
        kernels = {each.pid for each in self.processes() if "ipykernel_launcher" in " ".join(_command(each))}
        rest = {each.pid for each in self.processes()} - kernels
        return pss(rest), pss(kernels)


def _command(process: psutil.Process) -> Iterator[str]:
    with contextlib.suppress(psutil.Error):
        yield from process.cmdline()
