#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox"]
# ///
"""The project's checks: `nox` runs them all, `nox -l` lists them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "types", "unit", "integration"]

ROOT = Path(__file__).parent
LOCK = ROOT / "uv.lock"
LAB_SUITES = (
    "test_commands.py",
    "test_fault_*.py",
    "test_interrupted*.py",
    "test_lab_spark_local.py",
    "test_lab_topology.py",
    "test_plugin*.py",
)
"""What `nox -s lab` runs and `nox -s integration` does not: the lab's own promises, which take longer than the product's."""
SPARK_SUITES = ("test_lab_spark.py", "test_spark_*.py")
"""What `nox -s spark` runs and `nox -s integration` does not: they share a lab of their own, with a Spark master and YARN."""
PRODUCT = (
    "tests/integration",
    *(f"--ignore-glob=tests/integration/{suite}" for suite in (*LAB_SUITES, *SPARK_SUITES)),
    "--numprocesses=2",
)
"""The product's integration tests, by two workers on one lab."""
CODE = ["eg_distributed", "lab", "tests", "benchmarks", "noxfile.py"]


def install(session: nox.Session) -> None:
    """Install the locked development environment, the project and the lab into the session's own environment."""
    session.run_install(
        "uv",
        "sync",
        "--quiet",
        "--group=dev",
        f"--python={session.virtualenv.location}",
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, the options table and the lock file."""
    install(session)
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("python", "-m", "eg_distributed.settings", "--check", "docs/options.md")
    committed = str(session.run("git", "show", "HEAD:uv.lock", external=True, silent=True, log=False))
    if committed != shareable(committed):
        session.error("the committed uv.lock names addresses of an index: run `nox -s lock` and commit the result")
    if strange := pins(LOCK.read_text("utf-8")) - pins(committed):
        session.error(
            f"{len(strange)} pins of uv.lock are not in the committed one: run `nox -s lock` and commit the result"
        )


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    install(session)
    session.run("mypy")


@nox.session
def unit(session: nox.Session) -> None:
    """Run the unit tests: no engine, no root, nothing but this machine."""
    install(session)
    session.run("pytest", "tests/unit", *session.posargs)


@nox.session
def integration(session: nox.Session) -> None:
    """Run the integration tests on a lab of containers; needs an engine (LAB_REQUIRE_DOCKER=1 makes its absence a failure).

    Two workers share the lab. What stands behind `--` comes last, and so decides: `-- -n 0`, `-- --lab mine --lab-keep always`.
    """
    install(session)
    session.run("pytest", *PRODUCT, "--lab-driver=docker", *session.posargs)


@nox.session(default=False)
def integration_local(session: nox.Session) -> None:
    """Run the same tests on a lab of processes: no engine, no root; what only containers can do is skipped with its reason."""
    install(session)
    session.run("pytest", *PRODUCT, "--lab-driver=local", *session.posargs)


@nox.session(default=False)
def lab(session: nox.Session) -> None:
    """Run the lab's own long suites: every verb, every fault, topologies, and the pytest plugin; about ten minutes."""
    install(session)
    suites = sorted(str(path) for suite in LAB_SUITES for path in Path("tests/integration").glob(suite))
    session.run("pytest", *(session.posargs or suites))


@nox.session(default=False)
def spark(session: nox.Session) -> None:
    """Run the tests of Spark kernels and of the lab's clusters, on one lab of two nodes; needs an engine and 3 GB of memory.

    Not in the default sessions, because of the time: on two cores those took 11 minutes and this one 19, besides its first build
    of images, which together is the half hour that a plain `nox` may take. `.ci/run` runs both.
    """
    install(session)
    suites = sorted(str(path) for suite in SPARK_SUITES for path in Path("tests/integration").glob(suite))
    session.run("pytest", *(session.posargs or suites))


@nox.session(default=False)
@nox.parametrize("what", [nox.param("side_by_side", id="plain"), nox.param("spark", id="spark")])
def bench(session: nox.Session, what: str) -> None:
    """Measure us beside Enterprise Gateway's own proxy, each in one run on one lab; prints tables and keeps them as JSON.

    Plain kernels, then Spark's; `nox -s "bench(spark)"` is the latter alone. `-- --docs docs` renews the pages of figures.
    """
    install(session)
    session.run("python", "-m", f"benchmarks.{what}", *session.posargs)


@nox.session(default=False)
def options(session: nox.Session) -> None:
    """Write docs/options.md anew, from the traits."""
    install(session)
    session.run("python", "-m", "eg_distributed.settings", "--write", "docs/options.md")


@nox.session(default=False, venv_backend="none")
def lock(session: nox.Session) -> None:
    """Resolve anew (`-- --upgrade` for newer versions) and leave a lock file that may be committed."""
    session.run("uv", "lock", *session.posargs, external=True)
    LOCK.write_text(shareable(LOCK.read_text("utf-8")), "utf-8")
    session.log("uv.lock now holds versions and hashes without addresses; the next `uv run` puts its own index's in")


def pins(text: str) -> set[str]:
    """Return the hashes in a lock file's *text*."""
    return set(re.findall(r"sha256:[0-9a-f]{64}", text))


def shareable(text: str) -> str:
    """Return a lock file's *text* without the addresses of the index that it was made with.

    Versions and hashes stay. Whoever uses it may reach another index (a mirror, a proxy), so the committed lock names none;
    since the project's own requirements are left out as well, uv sees that it has to complete the file, keeps the versions,
    and puts in the addresses that it finds.
    """
    text = re.sub(r'registry = "https?://[^"]*"', 'registry = "index"', text)
    text = re.sub(r'url = "https?://[^"]*/([^/"]+)"', r'filename = "\1"', text)
    text = re.sub(r", upload-time = \"[^\"]*\"", "", text)
    return re.sub(r"^requires-dist = \[\n(?:    .*\n)*\]\n|^requires-dist = \[.*\]\n", "", text, flags=re.MULTILINE)


if __name__ == "__main__":
    if shutil.which("uv") is None:
        raise SystemExit("uv is missing: pip install uv")
    os.chdir(ROOT)
    nox.main()
