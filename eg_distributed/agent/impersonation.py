"""Kernels that are to run as somebody else: whether this node can do that, told before anything is started."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import time
from pathlib import PurePosixPath
from typing import Mapping

from ..protocol import Start
from . import spawning
from .spawning import StartError

DEADLINE = 3.5
"""Seconds for all that is asked, directories of users included; less than gateways wait for the answer to a start."""
_SUDO_DEADLINE = 3.2  # seconds for sudo to say whether it would, in all; it is asked twice
_BY_THEMSELVES = ("run.sh", "sudo")
"""Programs that become the other user themselves, by sudo, as Enterprise Gateway's `run.sh` does."""
_OFF = 'or say "impersonation": false in its process proxy config, to have it run as the login user'


def own_user() -> str:
    """Return the login user's name by its number, as all else here: the environment may have another's."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def user_of(asked: Start) -> str:
    """Return whom the kernel of a start request is to run as; "" for the login user, which is also what our launchers run as."""
    env = asked.env
    if env.get("EG_IMPERSONATION_ENABLED", "").lower() != "true" or asked.files:
        return ""
    user = str(env.get("KERNEL_USERNAME", ""))
    return "" if user == own_user() else user


def check(user: str, asked: Start, environment: Mapping[bytes, bytes]) -> frozenset[int]:
    """Raise StartError, with a remedy, unless the kernel can run as *user*; return `listeners` of that user.

    Called in a thread, since it waits for sudo and for directories of users.
    """
    argv = asked.argv
    if PurePosixPath(argv[0]).name not in _BY_THEMSELVES:
        raise StartError(
            f"impersonation is enabled, but this kernelspec ({argv[0]} …) would run as {own_user()}, not as {user}; "
            f"use a Spark kernelspec on YARN or one whose run.sh calls sudo, {_OFF}"
        )
    try:
        pwd.getpwnam(user)
    except KeyError as error:
        raise StartError(
            f"there is no user {user!r} on this node; create it, or send another KERNEL_USERNAME"
        ) from error
    spark = os.fsdecode(environment.get(b"SPARK_HOME", b""))
    said = ""
    until = time.monotonic() + _SUDO_DEADLINE
    # Allowed to run anything, or just what run.sh does.
    for command in (["-H", "-E", "true"], ["-l", f"{spark}/bin/spark-submit"]):
        allowed, said = _sudo(["-n", "-u", user, *command], environment, until - time.monotonic())
        if allowed:
            return listeners(user)
    raise StartError(
        f"sudo does not let {own_user()} run a kernel as {user} ({said}); allow it in the node's sudoers "
        f"({own_user()} ALL=({user}) NOPASSWD:SETENV: ALL), or disable impersonation"
    )


def _sudo(arguments: list[str], environment: Mapping[bytes, bytes], seconds: float) -> tuple[bool, str]:
    """Return whether `sudo` with these *arguments* succeeds, and the last that it said.

    Raises StartError where it does not answer within *seconds*: its directory of users is this host's.
    """
    try:
        done = subprocess.run(
            [spawning.executable("sudo", environment), *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=max(seconds, 0.1),
            check=False,
        )
    except (spawning.StartError, FileNotFoundError):
        return False, "sudo is not installed"
    except subprocess.TimeoutExpired:
        text = f"sudo did not say within {_SUDO_DEADLINE:g} s whether it lets {own_user()} run a kernel as another user"
        remedy = "see why sudo takes so long there (PAM, DNS, LDAP)"
        raise StartError(text, host_fault=True, remedy=remedy) from None
    except (OSError, ValueError) as error:
        return False, str(error)
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f"exit code {done.returncode}"


def listeners(user: str) -> frozenset[int]:
    """Return the ids of those whose answer counts as the kernel's: root, this user, and *user*, if there is one."""
    found = {0, os.getuid()}
    if user:
        with contextlib.suppress(KeyError):  # `check` has said so
            found.add(pwd.getpwnam(user).pw_uid)
    return frozenset(found)
