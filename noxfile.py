#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox"]
# ///
"""The project's checks: `nox` runs them all, `nox -l` lists them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv"
# A Python that this machine lacks is left out, and named in the summary; none is fetched from elsewhere.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.options.sessions = ["lint", "types", "unit", "integration", "coverage"]

ROOT = Path(__file__).parent
PYTHONS = nox.project.python_versions(nox.project.load_toml(ROOT / "pyproject.toml"))
"""The Pythons of the classifiers, oldest first."""
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""The Python that nox runs on, and that every session has which names none."""
PAGES = (
    ("lab.reference.pages", "docs"),
    ("lab.reference.errors", "docs/lab-errors.md"),
    ("lab.topology", "docs/lab.schema.json"),
    ("eg_distributed.settings", "docs/options.md"),
    ("scripts.pages", "docs"),
)
"""Which module writes which pages (`python -m MODULE --write PAGES`), and says whether they are current (`--check`).

The pages of figures are not among them: `nox -s bench -- --docs docs` measures for hours.
"""
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
"""What `nox -s spark spark_long` runs and `nox -s integration` does not: one lab of their own, with a Spark master and YARN."""
PRODUCT = (
    "tests/integration",
    *(f"--ignore-glob=tests/integration/{suite}" for suite in (*LAB_SUITES, *SPARK_SUITES)),
    *("-m", "not long"),
    "--numprocesses=2",
)
"""The product's integration tests, by two workers on one lab."""
CODE = [
    "eg_distributed",
    "lab",
    "tests",
    "benchmarks",
    "scripts",
    "examples",
    "docs/conf.py",
    "noxfile.py",
    "hatch_build.py",
]

os.environ["UV_PYTHON_DOWNLOADS"] = "never"
# pyenv's commands find the selected Python only; here they find the others behind it.
_PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
os.environ["PATH"] = os.pathsep.join(
    (os.environ["PATH"], *(str(path) for version in PYTHONS for path in sorted(_PYENV.glob(f"{version}.*/bin"))))
)

BENCHMARKS = {"peers": "peers", "gateway": "side_by_side", "spark": "spark", "reliability": "reliability"}


def install(session: nox.Session, group: str = "dev") -> None:
    """Install a locked dependency group, the project and the lab into the session's own environment.

    First uv makes uv.lock if it has to, and scripts/pins.py sees to it that the lock has pinned files only.
    """
    session.run_install("uv", "lock", "--quiet", external=True)
    pins(session, "check")
    session.run_install(
        "uv",
        "sync",
        "--quiet",
        "--locked",
        "--no-default-groups",
        f"--group={group}",
        f"--python={session.virtualenv.location}",
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )


def pins(session: nox.Session, *arguments: str) -> None:
    """Run scripts/pins.py with nox's own Python: it needs nothing, and a session's environment may be empty still."""
    session.run_install(sys.executable, "scripts/pins.py", *arguments, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, imports between rooms, pins, generated pages, links, and the files in other languages."""
    install(session)
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports")
    session.run("shellcheck", *sorted(shell_files()))
    session.run("python", "scripts/syntax.py", *found("eg_distributed/**/*.R", "eg_distributed/**/*.java"))
    session.run("python", "scripts/links.py", *found("*.md", "docs/*.md", "examples/*.md"))
    for module, target in PAGES:
        try:
            session.run("python", "-m", module, "--check", target)
        except nox.command.CommandFailed:
            session.error(f"{target} is not what {module} writes: run `nox -s docs` and commit the result")


def found(*patterns: str) -> list[str]:
    """Return the files that match *patterns*."""
    return sorted(str(path) for pattern in patterns for path in Path().glob(pattern))


def shell_files() -> Iterator[str]:
    """Yield the shell scripts, with and without a suffix."""
    for folder in (".ci", "images", "eg_distributed", "lab", "tests"):
        for path in Path(folder).rglob("*"):
            if path.suffix == ".sh" and path.is_file():
                yield str(path)
            elif not path.suffix and path.is_file():
                with path.open("rb") as file:
                    first = file.readline(80)
                if first.startswith(b"#!") and first.rstrip().endswith((b"/sh", b"bash")):
                    yield str(path)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    install(session)
    session.run("mypy")


@nox.session(python=PYTHONS if HERE in PYTHONS else [*PYTHONS, HERE])
def unit(session: nox.Session) -> None:
    """Run unit tests on each Python of the classifiers: no engine, no root, nothing but this machine.

    `nox -s unit-3.12` runs them on one. What nox's own Python runs is measured for `nox -s coverage`.
    """
    install(session)
    # All of them on nox's own. The oldest and the newest have the code that runs on nodes and the logins; those between have
    # logins and launchers, since a test of the agent's starts it on each Python that is here. More would be too much for one
    # run: `nox -s minimums` has all of them on the oldest.
    paths: tuple[str, ...] = ("tests/unit/launchers", "tests/unit/link")
    if session.python == HERE:
        paths = ("tests/unit", "tests/simulation")
        if not session.posargs:
            # Not measured: it goes over the same lines many times, and takes twice as long if each is counted.
            session.run("pytest", "tests/simulation", "--numprocesses=2")
            paths = ("tests/unit",)
    elif session.python in (PYTHONS[0], PYTHONS[-1]):
        paths = ("tests/unit/agent", *paths)
    run_pytest(session, *paths, "--numprocesses=2", measured=session.python == HERE)


OLDEST = next((version for version in PYTHONS if shutil.which(f"python{version}")), HERE)
"""The oldest Python of the classifiers that is here."""


@nox.session(python=OLDEST, default=False)
def minimums(session: nox.Session) -> None:
    """Run the unit tests with the lowest versions that pyproject.toml and lab/pyproject.toml allow, on the oldest Python here.

    The tests' own tools are those of the lock.
    """
    install_lowest(session, "test", "pyproject.toml", "lab/pyproject.toml")
    session.run("pytest", "tests/unit", "--numprocesses=2", *session.posargs)


def install_lowest(session: nox.Session, tools: str, *members: str, extra: str = "", but: str = "") -> None:
    """Install the project with the lowest versions that *members* allow, and the locked dependency group *tools*.

    Of the package *but* it is the version of the tools.
    """
    session.run_install("uv", "lock", "--quiet", external=True)
    pins(session, "check")
    # Not session.create_tmp(): that sets TMPDIR, whose path would be too long for the UNIX sockets of tests.
    folder = Path(session.virtualenv.location)
    lowest, rest = folder / "lowest.txt", folder / "tools.txt"
    # --no-config: with the pins as constraints there would be one version of each.
    plain = ("--quiet", "--no-annotate", "--no-header")
    lowest_of = ("uv", "pip", "compile", *plain, "--no-config", "--resolution=lowest-direct", f"--output-file={lowest}")
    extras = (f"--extra={extra}",) if extra else ()
    session.run_install(*lowest_of, *extras, f"--python={session.virtualenv.location}", *members, external=True)
    exported = ("uv", "export", *plain, "--no-hashes", "--locked", f"--only-group={tools}", f"--output-file={rest}")
    session.run_install(*exported, external=True)
    lines = [line for line in lowest.read_text("utf-8").splitlines() if line.partition("==")[0] != but]
    lowest.write_text("\n".join(lines) + "\n", "utf-8")
    chosen = {line.partition("==")[0] for line in lines}
    kept = [line for line in rest.read_text("utf-8").splitlines() if line.partition("==")[0] not in chosen]
    rest.write_text("\n".join(kept) + "\n", "utf-8")
    session.run_install(
        *("uv", "pip", "install", "--quiet", "--no-config", f"--python={session.virtualenv.location}"),
        *(f"--editable={Path(member).parent}" for member in members),
        *(f"--requirements={lowest}", f"--requirements={rest}"),
        external=True,
    )


@nox.session(python=HERE, default=False)
def server(session: nox.Session) -> None:
    """Run the kernel provisioner with the newest jupyter_client and jupyter_server of the lock, and check its types with theirs.

    `server_lowest` runs it with the lowest. In environments of their own: Enterprise Gateway has jupyter_client 6. `.ci/run`
    leaves out the tests that are marked `long`: `-- -m "not long"`.
    """
    install(session, "server")
    session.run("mypy", "--config-file=tests/server/mypy.ini")
    session.run("pytest", "tests/server", "--numprocesses=2", *session.posargs)


@nox.session(python=OLDEST, default=False)
def server_lowest(session: nox.Session) -> None:
    """Run the kernel provisioner with the lowest versions that the extra `server` allows, on the oldest Python here.

    Not with each program: those that are left out call what the others call, and have the versions of the lock in any case.
    """
    install_lowest(session, "server", "pyproject.toml", extra="server", but="traitlets")
    left_out = " and ".join(f"not {name}" for name in ("voila", "nbconvert", "jupyter_execute", "suite", "spread"))
    session.run("pytest", "tests/server", *(session.posargs or ("-k", left_out)))


@nox.session
def integration(session: nox.Session) -> None:
    """Run the integration tests on a lab of containers; needs an engine (LAB_REQUIRE_DOCKER=1 makes its absence a failure).

    Two workers share the lab. What stands behind `--` comes last, and so decides: `-- -n 0`, `-- --lab mine --lab-keep always`.
    """
    install(session)
    Path(".coverage.integration").unlink(missing_ok=True)
    run_pytest(session, *PRODUCT, "--lab-driver=docker", measured=engine_answers())


@nox.session
def coverage(session: nox.Session) -> None:
    """Report what unit and integration tests ran of the code, together; fail below `fail_under` of pyproject.toml.

    The data are those of the last whole runs, with nothing behind `--`. Where no engine answers there are none of the integration
    tests, and the floor does not count. Measured are the processes of pytest: not the agents, kernels, keepers and `lab` commands
    that tests start, nor the gateway in its container.
    """
    install(session)
    data = [f".coverage.{name}" for name in ("unit", "integration") if Path(f".coverage.{name}").exists()]
    if not data:
        session.skip("nothing is measured: `nox -s unit integration` does it")
    session.run("coverage", "combine", "--keep", "--quiet", *data)
    if len(data) == 2:
        session.run("coverage", "report", "--skip-covered")
    else:
        session.run("coverage", "report", "--skip-covered", "--fail-under=0")
        session.warn(f"not held against the floor: {data[0]} is all that is measured")


def run_pytest(session: nox.Session, *arguments: str, measured: bool) -> None:
    """Run pytest with *arguments* and those behind `--`; with *measured*, and nothing there, keep its coverage for `coverage`."""
    data = Path(f".coverage.{session.name.partition('-')[0]}")
    if not measured:
        session.run("pytest", *arguments, *session.posargs)
    else:
        data.unlink(missing_ok=True)
        # The floor is that of all sessions together: pytest-cov would hold each of them against it.
        options = () if session.posargs else ("--cov", "--cov-report=", "--cov-fail-under=0")
        session.run("pytest", *arguments, *options, *session.posargs, env={"COVERAGE_FILE": str(data)})


def engine_answers() -> bool:
    """Return True if a container engine answers here."""
    docker = shutil.which("docker")
    return docker is not None and subprocess.run((docker, "version"), capture_output=True).returncode == 0


@nox.session(default=False)
def simulation(session: nox.Session) -> None:
    """Run the real code in virtual time: 1,000 hosts, 10 gateways, 100,000 kernels; alone on the machine.

    `-- --seed 7` runs the small sites with that seed instead, as `pytest tests/simulation --seed 7` does.
    """
    install(session)
    options = session.posargs or ("-s", "-k", "hundred_thousand")
    session.run("pytest", "tests/simulation", *options, env={"SIMULATE_AT_SCALE": "" if session.posargs else "1"})


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Make chaos on a lab of containers for an hour, and hold all that was seen against the invariants; see tests/chaos.

    `-- --minutes 5 --seed 7` is shorter, `-- --found` runs the schedules again that have failed once.
    """
    install(session)
    session.run("python", "-m", "tests.chaos", *(session.posargs or ("--minutes", "60")))


@nox.session(default=False)
def integration_local(session: nox.Session) -> None:
    """Run the same tests on a lab of processes: no engine, no root; what only containers can do is skipped with its reason."""
    install(session)
    session.run("pytest", *PRODUCT, "--lab-driver=local", *session.posargs)


@nox.session(
    python=next((f"3.{minor}" for minor in (13, 12, 11) if shutil.which(f"python3.{minor}")), HERE), default=False
)
def fuzz(session: nox.Session) -> None:
    """Hunt for inputs that a parser does not expect: 20 s for each, or `-- --seconds 600 records`; needs Python 3.11 to 3.13.

    atheris follows which code an input reaches, and changes those that reached something new; they are kept in `.fuzz`. The unit
    tests feed the same targets with a few inputs of hypothesis's, and with all that a hunt has found.
    """
    install(session, "fuzz")
    session.run("python", "-m", "tests.unit.fuzz.hunt", *session.posargs)


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Print changes of a module that no test notices: at most half an hour for each, or `-- --minutes 5 balancing`.

    What has been tried is kept in `.mutants`, and the next run goes on with the rest.
    """
    install(session, "mutants")
    session.run("python", "scripts/mutants.py", *session.posargs)


@nox.session(default=False)
def logins(session: nox.Session) -> None:
    """Try every set-up of ssh_config, known_hosts and keys by ssh and by us; `nox -s integration` tries a third of them."""
    install(session)
    session.run("pytest", *(session.posargs or ("tests/integration/test_ssh_table.py", "-m", "long")))


@nox.session(default=False)
def lab(session: nox.Session) -> None:
    """Run the lab's own long suites: every verb, every fault, topologies, and the pytest plugin; about ten minutes."""
    install(session)
    suites = sorted(str(path) for suite in LAB_SUITES for path in Path("tests/integration").glob(suite))
    session.run("pytest", *(session.posargs or suites))


@nox.session(default=False)
def tutorials(session: nox.Session) -> None:
    """Do what the tutorials say, word by word, and run the examples; needs an engine, ssh, curl and jq; about five minutes."""
    install(session)
    session.run("pytest", "tests/tutorials", *session.posargs)


@nox.session(default=False)
def matrix(session: nox.Session) -> None:
    """Have a kernel outlive every fault of the lab's catalogue, each with and without a cut; `integration` has a few of them.

    About forty minutes; `-- -k hung-mount` runs the rows of one fault.
    """
    install(session)
    session.run("pytest", "tests/integration/test_matrix.py", *session.posargs)


@nox.session(default=False)
def spark(session: nox.Session) -> None:
    """Run the tests of Spark kernels, on one lab of two nodes; needs an engine and 3 GB of memory; about twenty minutes.

    Not in the default sessions, because of the time. `.ci/run` runs both. Tests that are marked `long` are left to `spark_long`.
    """
    run_spark(session, "not long")


@nox.session(default=False)
def spark_long(session: nox.Session) -> None:
    """Run the rest of Spark's tests: every language on every cluster, and the lab's clusters and their faults."""
    run_spark(session, "long")


def run_spark(session: nox.Session, marked: str) -> None:
    """Run Spark's tests that are *marked* so, or what stands behind `--`."""
    install(session)
    suites = sorted(str(path) for suite in SPARK_SUITES for path in Path("tests/integration").glob(suite))
    session.run("pytest", *(session.posargs or (*suites, "-m", marked)))


@nox.session(default=False)
def frontend(session: nox.Session) -> None:
    """Build the extension of JupyterLab's front end, which the next wheel has then; needs npm. Checks its types, strictly.

    Its packages are those of frontend/package-lock.json, which names no registry: npm asks the one that it is told to.
    """
    if shutil.which("npm") is None:
        session.skip("npm is missing: wheels are built without the extension, and everything else works without it")
    install(session, "lab-jupyterlab")
    session.chdir("frontend")
    installed, locked = Path("node_modules/.package-lock.json"), Path("package-lock.json")
    if not installed.exists() or installed.stat().st_mtime < locked.stat().st_mtime:
        # No package's own scripts: nothing of them is needed.
        session.run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", external=True)
    core = Path(session.virtualenv.location, "share/jupyter/lab/static")
    session.run("npm", "run", "build", env={"JUPYTERLAB": str(core)}, external=True)


@nox.session(default=False)
def jupyterlab(session: nox.Session) -> None:
    """Work with notebooks in JupyterLab, in Chromium, with and without the lab's gateway; needs an engine and Chromium.

    In an environment of its own: JupyterLab takes jupyter_server 2, and what our other tests need may not. The gateway has its
    jupyter_server 1.24 in its container. Not in the default sessions, since few have a Chromium; `.ci/run` runs it.
    """
    install(session, "jupyterlab")
    # The unit tests of slow clients need ZMQ, which nothing else in the other environments does.
    session.run("pytest", *(session.posargs or ("tests/unit/clients/test_slow_clients.py", "tests/jupyterlab")))


@nox.session(default=False)
@nox.parametrize("what", [nox.param(what, id=name) for name, what in BENCHMARKS.items()])
def bench(session: nox.Session, what: str) -> None:
    """Measure us beside others that run kernels by SSH, each in one run on one lab; prints tables and keeps them as JSON.

    Beside all of them and a local kernel, in a quarter of an hour; in detail beside Enterprise Gateway's own proxy; Spark's
    kernels; what faults cost us. `nox -s "bench(peers)"` is one of them alone. `-- --docs docs` renews the pages of figures.
    `nox -s bench -- --guard` measures ours and a local kernel, and fails where a ratio is worse than that in docs/figures.json
    by more than the spread.
    """
    if "--guard" in session.posargs and what != "peers":
        session.skip("the guard holds what `bench(peers)` measures")
    install(session)
    session.run("python", "-m", f"benchmarks.{what}", *session.posargs)


@nox.session(default=False)
def account(session: nox.Session) -> None:
    """Account for a cell: time, processor, wake-ups and system calls of each process on its way; a minute, on a lab of one node.

    `-- --docs docs` renews docs/cell.md. In an environment that has ZMQ, which nothing else of ours needs.
    """
    install(session, "jupyterlab")
    session.run("python", "-m", "benchmarks.cell_account", *session.posargs)


@nox.session(default=False)
def scale(session: nox.Session) -> None:
    """Measure what a thousand idle kernels cost here and on their nodes: processor, memory, a list, a reconnection.

    About six minutes, and 8 GB of memory. `-- --docs docs` renews docs/scale.md.
    """
    install(session)
    session.run("python", "-m", "benchmarks.scale", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Write every page that is made from the code, and build the site in build/site; a link that leads nowhere is a failure.

    The pages of figures are `bench`'s, which takes hours.
    """
    install(session, "site")
    for module, target in PAGES:
        session.run("python", "-m", module, "--write", target)
    # -W: a warning is a failure. -E: the sidebar of a page is that of its last reading.
    session.run("sphinx-build", "-q", "-E", "-W", "--keep-going", "-c", "docs", "-b", "html", ".", "build/site")
    session.log("open build/site/index.html")


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build what is published into dist/release, and check it: the same twice, metadata, contents, and both worlds of Jupyter.

    Of what is committed, with the front-end extension that `nox -s frontend` has built (`-- --without-frontend`: without it).
    Nothing is uploaded.
    """
    install(session, "release")
    folder = Path("dist", "release")
    session.run("python", "scripts/release.py", str(folder), *session.posargs)
    packages = found(f"{folder}/*.whl", f"{folder}/*.tar.gz")
    session.run("twine", "check", "--strict", *packages)
    session.run("check-wheel-contents", *found(f"{folder}/*.whl"))
    session.run("pytest", "tests/integration/test_wheel.py", env={"RELEASE_FOLDER": str(folder.absolute())})


@nox.session(default=False, venv_backend="none")
def lock(session: nox.Session) -> None:
    """Resolve again and write the pins that are tracked; `-- --upgrade` or `-- --upgrade-package NAME` for newer versions."""
    session.run(sys.executable, "scripts/pins.py", "renew", *session.posargs, external=True)


if __name__ == "__main__":
    if shutil.which("uv") is None:
        raise SystemExit("uv is missing: pip install uv")
    os.chdir(ROOT)
    nox.main()
