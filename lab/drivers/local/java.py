"""The Java that the daemons and drivers of a local lab run on: the machine's own, if it is one that Spark 3.5 knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from lab.errors import EnvironmentUnfit

JVMS: Final = Path("/usr/lib/jvm")
OLDEST, NEWEST = 17, 21
"""Hadoop 3.5 is compiled for 17; Spark 3.5 needs what Java 24 has dropped, and is tested up to 21."""
SECONDS: Final = 20.0
_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


def find(environ: Mapping[str, str] | None = None) -> Path:
    """Return the folder of a fitting Java (JAVA_HOME), JAVA_HOME's own or else the nearest to 17; raise EnvironmentUnfit.

    Called by the local driver before it makes a machine with daemons.
    """
    environment = os.environ if environ is None else environ
    seen = {home: version(home) for home in candidates(environment)}
    fitting = [home for home, number in seen.items() if OLDEST <= number <= NEWEST]
    if fitting:
        # An explicit JAVA_HOME comes first among equals, and before all if it fits.
        chosen = environment.get("JAVA_HOME", "")
        return min(fitting, key=lambda home: (str(home) != chosen, seen[home]))
    there = ", ".join(f"{home} is Java {number}" for home, number in seen.items() if number)
    raise EnvironmentUnfit(
        "a local lab can't have Spark or YARN here",
        cause=f"their daemons need Java {OLDEST} to {NEWEST}: {there or 'this machine has none'}",
        remedy=f"install it (Debian: `apt-get install openjdk-{OLDEST}-jre-headless`, where that is Java {OLDEST} also "
        "default-jre-headless) or set JAVA_HOME; or use `lab up --driver docker`, whose images bring theirs",
    )


def candidates(environ: Mapping[str, str]) -> Sequence[Path]:
    """Return the folders in which Java may be, each once: JAVA_HOME, the one on PATH, those of the system's packages."""
    found = [Path(environ["JAVA_HOME"])] if environ.get("JAVA_HOME") else []
    if java := shutil.which("java", path=environ.get("PATH", os.defpath)):
        found.append(Path(java).resolve().parent.parent)
    if JVMS.is_dir():
        found += sorted(path.resolve() for path in JVMS.iterdir())
    return [home for home in dict.fromkeys(found) if os.access(home / "bin" / "java", os.X_OK)]


@cache
def version(home: Path) -> int:
    """Return the major version of the Java in *home*, 0 for one that can't be run; asked once, as each machine needs it."""
    try:
        argv = [str(home / "bin" / "java"), "-version"]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = _VERSION.search(done.stderr + done.stdout)
    return int(match[1]) if match and not done.returncode else 0
