"""Asking `ssh -G`: who reads ssh_config better than ssh itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
from pathlib import Path

from eg_distributed.link.deadlines import within
from eg_distributed.link.groups import end_group

from .reader import Values
from .tokens import expand_tilde, home_folder

__all__ = ["Refused", "Unable", "ask_ssh", "find_ssh"]

_SECONDS = 10.0
"""For `ssh -G`, which runs the commands of `Match exec` and may look names up."""
_MOST_SAID = 4096
"""Bytes of ssh's complaint that are kept."""


class Unable(Exception):
    """ssh can't read a configuration here at all: it is too old, or knows no user of this number."""


class Refused(ValueError):
    """ssh read the configuration and refused it; the text is its own, with file and line."""


def find_ssh() -> str | None:
    """Return the path of `ssh`, None where there is none."""
    return shutil.which("ssh")


async def ask_ssh(ssh: str, host: str, file: str = "", user: str = "", port: int = 0) -> Values:
    """Return what `ssh -G` prints for *host*; raises Unable, Refused, and asyncio.TimeoutError after ten seconds.

    Cancellation and the deadline end ssh with all that it started.
    """
    argv = [ssh, "-G"]
    if user:
        argv += ["-l", user]
    if port:
        argv += ["-p", str(port)]
    with contextlib.ExitStack() as stack:
        given = asyncio.subprocess.DEVNULL
        if file:
            argv += ["-F", str(Path(expand_tilde(file)).absolute())]
        elif (both := _files_of_home()) is not None:
            # ssh reads it twice where there is a `Match final`, so that it can't be a pipe; of descriptors it leaves
            # the first three open.
            given = os.memfd_create("ssh_config")
            stack.callback(os.close, given)
            os.write(given, both.encode("utf-8", "surrogateescape"))
            argv += ["-F", "/proc/self/fd/0"]
        process = await asyncio.create_subprocess_exec(
            *argv,
            "--",
            host,
            stdin=given,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    try:
        out, complaint = await within(process.communicate(), _SECONDS)
    finally:
        if process.returncode is None:
            end_group(process.pid)
            await process.wait()
    said = complaint[-_MOST_SAID:].decode("utf-8", "replace").replace("\r", "")
    lines = [line for line in said.splitlines() if line and not line.startswith("Pseudo-terminal")]
    if process.returncode:
        # OpenSSH before 6.8 has no -G, and none works for a user that the system does not list.
        if "No user exists" in said or "option -- G" in said or "option -- 'G'" in said:
            raise Unable("; ".join(lines))
        raise Refused("; ".join(lines) or f"it ended with code {process.returncode}")
    values: Values = {}
    # Not splitlines(), which takes a form feed in a value, and some of Unicode's characters, for the end of a line.
    for line in out.decode("utf-8", "surrogateescape").split("\n"):
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword.lower(), []).append(value)
    if (theirs := _other_home()) is not None:
        # Of these ssh prints what `~` means to it; of the others it leaves that to us.
        for keyword in ("userknownhostsfile", "identityagent"):
            if keyword in values:
                values[keyword] = [
                    " ".join(_at_home(word, theirs) for word in each.split(" ")) for each in values[keyword]
                ]
    return values


def _other_home() -> str | None:
    """Return the home that ssh takes from the system's list of users where $HOME is another one, else None."""
    try:
        theirs = pwd.getpwuid(os.getuid()).pw_dir.rstrip("/")
    except KeyError:
        return None
    return None if Path(theirs).resolve() == Path(home_folder()).resolve() else theirs


def _at_home(path: str, theirs: str) -> str:
    """Return *path* below $HOME where ssh has put the home *theirs* for `~`, as far as that can be seen of a path."""
    ours = home_folder().rstrip("/")
    if not path.startswith(f"{theirs}/") or path.startswith(f"{ours}/"):
        return path
    moved = ours + path.removeprefix(theirs)
    return path if Path(path).exists() and not Path(moved).exists() and "/.ssh/" not in moved else moved


def _files_of_home() -> str | None:
    """Return an ssh_config that includes that of $HOME where $HOME is not the user's home, else None.

    ssh goes by the system's list of users; all others, and so this gateway's other files, go by $HOME.
    """
    if _other_home() is None:
        return None
    return f'Include "{home_folder()}/.ssh/config"\nInclude "/etc/ssh/ssh_config"\n'
