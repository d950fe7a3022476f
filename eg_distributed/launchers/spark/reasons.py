"""What Spark's own errors mean, of a session's start and of a job: their cause in one line, and the remedy."""

from __future__ import annotations

import re
from typing import Optional, Sequence

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
_REASON = 300  # characters of why an executor went
_JAVA = re.compile(r"(?:[a-zA-Z_$][\w$]*\.)+(?P<name>[A-Z][\w$]*(?:Exception|Error))\s*:\s*")


def _exit_code(code: int) -> str:
    """Return a pattern for the words in which Spark and YARN say an executor's exit code."""
    return rf"(?i:exited with code {code}|exit (?:code|status)(?: is)?:? {code})\b"


_LARGER = "have them get more memory (--executor-memory), or give each task less: more partitions, less to collect"
_JOBS = (
    (r"PYTHON_VERSION_MISMATCH", "the workers' Python is another version than the driver's", _PYTHON, False),
    (r"Cannot run program", "a worker can't run the program that Spark's tasks need", _PYTHON, True),
    (_exit_code(52), "an executor ran out of Java memory (exit code 52)", _LARGER, False),
    (
        _exit_code(137),
        "an executor was killed (exit code 137: by the system for its memory, or by somebody)",
        _LARGER,
        False,
    ),
    (
        r"Container killed by YARN for exceeding|running beyond (?:the )?'?(?:physical|virtual)",
        "YARN killed an executor that took more memory than its container has",
        "raise spark.executor.memoryOverhead or --executor-memory",
        False,
    ),
    (
        r"Another instance of Derby",
        "another kernel or program has opened the same metastore, which is a folder for one at a time",
        "end that one, or name a metastore that serves several in hive-site.xml",
        False,
    ),
    (
        r"LOCATION_ALREADY_EXISTS",
        "the table's folder is there, of a session before, but its name went with that: without a metastore names live no longer",
        "remove the folder, write to a path of its own, or have a metastore configured (hive-site.xml)",
        False,
    ),
)
"""What in the words of a job's error is a fault of the installation or of its limits, what that is, its remedy, and whether the
line is quoted."""


def advise(error: BaseException) -> str:
    """Return a line on the fault of the installation behind a job's *error*, with its remedy; "" for any other error."""
    if isinstance(error, LaunchError):
        return ""  # ours, with its remedy
    # What pyspark has made an exception of its own of has its causes in that alone.
    text = f"{getattr(error, 'java_exception', '') or error}\n{getattr(error, 'stackTrace', '')}"
    for pattern, cause, remedy, quoted in _JOBS:
        if re.search(pattern, text):
            said = re.search(rf"[^\n]*{pattern}[^\n]*", text)
            detail = _JAVA.sub("", said[0].strip()) if said is not None and quoted else ""
            return str(LaunchError(f"{cause} ({detail})" if detail else cause, remedy))
    return ""


_ENDS = (
    (
        r"unresolved dependency|#.*: not found|Failed to resolve|Server access [Ee]rror|requirement failed: Provided Maven",
        "correct --packages, and check that the node reaches the repositories",
    ),
    (r"maximum heap size|heap size|Could not reserve enough space", "correct --driver-memory"),
    (r"Size must be specified|NumberFormatException|should be (?:int|long|boolean|double)", "correct that value"),
    (r"HADOOP_CONF_DIR or YARN_CONF_DIR", "set HADOOP_CONF_DIR in the kernelspec's env"),
    (
        r"assign requested address|BindException",
        "correct SPARK_LOCAL_IP and spark.driver.bindAddress: they are the node's own",
    ),
)
"""What in a JVM's last words calls for what."""


def explain_end(when: str, code: int, said: Sequence[str]) -> LaunchError:
    """Return what to say of a JVM that has ended by itself with exit code *code*; *said* is what it printed last.

    *when* completes the sentence ("at its start").
    """
    text = "\n".join(said)
    remedy = next((remedy for pattern, remedy in _ENDS if re.search(pattern, text)), "")
    if code in (-9, 137):
        remedy = "check the node's memory: it was killed"
    quoted = ": " + " / ".join(_bare(line) for line in said) if said else ""
    return LaunchError(
        f"Spark's JVM ended {when} (exit code {code}){quoted}",
        remedy or ("correct what it complains of" if said else "see the kernel's log for what it said"),
    )


def _bare(line: str) -> str:
    """Return a line of Java's without the class of its exception, unless nothing says more than that."""
    text = re.sub(r"^(?:Caused by:|Exception in thread \"[^\"]*\"|Error:)\s*", "", line.strip())
    without = _JAVA.sub("", text)
    return without if " " in without.strip() else text


def stuck(ever: bool, reasons: Sequence[str], driver: str) -> str:
    """Return what to tell a cell whose job has no task under way: the cause, as far as it is known, and the remedy.

    *ever* says whether an executor has registered since the session's start, *reasons* why those went that have gone, *driver*
    where executors find this driver.
    """
    if len(reasons) > 1:
        last = " ".join(reasons[-1].split())[:_REASON]
        cause = next((cause for pattern, cause, _, _ in _JOBS if re.search(pattern, last)), "")
        remedy = next((remedy for pattern, _, remedy, _ in _JOBS if re.search(pattern, last)), "")
        return (
            f"no task runs: executors come and go, {len(reasons)} so far, the last: {last}{f' ({cause})' if cause else ''}; "
            f"{remedy or f'interrupt the cell, and check what it says, and that executors reach the driver at {driver}'}"
        )
    if not ever:
        return (
            "no task runs: the cluster has no executor, no free core or no memory for this application, its executors don't "
            f"start, or its executors don't reach the driver at {driver}; wait, end other applications, or ask for less "
            "(--executor-memory, --executor-cores), or see their logs, or correct spark.driver.host"
        )
    return (
        "no task runs: the cluster has no executor, no free core or no memory for this application; wait, end other "
        "applications, or ask for less (--executor-memory, --executor-cores)"
    )


def explain(error: BaseException, options: Optional[SparkOptions]) -> LaunchError:
    """Return *error* as what the user is told: the last cause that Java names, and what can be done."""
    text = str(getattr(error, "java_exception", "") or error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")] or lines
    cause = _bare(causes[-1] if causes is not lines else causes[0])
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE)), "")
    where = f" ({options.master})" if options is not None else ""
    return LaunchError(
        f"Spark could not make a session{where}: {cause}", remedy or "see the kernel's log for the whole of it"
    )
