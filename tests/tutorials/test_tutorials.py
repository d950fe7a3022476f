"""The tutorials, word by word as a reader types them: one shell for each, in a home of its own, on a lab of containers."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fixtures import CACHE, STATE, down, engine
from tests.snippets import Snippet, matches, printed, script, snippets

__all__ = ["engine"]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
"""Five minutes, as the pages promise; images are there already."""
LAB = "practice"


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("name", ["jupyterlab", "enterprise-gateway", "ssh-hosts"])
def test_a_tutorial_works_as_it_is_written(name: str, tmp_path: Path, engine: Any) -> None:
    """Each command succeeds, and prints what the page says; nothing of the lab is left."""
    blocks = list(snippets(ROOT / "docs" / f"tutorial-{name}.md"))
    assert any("run" in block.words for block in blocks)

    output = run(blocks, tmp_path)

    for block, expected in itertools.pairwise(blocks):
        if "output" in expected.words:
            assert "run" in block.words, f"{expected}: the block before is not run"
            assert matches(expected.text, printed(output, block)), f"{expected}: {printed(output, block)}"


def run(blocks: list[Snippet], home: Path) -> str:
    """Run *blocks* in a shell in the checkout; return what they printed. The lab is removed in any case."""
    (home / ".jupyter").mkdir()
    # Tests may run as root, whom a Jupyter server refuses; a reader would not.
    (home / ".jupyter" / "jupyter_server_config.py").write_text("c.ServerApp.allow_root = True\n")
    ours = ("EG_", "LAB_", "KERNEL_", "JUPYTER_", "VIRTUAL_ENV", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    shell = subprocess.Popen(
        ["bash", "-c", script(blocks)],
        cwd=ROOT,
        env={**kept, "HOME": str(home), "XDG_CACHE_HOME": CACHE, "XDG_STATE_HOME": STATE, "LAB_UP_LEASE": "10m"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=SECONDS)
    finally:
        # What it has left in the background goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        down(LAB)
    assert shell.returncode == 0, f"{output[-4000:]}\n{logs(home)}"
    return output


def logs(home: Path) -> str:
    """Return the last lines of what a tutorial's programs logged."""
    return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in (home / "practice").glob("*.log"))


def call(*command: str, seconds: float = 240, folder: Path = ROOT, **environment: str) -> str:
    """Run *command* in the checkout, or in another *folder*; return what it printed, and fail with that if it failed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.timeout(300)
def test_the_examples_suite_passes(engine: Any) -> None:
    """examples/test_deploy.py runs as its first line says."""
    assert "3 passed" in call("uv", "run", "pytest", "-q", "-p", "no:cacheprovider", "examples/test_deploy.py")


@pytest.mark.timeout(300)
def test_the_example_of_two_groups_can_be_made(engine: Any) -> None:
    """`lab up` makes its hosts and gateways, and ends when a kernel has answered from each host."""
    try:
        call("uv", "run", "lab", "up", "examples/two-groups.toml", "--lease", "10m", LAB_NAME="two-groups")
    finally:
        down("two-groups")


@pytest.mark.timeout(300)
def test_the_example_of_a_fault_plan_comes_to_its_end(engine: Any) -> None:
    """After the plan each host answers by SSH again."""
    try:
        call("uv", "run", "lab", "up", "examples/faults.toml", "--lease", "10m", LAB_NAME="faults")
        call("uv", "run", "lab", "fault", "run", "examples/faults.toml", LAB_NAME="faults")
        for node in ("node1", "node2", "node3"):
            assert node in call("uv", "run", "lab", "ssh", node, "--", "hostname", LAB_NAME="faults")
    finally:
        down("faults")


HUB = """
import sys
from traitlets.config.loader import PyFileConfigLoader
from jupyterhub.app import JupyterHub
from jupyterhub.spawner import LocalProcessSpawner, Spawner
config = PyFileConfigLoader(sys.argv[1]).load_config()
classes = {each.__name__: each for each in (JupyterHub, Spawner, LocalProcessSpawner)}
for section, settings in config.items():
    print(section, sorted(set(settings) - set(classes[section].class_trait_names(config=True))))
hub = JupyterHub(config=config)
assert hub.spawner_class is LocalProcessSpawner
spawner = hub.spawner_class(config=config)
assert spawner.term_timeout == 60 and callable(spawner.environment["EG_REMOTE_HOSTS"])
"""
"""Prints what JupyterHub does not know of each section of a configuration."""


@pytest.mark.timeout(300)
def test_jupyterhub_takes_the_examples_configuration(tmp_path: Path) -> None:
    """JupyterHub and its spawner know each name that the file sets, and take its value."""
    python = ("uvx", "--quiet", "--from", "jupyterhub>=5", "python", "-c", HUB)

    output = call(*python, str(ROOT / "examples" / "jupyterhub_config.py"), folder=tmp_path)  # it writes a database

    assert output.splitlines()[-3:] == ["JupyterHub []", "Spawner []", "LocalProcessSpawner []"]
