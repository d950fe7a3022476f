"""What follows a Spark kernel's end, run by the agent on the kernel's node: nothing of it stays on the cluster or the node.

A driver that ends in order, or is terminated, does all this itself. One that was killed does not: an application that waits in
ACCEPTED would keep its place in the queue, its staging folder would stay, and so would the driver's temporary files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import types
import urllib.parse
from pathlib import Path
from typing import Any

_DEADLINE = 12.0  # seconds for all of it; the agent gives up after 15
_GRACE = 1.5  # seconds in which an application whose driver has gone ends by itself


def main() -> int:
    """End and remove what is left; return 1 if something could not be."""
    from .spark_driver import scratch_folder
    from .spark_errors import LaunchError
    from .spark_options import parse

    scratch = scratch_folder(os.environ)
    if scratch is not None and not scratch.is_symlink():
        shutil.rmtree(scratch, ignore_errors=True)
    try:
        options = parse([], os.environ, os.path.dirname(os.path.abspath(__file__)))
    except LaunchError:
        return 0  # with such options no driver was ever started
    return _end_applications(options) if options.on_yarn else 0


def _end_applications(options: Any) -> int:
    from .spark_yarn import FINAL, ResourceManagers

    managers = ResourceManagers.of(os.environ)
    deadline = time.monotonic() + _DEADLINE
    started = time.monotonic()
    seen: set[str] = set()
    killed: set[str] = set()
    while time.monotonic() < deadline:
        found = managers.applications(options.attempt_tag)
        seen.update(str(application["id"]) for application in found)
        living = [application for application in found if application["state"] not in FINAL]
        if not living:
            break
        for application in living:
            name = str(application["id"])
            late = time.monotonic() - started > _GRACE
            if name not in killed and (application["state"] != "RUNNING" or late) and managers.kill(name):
                print(f"ended {name} ({application['state']}) after its driver", file=sys.stderr)
                killed.add(name)
        time.sleep(0.2)
    for name in seen:
        _remove_staging(options, name)
    return 0 if time.monotonic() < deadline else 1


def _remove_staging(options: Any, application: str) -> None:
    """Remove an application's staging folder where it is a plain folder, and by Hadoop's own client where it is not."""
    from .spark_errors import LaunchError
    from .spark_java import java
    from .spark_yarn import configuration

    base = options.settings.get("spark.yarn.stagingDir", "")
    default = configuration(os.environ).get("fs.defaultFS", "file:///")
    url = urllib.parse.urlsplit(base or default)
    if url.scheme in ("", "file"):
        home = Path(url.path) if base else Path.home()
        shutil.rmtree(home / ".sparkStaging" / application, ignore_errors=True)
        return
    place = f"{base.rstrip('/')}/.sparkStaging/{application}" if base else f".sparkStaging/{application}"
    path = ":".join([os.environ.get("HADOOP_CONF_DIR", ""), f"{options.spark_home}/jars/*"])
    command = ["-cp", path, "org.apache.hadoop.fs.FsShell", "-rm", "-r", "-f", "-skipTrash", place]
    try:
        subprocess.run([java(os.environ), *command], timeout=_DEADLINE, check=False, stdin=subprocess.DEVNULL)
    except (LaunchError, OSError, subprocess.TimeoutExpired) as error:
        print(f"the staging folder {place} stays: {error}", file=sys.stderr)


if __name__ == "__main__":
    _package = types.ModuleType("eg_distributed_launcher")
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[_package.__name__] = _package
    __package__ = _package.__name__
    sys.exit(main())
