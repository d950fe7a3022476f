"""The two worlds in which notebooks are tried: through an Enterprise Gateway, and on JupyterLab's own server alone.

In both, the way to what starts the kernels leads through a `SlowPath`, which can fall silent and stays where it is when that is
started again: from JupyterLab's server to the gateway in the one, from the browser to JupyterLab's server in the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from lab import Gateway, Lab
from lab.ports import free_port
from tests.silencer import Silencer
from tests.until import PROCESS_SECONDS, block_until

PERSISTENCE = (
    "--FileKernelSessionManager.enable_persistence=True",
    "--EnterpriseGatewayApp.availability_mode=standalone",
)
IN_BROWSER = ("--LabApp.expose_app_in_browser=True",)
"""So that tests can call JupyterLab's commands."""
T = TypeVar("T")


class SlowPath:
    """A `Silencer` on a loop in a thread of its own: the browser's driver keeps the test's own thread."""

    def __init__(self, gateway: Gateway) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._silencer = self._do(self._made(*address(gateway)))
        self.url = f"http://127.0.0.1:{self._silencer.port}"

    async def _made(self, host: str, port: int) -> Silencer:
        return await Silencer(host, port).__aenter__()

    def follow(self, gateway: Gateway) -> None:
        """Lead to *gateway* where it is now: an engine gives it another port each time that it starts."""
        self._silencer.target = address(gateway)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PROCESS_SECONDS)

    def sleep(self) -> None:
        """Fall silent, without a word to either side."""
        self._do(self._silencer.sleep())

    def wake(self) -> None:
        """Be there again; connections of before are not."""
        self._do(self._silencer.wake())

    def close(self) -> None:
        """End all connections, and the thread."""
        self._do(self._silencer.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PROCESS_SECONDS)
        self._loop.close()


def address(gateway: Gateway) -> tuple[str, int]:
    """Return the host and the port at which *gateway* answers."""
    parts = urlsplit(gateway.url)
    return parts.hostname or "", parts.port or 80


@dataclass(frozen=True)
class World:
    """Where a browser finds JupyterLab, and which machine of the lab starts its kernels."""

    name: str
    url: str
    """JupyterLab's own, without a slash at its end."""
    token: str
    """Of JupyterLab's server; empty where it asks for none."""
    gateway: Gateway
    path: SlowPath
    started: str
    """The kernelspec of the kernels that tests start."""

    def ask(self, method: str, path: str) -> httpx.Response:
        """Ask JupyterLab's server; raise httpx.HTTPError if it does not answer well."""
        headers = {"Authorization": f"token {self.token}"} if self.token else {}
        asked = httpx.request(method, f"{self.url}{path}", headers=headers, trust_env=False, timeout=60)
        return asked.raise_for_status()


@contextlib.contextmanager
def through_gateway(lab: Lab, folder: Path) -> Iterator[World]:
    """JupyterLab as a person starts it on a laptop, its kernels by an Enterprise Gateway of *lab*, which keeps its sessions."""
    gateway = lab.add_gateway("notebooks", options=PERSISTENCE)
    path = SlowPath(gateway)
    try:
        with _own_server(path, folder) as url:
            yield World("gateway", url, "", gateway, path, "python_distributed")
    finally:
        path.close()


@contextlib.contextmanager
def direct(lab: Lab, _: Path) -> Iterator[World]:
    """The JupyterLab of *lab*, which starts kernels on its nodes itself."""
    gateway = lab.add_gateway("jupyterlab", program="jupyterlab", options=IN_BROWSER)
    path = SlowPath(gateway)
    try:
        yield World("direct", path.url, gateway.token, gateway, path, "python_distributed")
    finally:
        print(gateway.logs(200))  # pytest shows it with a failure
        path.close()


WORLDS = {"gateway": through_gateway, "direct": direct}


@contextlib.contextmanager
def _own_server(path: SlowPath, home: Path) -> Iterator[str]:
    notebooks = home / "notebooks"
    notebooks.mkdir()
    port = free_port()
    options = {
        "ServerApp.root_dir": str(notebooks),
        "ServerApp.allow_root": "True",
        "ServerApp.disable_check_xsrf": "True",
        "IdentityProvider.token": "",
        "LabApp.expose_app_in_browser": "True",
        "LabApp.news_url": "None",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    argv = ["-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", f"--gateway-url={path.url}"]
    folders = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    log = home / "server.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, *argv, *(f"--{name}={value}" for name, value in options.items())],
            env={**os.environ, **folders, "KERNEL_USERNAME": "tester"},  # the gateway starts none for root
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            cwd=home,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        block_until("JupyterLab's server answers", lambda: _answers(url, process, log), seconds=60)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(PROCESS_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for a gateway that a test has left silent
            process.kill()
            process.wait(PROCESS_SECONDS)
        print(log.read_text()[-20_000:])  # pytest shows it with a failure


def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Return True if the server answers; fail at once if it has ended."""
    assert process.poll() is None, log.read_text()[-2000:]
    try:
        return httpx.get(f"{url}/api", trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False
