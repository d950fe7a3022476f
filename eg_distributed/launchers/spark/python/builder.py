"""Settings of a notebook's own `SparkSession.builder`: which of them only a start can take, and which are not in force."""

from __future__ import annotations

import os
import socket
from typing import Any, Mapping, Optional

AT_JVM_START = (
    "spark.driver.memory",
    "spark.driver.extraClassPath",
    "spark.driver.extraJavaOptions",
    "spark.driver.defaultJavaOptions",
    "spark.driver.extraLibraryPath",
    "spark.jars",
    "spark.jars.packages",
    "spark.jars.excludes",
    "spark.jars.repositories",
    "spark.jars.ivy",
    "spark.jars.ivySettings",
    "spark.kerberos.keytab",
    "spark.kerberos.principal",
)
"""What Spark reads when its JVM starts, and never again."""
_BY_NAME = ("spark.app.name", "spark.master")
"""Settings of an application that Spark's own register does not have."""


def is_remote(options: Mapping[str, str]) -> bool:
    """Return True if a builder with these *options* would make a session of Spark Connect, which has no driver here."""
    return "spark.remote" in options or "SPARK_REMOTE" in os.environ or "SPARK_CONNECT_MODE_ENABLED" in os.environ


def of_conf(conf: Any) -> dict[str, str]:
    """Return those settings in pyspark's SparkConf *conf* that only a JVM's start can take; none without a *conf*."""
    given = dict(conf.getAll() or ()) if conf is not None else {}
    return {name: str(given[name]) for name in AT_JVM_START if name in given}


def not_in_force(
    session: Any, given: Mapping[str, str], fresh: bool, jvm: Optional[Mapping[str, str]], remedy: str
) -> str:
    """Return what to tell a cell of the settings *given* to its builder that *session* does not have; "" if it has all.

    *fresh* says that the builder made the session's application itself. *jvm* are the settings that Spark's JVM was started with,
    None if that is not known; *remedy* is for those among them.
    """
    late, early = [], []
    conf = session.sparkContext.getConf()
    for name, wanted in given.items():
        if name in AT_JVM_START:
            found = jvm.get(name) if jvm is not None else wanted
            if not _same(found, wanted):
                early.append(_said(name, wanted, found))
        elif not fresh and not _same(conf.get(name), wanted) and not _takes(session, name, wanted):
            late.append(_said(name, wanted, conf.get(name)))
    texts = []
    if late:
        texts.append(
            f"not in force, since this application was made before: {', '.join(late)}; call spark.stop() first, "
            "then the builder makes an application of its own"
        )
    if early:
        texts.append(f"not in force, since Spark's JVM was started before: {', '.join(early)}; {remedy}")
    return "\n".join(f"{socket.gethostname()}: settings of the builder are {text}" for text in texts)


def _same(found: Optional[str], wanted: str) -> bool:
    return found is not None and _plain(found) == _plain(wanted)


def _plain(text: str) -> str:
    """Return a path or a truth value in one spelling."""
    text = text[len("file:") :] if text.startswith("file:") else text
    return text.lower() if text.lower() in ("true", "false") else (text.rstrip("/") or text)


def _takes(session: Any, name: str, value: str) -> bool:
    """Return True if *session* takes the setting while it runs: what the builder has done already is done once more."""
    if name in _BY_NAME:
        return False
    if name.startswith("spark.sql."):
        return bool(session.conf.isModifiable(name))
    try:
        session.conf.set(name, value)
    except Exception:  # noqa: BLE001 - Spark's refusal, by whatever class this release has for it
        return False
    return True


def _said(name: str, wanted: str, found: Optional[str]) -> str:
    return f"{name}={wanted} (in force: {found if found is not None else 'not set'})"
