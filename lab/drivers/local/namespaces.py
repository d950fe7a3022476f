"""How machines are started under `init.py`, and what this machine's kernel lets them have of their own."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Final

from lab.drivers.local.programs import INIT

PROBE_SECONDS: Final = 20.0

SHARED: Final = "their host name, their process table, their /tmp and, under OpenSSH's server, where logins begin"


def command(verb: str, *facts: str, python: str = sys.executable) -> list[str]:
    """Return the beginning of an argv; what shall run goes behind it. *python* is the interpreter."""
    # Isolated and without `site`: it starts in a few milliseconds, and nothing of the caller's environment gets into it.
    return [python, "-I", "-S", INIT, verb, *facts, "--"]


@cache
def isolation() -> tuple[str, str]:
    """Return how machines are told apart (`root`, `user` or `none`), and why not better."""
    try:
        argv = [sys.executable, "-I", "-S", INIT, "probe"]
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "none", str(error)
    kind, _, reason = done.stdout.strip().partition(": ")
    return (kind, "") if kind in {"root", "user"} else ("none", reason or done.stderr.strip()[-200:])
