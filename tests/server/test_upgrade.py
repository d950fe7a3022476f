"""An upgrade from the release before, with kernels running: they are there after it, and what they had in memory.

The release before is the newest tag `v*`, or what UPGRADE_FROM names (a commit, a tag). Without either there is none to upgrade
from. Before a release: `nox -s server -- tests/server/test_upgrade.py`.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .served import Served
from .site import Site
from .test_adoption import begun, opened, root

__all__ = ["root"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]


def git(*arguments: str) -> bytes:
    """Return what git prints; empty if it fails."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=60).stdout


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the release before, with the jupyter_server that this one has."""
    reference = os.environ.get("UPGRADE_FROM") or git("describe", "--tags", "--abbrev=0", "--match=v*").decode().strip()
    if not reference:
        pytest.skip("there is no release before this one; UPGRADE_FROM=COMMIT names another one")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", reference))) as archive:
        archive.extractall(folder / "source", filter="data")
    installed = subprocess.run(["uv", "pip", "freeze", "--python", sys.executable], capture_output=True, timeout=60)
    names = ("jupyter", "ipykernel", "pyzmq", "tornado", "traitlets")
    pins = [line for line in installed.stdout.decode().splitlines() if line.startswith(names) and "==" in line]
    (folder / "constraints.txt").write_text("\n".join(pins) + "\n")
    python = folder / "environment" / "bin" / "python"
    for arguments in (
        ("build", "--quiet", "--wheel", f"--out-dir={folder}", str(folder / "source")),
        ("venv", "--quiet", f"--python={sys.executable}", str(python.parents[1])),
        ("pip", "install", "--quiet", f"--python={python}", f"--constraints={folder / 'constraints.txt'}", "ipykernel"),
    ):
        wheels = [f"{wheel}[server]" for wheel in folder.glob("eg_distributed-*.whl") if arguments[0] == "pip"]
        # Not in the checkout: the pins of its lock would count.
        subprocess.run(["uv", *arguments, *wheels], cwd=folder, check=True, timeout=300)
    return python


@pytest.fixture
def old(site: Site, root: Path, before: Path) -> Iterator[Served]:
    """A server of the release before, in the test's folder of notebooks."""
    served = Served(site, root, python=str(before))
    yield served
    served.end_with_kernels()


@pytest.fixture
def new(site: Site, root: Path) -> Iterator[list[Served]]:
    """Where a test keeps the servers of this release that it starts; they end with their kernels."""
    made: list[Served] = []
    yield made
    for served in made:
        served.end_with_kernels()


def test_kernels_are_there_after_an_upgrade(site: Site, root: Path, old: Served, new: list[Served]) -> None:
    """A server of this release finds the kernels that one of the release before has left, and has all that it needs of them."""
    model = begun(old)
    old.end(signal.SIGKILL)

    new.append(Served(site, root))

    (session,) = new[0].rest.get("/api/sessions").json()
    assert (session["path"], session["kernel"]["id"]) == (model["path"], model["kernel"]["id"])
    with opened(new[0], session) as notebook:
        assert notebook.run("print(x)") == "42"
        assert notebook.act("restart").status_code == 200
        assert "NameError" in notebook.run("print(x)")


def test_a_new_kernel_starts_beside_an_old_one(site: Site, root: Path, old: Served, new: list[Served]) -> None:
    """On hosts whose agents are those of the release before, a server of this one starts kernels, while the old one goes on."""
    model = begun(old)
    other = root.parent / f"{root.name}-new"
    other.mkdir()
    new.append(Served(site, other))

    begun(new[0], "other.ipynb")

    with opened(old, model) as notebook:
        assert notebook.run("print(x)") == "42"
