"""Spark's configuration on the node: where it is, and what its files of Java properties say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Mapping, Optional


def conf_dir(env: Mapping[str, str]) -> Path:
    """Return the folder with Spark's configuration."""
    return Path(env.get("SPARK_CONF_DIR") or Path(env.get("SPARK_HOME", "")) / "conf")


def defaults_file(env: Mapping[str, str], named: str = "") -> Path:
    """Return the file with Spark's defaults: the one that `--properties-file` names, else spark-defaults.conf."""
    return Path(named) if named else conf_dir(env) / "spark-defaults.conf"


_PROPERTY = re.compile(r"(?P<name>(?:\\.|[^\s=:\\])+)\s*[=:\s]?\s*(?P<value>.*)")


def read_properties(path: Path) -> dict[str, str]:
    """Return the settings in a file of Java properties, as Spark reads them; none if there is no such file."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    pending: Optional[str] = None
    for line in lines:
        text = line.lstrip()
        if pending is None and (not text or text[0] in "#!"):
            continue
        text = (pending or "") + text
        if len(text) - len(text.rstrip("\\")) & 1:  # an odd number of backslashes: it goes on in the next line
            pending = text[:-1]
            continue
        pending = None
        match = _PROPERTY.match(text)
        if match is not None:
            found[_unescaped(match["name"])] = _unescaped(match["value"].rstrip())
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"t": "\t", "n": "\n", "r": "\r"}.get(match[1], match[1]), text)
