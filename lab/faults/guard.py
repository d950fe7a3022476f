"""Start the lab's watchdog, the process that heals faults (watchdog.py), where it does not run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab.errors import LabError
from lab.files import Busy, held

PROGRAM = Path(__file__).resolve().with_name("watchdog.py")


def start(name: str, folder: Path) -> None:
    """Start the lab's watchdog unless it is there; called with the lab's faults locked, so that it finds none to be no end.

    Raises LabError when it can't be started: a fault that nobody would heal is not to be inflicted.
    """
    try:
        with held(folder / "faults" / "watchdog"):
            pass
    except Busy:
        return
    log = folder / "faults" / "watchdog.log"
    try:
        with log.open("ab") as file:
            subprocess.run(
                [sys.executable, str(PROGRAM), name, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd="/",
                timeout=30,
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"the watchdog of {name} does not start", cause=str(error), remedy=f"see {log}") from error
