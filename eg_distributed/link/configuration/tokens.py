"""What stands for something else in an ssh_config: `%h` and its like, `${NAME}`, and `~`.

The names of the tokens are those of ssh_config(5), TOKENS.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pwd
import re
import socket
from collections.abc import Mapping

__all__ = [
    "Unexpandable",
    "expand_path",
    "expand_tilde",
    "expand_tokens",
    "expand_variables",
    "home_folder",
    "host_tokens",
    "own_user",
]

_VARIABLE = re.compile(r"\$\{([^}]*)\}")


class Unexpandable(ValueError):
    """A value with a token, a variable or a user that does not exist."""


def home_folder() -> str:
    """Return the home of the gateway's user: $HOME, else what the system's list of users says, else the root folder."""
    home = os.environ.get("HOME")
    if home:
        return home
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"


def own_user() -> str:
    """Return the name of the user that the gateway runs as, as ssh does: the system's list of users knows it.

    The environment counts only for a number that the list does not have, for which ssh does not work at all: USER and LOGNAME
    may be those of whoever started the gateway.
    """
    try:
        return _name_of(os.getuid())
    except KeyError:
        return os.environ.get("LOGNAME") or os.environ.get("USER") or str(os.getuid())


@functools.lru_cache(maxsize=4)  # a directory of users that is gone for a while must not make another user of this one
def _name_of(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


def host_tokens(
    host: str, hostname: str, port: int | str, user: str, alias: str, jump: str = "", *, local: str
) -> dict[str, str]:
    """Return what each `%x` means for a login to *host*, as it was named, by *user*; *local* is the user here."""
    name = socket.gethostname()
    digest = hashlib.sha1(f"{name}{hostname}{port}{user}{jump}".encode())  # noqa: S324 - OpenSSH's %C
    return {
        "C": digest.hexdigest(),
        "d": home_folder(),
        "h": hostname,
        "i": str(os.getuid()),
        "j": jump,
        "k": alias or host,
        "L": name.partition(".")[0],
        "l": name,
        "n": host,
        "p": str(port),
        "r": user,
        "u": local,
    }


def expand_tokens(text: str, tokens: Mapping[str, str]) -> str:
    """Return *text* with each `%x` replaced by `tokens["x"]`, and `%%` by a percent sign; raises Unexpandable."""
    parts = re.split(r"%(.?)", text)
    for index in range(1, len(parts), 2):
        name = parts[index]
        if name == "%":
            parts[index] = "%"
        elif name in tokens:
            parts[index] = tokens[name]
        else:
            raise Unexpandable(f"there is no token %{name} in {text!r}")
    return "".join(parts)


def expand_variables(text: str) -> str:
    """Return *text* with each `${NAME}` replaced by that environment variable; raises Unexpandable for one that is unset."""

    def value(match: re.Match[str]) -> str:
        try:
            return os.environ[match[1]]
        except KeyError:
            raise Unexpandable(f"the environment variable {match[1]} in {text!r} is not set") from None

    return _VARIABLE.sub(value, text)


def expand_tilde(path: str) -> str:
    """Return *path* with a leading `~` or `~user` replaced by that home; raises Unexpandable for an unknown user."""
    if not path.startswith("~"):
        return path
    user, _, rest = path[1:].partition("/")
    try:
        home = pwd.getpwnam(user).pw_dir if user else home_folder()
    except KeyError:
        raise Unexpandable(f"there is no user {user!r} in {path!r}") from None
    return f"{home.rstrip('/')}/{rest.lstrip('/')}"


def expand_path(path: str, tokens: Mapping[str, str]) -> str:
    """Return *path* with `~`, tokens and variables replaced, in ssh's order; raises Unexpandable."""
    return expand_variables(expand_tokens(expand_tilde(path), tokens))
