"""What Spark's own errors mean at a session's start: their cause in one line, and the remedy."""

from __future__ import annotations

import re
from typing import Optional

from .errors import LaunchError
from .options import SparkOptions

_PYTHON = "set PYSPARK_PYTHON in the kernelspec's env to an interpreter that is at the same path on every node, of one version"
_REMEDIES = (
    (r"unknown queue", "name one of the cluster's queues with --queue"),
    (r"Queue .* is STOPPED", "name another queue with --queue, or have it opened"),
    (r"permission to submit", "name a queue that the user may use with --queue, or have the right granted"),
    (r"above the max threshold|beyond the max", "ask for less, or have the cluster's maximum raised"),
    (r"All masters are unresponsive", "start the master, or correct --master in SPARK_OPTS"),
    (r"ConnectException|NoRouteToHost|UnknownHost", "check that the cluster runs and that the node reaches it"),
    (r"allowed to impersonate", "allow the node's user to act for others (hadoop.proxyuser.*)"),
    (r"Cannot run program", _PYTHON),
    (r"AccessControlException|Permission denied", "have the rights checked of the user that the kernel runs as"),
    (r"BindException|assign requested address", "set spark.driver.host and spark.driver.bindAddress to the node's own"),
)
"""What in Spark's words calls for what."""
_JAVA = re.compile(r"(?:[a-zA-Z_$][\w$]*\.)+(?P<name>[A-Z][\w$]*(?:Exception|Error))\s*:\s*")


_JOBS = (
    (r"PYTHON_VERSION_MISMATCH", "the workers' Python is another version than the driver's"),
    (r"Cannot run program", "a worker can't run the program that Spark's tasks need"),
)
"""What in the words of a job's error is a fault of the installation, and what that is."""


def advise(error: BaseException) -> str:
    """Return a line on the fault of the installation behind a job's *error*, with its remedy; "" for any other error."""
    text = str(getattr(error, "java_exception", "") or error)
    for pattern, cause in _JOBS:
        if re.search(pattern, text):
            said = re.search(rf"[^\n]*{pattern}[^\n]*", text)
            detail = _JAVA.sub("", said[0].strip()) if said is not None and "Cannot run" in pattern else ""
            return str(LaunchError(f"{cause} ({detail})" if detail else cause, _PYTHON))
    return ""


def explain(error: BaseException, options: Optional[SparkOptions]) -> LaunchError:
    """Return *error* as what the user is told: the last cause that Java names, and what can be done."""
    text = str(getattr(error, "java_exception", "") or error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")] or lines
    cause = _JAVA.sub("", causes[-1].replace("Caused by:", "").strip() if causes is not lines else causes[0])
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE)), "")
    where = f" ({options.master})" if options is not None else ""
    return LaunchError(
        f"Spark could not make a session{where}: {cause}", remedy or "see the kernel's log for the whole of it"
    )
