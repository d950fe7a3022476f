"""How people stop a server: each way ends it, with its kernels, and leaves nothing; nothing hangs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.until import PROCESS_SECONDS, block_until

from .served import Served
from .site import KERNEL, Site

LOCAL = "python3"


@pytest.fixture
def start(site: Site, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers that have a kernel on a host and one here."""
    root = site.work / tmp_path.name
    root.mkdir()
    made: list[Served] = []

    for path in remaining(site):  # of servers that other tests have killed
        path.unlink()

    def start(stdin: int = subprocess.DEVNULL) -> Served:
        made.append(Served(site, root, None, stdin))
        for name in (KERNEL, LOCAL):
            assert made[-1].session(f"{name}.ipynb", name).status_code == 201
        assert remaining(site)
        return made[-1]

    yield start
    for served in made:
        served.end_with_kernels()


def remaining(site: Site) -> list[Path]:
    """Return the files of kernels on hosts in the user's runtime folder."""
    files = (site.home / "runtime").glob("kernel-*.json")
    ours = [path for path in files if "/eg-distributed-" in path.read_text()]
    return [*ours, *(site.home / "runtime").glob("eg-distributed/*.d/*-*.json")]


def has_ended(served: Served, site: Site) -> None:
    """The server has ended by itself, and nothing is left of its kernels."""
    assert served.process.wait(PROCESS_SECONDS) == 0, served.log.read_text()
    site.await_none()
    assert not remaining(site)


def test_jupyter_server_stop(site: Site, start: Callable[..., Served]) -> None:
    """`jupyter server stop PORT`."""
    served = start()
    command = [sys.executable, "-m", "jupyter_server", "stop", str(served.port)]
    stopped = subprocess.run(command, env=site.environment(), capture_output=True, text=True, timeout=PROCESS_SECONDS)
    assert stopped.returncode == 0, stopped.stderr
    has_ended(served, site)


def test_two_interrupts(site: Site, start: Callable[..., Served]) -> None:
    """Ctrl-C twice at a terminal: the first one asks, the second one stops."""
    ours, theirs = pty.openpty()
    try:
        served = start(stdin=theirs)
        served.process.send_signal(signal.SIGINT)
        block_until("it asks", lambda: "interrupted" in served.log.read_text())
        served.process.send_signal(signal.SIGINT)
        block_until("it stops", lambda: "received signal 2, stopping" in served.log.read_text())
        has_ended(served, site)
    finally:
        os.close(ours)
        os.close(theirs)


def test_interrupts_of_a_server_without_a_terminal(site: Site, start: Callable[..., Served]) -> None:
    """As of a service, or in the background: the first one stops it, and one that comes meanwhile leaves nothing."""
    served = start()
    served.process.send_signal(signal.SIGINT)
    block_until("it stops", lambda: "Shutting down" in served.log.read_text() or served.process.poll() is not None)
    served.process.send_signal(signal.SIGINT)
    has_ended(served, site)


def test_a_shutdown_by_rest(site: Site, start: Callable[..., Served]) -> None:
    """ "Shut Down" in JupyterLab's menu."""
    served = start()
    assert served.rest.post("/api/shutdown").status_code == 200
    has_ended(served, site)


@pytest.mark.long
def test_thirty_stops(site: Site, start: Callable[..., Served]) -> None:
    """SIGTERM, thirty times in a row: each time it ends."""
    for _ in range(30):
        served = start()
        served.process.send_signal(signal.SIGTERM)
        has_ended(served, site)
