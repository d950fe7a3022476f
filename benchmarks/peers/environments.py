"""The environments of what is measured: one for each contender, made by uv from exact versions, and kept in `.bench`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from lab.drivers import checkout
from lab.errors import LabError

FOLDER = checkout.ROOT / ".bench" / "environments"
REQUIREMENTS = Path(__file__).with_name("requirements")
NODES_PYTHON = "/usr/bin/python3.11"
"""The interpreter of the lab's nodes; a local kernel has it as well where this machine is the same Debian."""


def own(name: str) -> bytes:
    """Return the requirements of the contender *name*, which stand beside this module."""
    return (REQUIREMENTS / f"{name}.txt").read_bytes()


def ensure(name: str, requirements: bytes, python: str = "", wheel: bool = False) -> Path:
    """Return the environment *name*, made now if it lacks; with *wheel* it has our wheel as it is now.

    *python* is an interpreter, by default one that Enterprise Gateway can have too. Raises LabError with uv's last words.
    """
    folder = FOLDER / name
    stamp = folder / f".complete-{checkout.digest([(python, requirements)])}"
    interpreter = folder / "bin" / "python"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        checkout.run_uv("venv", "--quiet", "--no-project", "--python", python or ">=3.10,<3.12", str(folder))
        wanted = folder / "requirements.txt"
        wanted.write_bytes(requirements)
        install = ("pip", "install", "--quiet", "--compile-bytecode", "--python", str(interpreter))
        checkout.run_uv(*install, "--requirements", str(wanted))
        stamp.touch()
    if wheel:
        _install_wheel(folder, interpreter)
    return folder


def kernel() -> Path:
    """Return the environment of local kernels: what the nodes' kernels have, on the same Python if this machine has it."""
    python = NODES_PYTHON if Path(NODES_PYTHON).exists() else ""
    return ensure("kernel", checkout.requirements("node"), python)


def _install_wheel(folder: Path, interpreter: Path) -> None:
    stamp = folder / f".wheel-{checkout.digest(checkout.wheel_sources())}"
    if stamp.exists():
        return
    for older in folder.glob(".wheel-*"):
        older.unlink()
    name, content = checkout.build_wheel()
    wheel = folder / name
    wheel.write_bytes(content)
    install = (
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--reinstall",
        "--compile-bytecode",
        "--python",
        str(interpreter),
    )
    checkout.run_uv(*install, str(wheel))
    stamp.touch()


def run(*argv: str) -> None:
    """Run a program of one of them; raise LabError with its last words."""
    try:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    except subprocess.CalledProcessError as error:
        raise LabError(f"{Path(argv[1]).name} has failed", cause=error.stderr.strip()[-500:]) from error
