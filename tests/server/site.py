"""Hosts for clients of every kind: SSH servers on a loop and a thread of their own, and the folders of a Jupyter user."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from eg_distributed.kernelspecs.guard import guarded
from tests.unit.ssh_server import Sshd
from tests.until import PROCESS_SECONDS, block_until

T = TypeVar("T")
ARGV = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
NAMES = ("node1", "node2", "node3")
KERNEL = "remote"
"""The kernelspec that may use all hosts."""


class Site:
    """Three hosts below *folder*, and a home with kernelspecs for them; `close` ends all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.work = folder / "work"
        for path in (self.home / "data" / "kernels", self.home / "config", self.work):
            path.mkdir(parents=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.hosts = {name: Sshd(name, folder) for name in NAMES}
        for host in self.hosts.values():
            host.env = {"JUPYTER_PLATFORM_DIRS": "1"}
            self.do(host.open())
        (self.home / "ssh_config").write_text("".join(host.config() for host in self.hosts.values()))
        self.env = {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home),
            "JUPYTER_CONFIG_DIR": str(self.home / "config"),
            "JUPYTER_CONFIG_PATH": str(self.home / "config"),  # counts for more than what is installed with Python
            "JUPYTER_DATA_DIR": str(self.home / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.home / "runtime"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "EG_DISTRIBUTED_SSH_CONFIG": str(self.home / "ssh_config"),
            "EG_REMOTE_HOSTS": ",".join(NAMES),
        }
        self.kernelspec(KERNEL)
        # Voila is tried by its own command: as a part of each server its import takes three seconds.
        extensions = self.home / "config" / "jupyter_server_config.d"
        extensions.mkdir()
        off = {"ServerApp": {"jpserver_extensions": {"voila.server_extension": False}}}
        (extensions / "voila.json").write_text(json.dumps(off))

    def kernelspec(self, name: str, argv: Sequence[str] = ARGV, **more: Any) -> str:
        """Install a kernelspec; *more* may have `config` of its stanzas, and other keys. Returns *name*."""
        config = more.pop("config", {})
        spec = {
            "argv": guarded(argv),
            "display_name": f"Python ({name})",
            "language": "python",
            "metadata": {
                "debugger": True,
                "kernel_provisioner": {"provisioner_name": "eg-distributed", "config": config},
                "process_proxy": {"class_name": "eg_distributed.DistributedProcessProxy", "config": config},
            },
            **more,
        }
        folder = self.home / "data" / "kernels" / name
        folder.mkdir(exist_ok=True)
        (folder / "kernel.json").write_text(json.dumps(spec))
        return name

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* on the hosts' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PROCESS_SECONDS)

    def freeze(self, name: str) -> None:
        """Have a host hang: its connections stay open and pass nothing on."""
        self._loop.call_soon_threadsafe(self.hosts[name].wire.freeze)

    def thaw(self, name: str) -> None:
        """Have it go on, with what it was sent meanwhile."""
        self._loop.call_soon_threadsafe(self.hosts[name].wire.thaw)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a client's process."""
        ours = ("EG_", "KERNEL_", "JUPYTER_", "JPY_", "XDG_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {**kept, **self.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}

    # -- what runs -------------------------------------------------------------------------------------------------

    def kernels(self) -> list[psutil.Process]:
        """Return the processes of kernels on the hosts."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if any(word.startswith(f"{self.folder}/node") and "/k/" in word for word in words):
                found.append(process)
        return found

    def await_none(self, seconds: float = PROCESS_SECONDS) -> None:
        """Wait until no kernel runs, and nothing of one is left in the agents' folders, nor of sockets here."""
        block_until("no kernel runs", lambda: not self.kernels(), seconds)
        block_until("no kernel's folder is left", lambda: not self.left(), seconds)

    def left(self) -> list[Path]:
        """Return what kernels have left on the hosts."""
        return [path for name in NAMES for path in (self.folder / name).glob("eg-distributed/*/k/*")]

    def close(self) -> None:
        """End hosts, agents and kernels."""
        for host in self.hosts.values():
            host.wire.thaw()
            self.do(host.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PROCESS_SECONDS)
        for process in self.kernels():
            process.send_signal(signal.SIGKILL)
