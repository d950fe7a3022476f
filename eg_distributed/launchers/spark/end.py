"""What follows a Spark kernel's end, run on the kernel's node (by `spark_end.py`): nothing of it stays.

A driver that ends in order, or is terminated, does all this itself. One that was killed does not: an application that waits in
ACCEPTED would keep its place in the queue, its staging folder would stay, and so would the driver's temporary files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

_DEADLINE = 12.0  # seconds for all of it; the agent gives up after 15
_PAUSE = 0.2
_GRACE = 1.5  # seconds in which an application whose driver has gone ends by itself


def main() -> int:
    """End and remove what is left; return 1 if something could not be."""
    from .driver import scratch_folder
    from .errors import LaunchError
    from .options import parse

    scratch = scratch_folder(os.environ)
    if scratch is not None and not scratch.is_symlink():
        shutil.rmtree(scratch, ignore_errors=True)
    try:
        options = parse([], os.environ, os.path.dirname(os.path.abspath(__file__)))
    except LaunchError:
        return 0  # with such options no driver was ever started
    return _end_applications(options) if options.on_yarn else 0


def _end_applications(options: Any) -> int:
    from .yarn import FINAL, ResourceManagers

    managers = ResourceManagers.of(options.env)
    if not managers.webs:
        return 0  # nor did the driver know where to submit anything
    deadline = time.monotonic() + _DEADLINE
    started = time.monotonic()
    seen: dict[str, str] = {}  # whose they are, by their ids
    killed: set[str] = set()
    while time.monotonic() < deadline:
        found = managers.applications(options.attempt_tag)
        if found is None:  # nobody answers just now; what may be left there is worth the wait
            time.sleep(_PAUSE)
            continue
        seen.update({str(application["id"]): str(application.get("user", "")) for application in found})
        living = [application for application in found if application["state"] not in FINAL]
        if not living:
            break
        for application in living:
            name = str(application["id"])
            late = time.monotonic() - started > _GRACE
            if name not in killed and (application["state"] != "RUNNING" or late) and managers.kill(name):
                print(f"ended {name} ({application['state']}) after its driver", file=sys.stderr)
                killed.add(name)
        time.sleep(_PAUSE)
    for name, user in seen.items():
        _remove_staging(options, name, user)
    return 0 if time.monotonic() < deadline else 1


def _remove_staging(options: Any, application: str, user: str) -> None:
    """Remove an application's staging folder where it is a plain folder, and by Hadoop's own client where it is not.

    It is in the *user*'s home, or, since Spark 3.0, in a folder of his name in `spark.yarn.stagingDir`.
    """
    from .env import own_user
    from .errors import LaunchError
    from .java import java
    from .yarn import configuration

    base = options.settings.get("spark.yarn.stagingDir", "")
    default = configuration(options.env).get("fs.defaultFS", "file:///")
    url = urllib.parse.urlsplit(base or default)
    staging = f".sparkStaging/{application}"
    if url.scheme in ("", "file"):
        home = Path(url.path) / user if base else Path.home()
        shutil.rmtree(home / staging, ignore_errors=True)
        return
    env = dict(options.env)
    home_of = "" if user == own_user() else f"/user/{user}/"  # relative: the login user's home, wherever that is
    place = f"{base.rstrip('/')}/{user}/{staging}" if base else f"{home_of}{staging}"
    if home_of:
        env["HADOOP_PROXY_USER"] = user  # as the application was submitted: the folder is his alone
    folders = [options.env.get(name, "") for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR")]
    path = ":".join([*filter(None, folders), f"{options.spark_home}/jars/*"])
    command = ["-cp", path, "org.apache.hadoop.fs.FsShell", "-rm", "-r", "-f", "-skipTrash", place]
    try:
        subprocess.run([java(options.env), *command], env=env, timeout=_DEADLINE, check=False, stdin=subprocess.DEVNULL)
    except (LaunchError, OSError, subprocess.TimeoutExpired) as error:
        print(f"the staging folder {place} stays: {error}", file=sys.stderr)
