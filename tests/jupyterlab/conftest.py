"""JupyterLab in a real browser, with its own server, the lab's gateway and nodes; the way from server to gateway can sleep."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from lab import Gateway, Lab
from tests.integration.fixtures import OWN_LAB, engine, own
from tests.jupyterlab.notebook import JupyterLab
from tests.silencer import Silencer
from tests.until import PROCESS_SECONDS, block_until

__all__ = ["engine", "own"]

PERSISTENCE = (
    "--FileKernelSessionManager.enable_persistence=True",
    "--EnterpriseGatewayApp.availability_mode=standalone",
)
CHROMIUM = ("chromium", "google-chrome")
T = TypeVar("T")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that the fixture `own` reads."""
    config.addinivalue_line("markers", OWN_LAB)


@pytest.fixture(scope="module")
def gateway(own: Lab) -> Gateway:
    """The lab's gateway that these notebooks have for themselves: it is restarted, and finds its kernels again."""
    return own.add_gateway("notebooks", options=PERSISTENCE)


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


@pytest.fixture(scope="module")
def path(gateway: Gateway) -> Iterator[SlowPath]:
    """The way from JupyterLab's server to the gateway."""
    made = SlowPath(gateway)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(path: SlowPath, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab's server, as a person starts it on a laptop; yields its URL."""
    home = tmp_path_factory.mktemp("jupyterlab")
    notebooks = home / "notebooks"
    notebooks.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
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
        block_until("JupyterLab's server answers", lambda: answers(url, process, log), seconds=60)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(PROCESS_SECONDS)
        except subprocess.TimeoutExpired:  # it waits for a gateway that a test has left silent
            process.kill()
            process.wait(PROCESS_SECONDS)
        print(log.read_text()[-20_000:])  # pytest shows it with a failure


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Return True if the server answers; fail at once if it has ended."""
    assert process.poll() is None, log.read_text()[-2000:]
    try:
        return httpx.get(f"{url}/api", trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, or the Chrome that is there: Playwright's own would have to be fetched."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        if os.environ.get("LAB_REQUIRE_DOCKER"):
            pytest.fail("Chromium is missing. Remedy: apt-get install chromium")
        pytest.skip("Chromium is missing")
    with sync_playwright() as playwright:
        # No sandbox: it takes rights that root in a container does not have.
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        launched = playwright.chromium.launch(executable_path=executable, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def open_tab(browser: Browser, server: str) -> Iterator[Callable[[str], JupyterLab]]:
    """Opens tabs of JupyterLab, each with a workspace of its own; what has been loaded once is not loaded again."""
    context = browser.new_context()
    context.set_default_timeout(60_000)

    def opened(workspace: str) -> JupyterLab:
        page: Page = context.new_page()
        page.on("dialog", lambda dialog: dialog.accept())  # "leave this page?"
        return JupyterLab(page, server, workspace)

    yield opened
    context.close()


@pytest.fixture(scope="module")
def tab(open_tab: Callable[[str], JupyterLab]) -> JupyterLab:
    """One tab that the tests of a file share."""
    return open_tab("first")


@pytest.fixture
def jupyterlab(tab: JupyterLab) -> Iterator[JupyterLab]:
    """JupyterLab without notebooks and kernels."""
    yield tab
    tab.clear()
