"""One site for all tests of clients, and a clean end of what each of them has started in this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from eg_distributed import kernel
from eg_distributed.jupyter_server import process

from .site import Site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Three hosts, a Jupyter user's folders, and this process's environment as that user's."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="egs"))
    before = dict(os.environ)
    made = Site(folder)
    for name in list(os.environ):
        if name.startswith(("EG_", "KERNEL_", "JPY_")):
            del os.environ[name]
    os.environ.update(made.env)
    yield made
    end_clusters()
    made.close()
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _at_work(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test is in the user's folder, spares each start the second of a kernel that is not known, and leaves no kernel."""
    monkeypatch.chdir(site.work)
    monkeypatch.setattr(kernel, "PROVING", 0.0)
    yield
    site.await_none()


def end_clusters() -> None:
    """End this process's clusters, as its own end does; the next kernel makes another."""
    for cluster in process._clusters.made.values():
        cluster.close(end_untaken=True)
    process._clusters.made.clear()


@pytest.fixture
def anew(site: Site) -> Iterator[None]:
    """This process's clusters are made anew for the test, and after it: it changes the settings."""
    end_clusters()
    yield
    end_clusters()
