"""The R kernel: IRkernel in the process that the agent started, and Spark's driver JVM beside it (`backend.py`)."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Optional

from .. import java
from ..errors import LaunchError
from ..options import SparkOptions
from .backend import ANSWER, ASKED, ENDED, NEWS, PORTS

KERNEL, KEEPER = "r/spark_r.R", "r/backend.py"
SESSIONS = ("", "sparkr", "sparklyr", "builtin")
_COMMANDS = ("spark.r.driver.command", "spark.r.command", "spark.sparkr.r.command")
"""Settings that name the driver's Rscript, as Spark's own RRunner reads them."""
_THREADS = "32"
"""Of the JVM, for R's connections: one that runs a job serves none beside it, not even the one that would cancel the job."""


def command(options: SparkOptions) -> list[str]:
    """Start the JVM if the session wants one, and return the argv that becomes R; changes `options.env`. Raises LaunchError."""
    rscript = find_rscript(options)
    session = options.env.get("EG_R_SESSION", "")
    if session not in SESSIONS:
        raise LaunchError(f"EG_R_SESSION is {session!r}", "use one of sparkr, sparklyr, builtin, or leave it out")
    if session == "sparklyr" and "--proxy-user" in options.submit:
        raise LaunchError(
            "sparklyr starts a spark-submit of its own, which would run the application as the login user",
            "use EG_R_SESSION=builtin or sparkr under impersonation",
        )
    beside = backend_command(options) if options.mode != "none" and session != "sparklyr" else None
    env = options.env
    env["EG_SPARK_PYTHON"] = sys.executable or "python3"
    env["EG_SPARK_TELL"] = os.path.join(options.folder, "tell.py")
    env["EG_R_MODE"] = options.mode
    env["EG_R_WORKER"] = options.settings.get("spark.r.command", "Rscript")
    env["EG_R_MASTER"] = options.master
    env["EG_R_NAME"] = options.settings.get("spark.app.name", options.kernel_id)
    env["EG_R_CONF"] = "\n".join(f"{name}={value}" for name, value in options.settings.items())
    # For a session that the user makes himself, by SparkR's own start of a JVM.
    env.setdefault("SPARKR_SUBMIT_ARGS", shlex.join([*options.submit, "sparkr-shell"]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until R has its own handler
    if beside is not None:
        start_backend(beside, options)
    return [
        rscript,
        "--no-save",
        "--no-restore",
        os.path.join(options.folder, KERNEL),
        options.connection_file,
        *options.launch,
    ]


def find_rscript(options: SparkOptions) -> str:
    """Return the path of the Rscript that the settings name, else of PATH's; raises LaunchError."""
    named: Optional[str] = next((options.settings[name] for name in _COMMANDS if options.settings.get(name)), None)
    found = shutil.which(named or "Rscript", path=options.env.get("PATH", os.defpath))
    if found is None:
        raise LaunchError(
            f"there is no R ({named or 'Rscript'} can't be run)",
            "install R and its package IRkernel on the node (Debian: r-cran-irkernel), or name the node's Rscript by "
            "--conf spark.r.driver.command in SPARK_OPTS",
        )
    return found


def backend_command(options: SparkOptions) -> list[str]:
    """Return the argv of the driver JVM with SparkR's backend in it; raises LaunchError.

    As a class, not as an R application: for that, YARN wants a sparkr.zip, which only nodes with SparkR have.
    """
    return java.submit_command(
        options,
        main_class="org.apache.spark.api.r.RBackend",
        resource="spark-internal",
        args=[os.path.join(options.folder, PORTS)],
        extra={
            "spark.driver.defaultJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "spark.r.numRBackendThreads": _THREADS,
            "spark.job.interruptOnCancel": "true",
        },
    )


def start_backend(beside: list[str], options: SparkOptions) -> None:
    """Start what keeps the JVM *beside* R: a child of this process, which will be R, and ends with it."""
    for name in (PORTS, ENDED, ASKED, ANSWER, NEWS):  # of a kernel before this one
        Path(options.folder, name).unlink(missing_ok=True)
    keeper = [sys.executable, os.path.join(options.folder, KEEPER), str(os.getpid()), options.folder, *beside]
    subprocess.Popen(keeper, env=options.env, stdin=subprocess.DEVNULL)
