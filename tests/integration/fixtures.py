"""Fixtures of the lab's own tests: a container engine, and a lab that one file has for itself.

conftest.py imports them, so a test asks for them by name alone. Tests of the product use the shared lab of the pytest plugin.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import Lab
from lab.drivers.docker.engine import connect
from lab.errors import EnvironmentUnfit
from lab.state import cache_root, state_root

OWN_LAB = "own_lab(name, **options): the lab of a file's fixtures `own` and `local`, with the options of `Lab.up`"
"""The marker's line for pytest, which refuses markers that it doesn't know."""
STATE, CACHE = str(state_root().parent), str(cache_root().parent)
"""Asked now: pytester gives every test, and what it runs, a home of its own; labs are where they always are."""
Suite = Callable[..., pytest.RunResult]


@pytest.fixture(scope="session")
def engine() -> Any:
    """The engine's client. Without an engine its tests are skipped, or fail where LAB_REQUIRE_DOCKER is set, as in CI."""
    try:
        return connect()
    except EnvironmentUnfit as error:
        if os.environ.get("LAB_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest, engine: Any) -> Iterator[Lab]:
    """A lab of containers that only this file uses, as its marker `own_lab` says; removed even when making it fails."""
    name, options = _wanted(request)
    try:
        yield Lab.up(name, driver="docker", **options)
    finally:
        down(name)


@pytest.fixture(scope="module")
def local(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of processes that only this file uses, as its marker `own_lab` says; skips where this machine can't have one."""
    name, options = _wanted(request)
    try:
        try:
            lab = Lab.up(name, driver="local", **options)
        except EnvironmentUnfit as error:
            pytest.skip(str(error))
        yield lab
    finally:
        down(name)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Suite:
    """Run a suite of one file, in a pytest process of its own: `suite(code, "-n", "2")`."""
    monkeypatch.setenv("XDG_STATE_HOME", STATE)
    monkeypatch.setenv("XDG_CACHE_HOME", CACHE)
    for name in ("LAB_NAME", "LAB_NODES", "LAB_DRIVER"):
        monkeypatch.delenv(name, raising=False)

    def run(code: str, *options: str, leak_seconds: float = 10) -> pytest.RunResult:
        settings = f"lab_leak_seconds = {leak_seconds:g}\nasyncio_default_fixture_loop_scope = function\n"
        pytester.makeini(f"[pytest]\n{settings}")
        pytester.makepyfile(textwrap.dedent(code))
        if not any(option.startswith("--lab") for option in options):
            options = (*options, "--lab", request.getfixturevalue("own").name)
        return pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider", *options, timeout=300)

    return run


def _wanted(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of the requesting file's marker."""
    marker = request.node.get_closest_marker("own_lab")
    assert marker is not None, f"{request.node.name} asks for a lab of its own, but has no marker own_lab"
    (name,) = marker.args
    return name, dict(marker.kwargs)


def down(name: str) -> None:
    """Remove the lab *name*, whole or not, as a user does."""
    argv = [sys.executable, "-c", "from lab.cli import main; main()", "down", "--name", name]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
