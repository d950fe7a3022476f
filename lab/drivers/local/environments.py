"""The environments of local machines: made by uv from the lock, kept in the cache and shared by all labs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from lab import files
from lab.drivers import checkout
from lab.errors import EnvironmentUnfit, LabError
from lab.progress import Progress
from lab.state import cache_root, locked

PYTHONS = {"gateway": ">=3.10,<3.12", "jupyterlab": ">=3.10", "node": ">=3.10", "spark": ">=3.10,<3.12"}
"""Enterprise Gateway's pyzmq < 25 has no wheels for later Pythons, and it imports distutils; Spark 3.5 is made for 3.11."""


KEPT_SECONDS = 86400.0
"""How long a wheel of other sources is kept."""


def folder(role: str) -> Path:
    """Return where the environment of *role* is, whether it has been made or not."""
    return cache_root() / "environments" / f"{role}-{checkout.digest([(PYTHONS[role], checkout.requirements(role))])}"


def ensure(role: str, progress: Progress) -> Path:
    """Return the environment of *role* (`gateway`, `jupyterlab`, `node`), made now if what the lock says has changed."""
    return make(folder(role), role, checkout.requirements(role), progress)


def make(
    made: Path, role: str, requirements: bytes, progress: Progress, fill: Callable[[Path], None] | None = None
) -> Path:
    """Return the environment *made* with the locked *requirements* and what *fill* puts in, made now unless it is whole."""
    done = made / ".complete"
    with locked("environments", what="making the lab's environments"):
        if done.exists():
            return made
        of = {"spark": "kernels with Spark", "jupyterlab": "JupyterLab"}.get(role, f"the {role}")
        progress.step(f"the environment of {of}")
        shutil.rmtree(made, ignore_errors=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        try:
            checkout.run_uv("venv", "--quiet", "--no-project", "--python", PYTHONS[role], str(made))
        except LabError as error:
            if "No space left" in error.cause:
                raise
            raise EnvironmentUnfit(
                f"there is no Python {PYTHONS[role]} for the {role}",
                cause=error.cause,
                remedy="`uv python install 3.11`, or install python3.11 with the system's packages",
            ) from error
        wanted = made / "requirements.txt"
        wanted.write_bytes(requirements)
        python = str(made / "bin" / "python")
        checkout.run_uv("pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", str(wanted))
        if role == "gateway":
            _check_distutils(made)
        if fill is not None:
            fill(made)
        done.touch()
    return made


def _check_distutils(folder: Path) -> None:
    """Raise EnvironmentUnfit if this Python lacks what Enterprise Gateway 3.3 imports: Debian ships distutils apart."""
    argv = [str(folder / "bin" / "python"), "-c", "import distutils.util"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise EnvironmentUnfit(
            "Enterprise Gateway can't run with the Python that uv found",
            cause=done.stderr.strip().rpartition("\n")[2],
            remedy="`apt-get install python3-distutils`, or `uv python install 3.11`",
        )


def install_wheel(environment: Path, target: Path) -> None:
    """Install the checkout's wheel into the folder *target*: each gateway has its own, so none changes while it runs."""
    wheel = _wheel()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    python = str(environment / "bin" / "python")
    arguments = ("--quiet", "--no-deps", "--offline", "--python", python, "--target", str(target), str(wheel))
    checkout.run_uv("pip", "install", *arguments)


def _wheel() -> Path:
    """Return the checkout's wheel, kept by the hash of its sources: building one is a third of a warm `lab up`."""
    kept = cache_root() / "wheels"
    place = kept / checkout.digest(checkout.wheel_sources())
    with locked("wheels", what="building the wheel"):
        if there := list(place.glob("*.whl")):
            return there[0]
        name, content = checkout.build_wheel()
        for older in kept.glob("*"):
            if time.time() - older.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(older, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        files.write(place / name, content, files.SHARED)
        return place / name
