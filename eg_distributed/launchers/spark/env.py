"""What a launcher finds around it: its user, and what a site's spark-env.sh says of the cluster that it has to know itself."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path
from typing import Mapping

_DEADLINE = 5.0  # seconds; `hadoop classpath` in it starts a JVM
_WANTED = ("HADOOP_CONF_DIR", "YARN_CONF_DIR", "JAVA_HOME")
_SCRIPT = '. "$1/bin/load-spark-env.sh" >&2; shift; for name; do printf "%s\\0" "${!name}"; done'


def own_user() -> str:
    """Return the name of the user that this runs as, by its number, as Java and so Hadoop do; USER may have another's."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def says_something(path: Path) -> bool:
    """Whether a script, or a file of options, holds more than blank lines and comments."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.strip() and not line.strip().startswith("#") for line in lines)


def site_environment(spark_home: str, conf_dir: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return where spark-env.sh says that YARN's configuration and Java are, for what *env* does not say itself.

    Asked of the script as spark-submit would, which some sites have name them there and nowhere else; nothing if it fails.
    """
    if not says_something(conf_dir / "spark-env.sh"):
        return {}
    try:
        done = subprocess.run(
            ["bash", "-c", _SCRIPT, "bash", spark_home, *_WANTED],
            env={**env, "SPARK_HOME": spark_home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_DEADLINE,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    values = dict(zip(_WANTED, done.stdout.split(b"\0")))
    return {name: os.fsdecode(value) for name, value in values.items() if value and not env.get(name)}
