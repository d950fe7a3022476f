"""Jump hosts of ProxyJump, as OpenSSH takes them apart (parse_user_host_port and parse_uri in misc.c)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from .numbers import parse_port
from .words import Invalid

__all__ = ["Hop", "parse_hop", "parse_hops", "print_jump"]

_DOMAIN = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Hop:
    """One jump host of ProxyJump, as it is written there: user and port are empty and 0 where its own configuration says them."""

    host: str
    user: str = ""
    port: int = 0


def parse_hops(value: str) -> tuple[Hop, ...]:
    """Return the jump hosts of *value*, first the one that is gone through first; none for `none`. Raises Invalid."""
    if not value or value.lower() == "none":
        return ()
    return tuple(parse_hop(part.strip()) for part in value.split(","))


def parse_hop(text: str) -> Hop:
    """Return what `[user@]host[:port]` or `ssh://[user@]host[:port][/]` says; raises Invalid."""
    # ssh leaves quotes to the shell by which it starts itself for the jump host.
    said = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    is_uri = said.startswith("ssh://")
    rest = said.removeprefix("ssh://")
    at = rest.find("@") if is_uri else rest.rfind("@")
    user, rest = rest[: max(at, 0)], rest[at + 1 :]
    if is_uri:
        user, rest = unquote(user.partition(";")[0], errors="surrogateescape"), rest.removesuffix("/")
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:/\[][^:/]*))(?::(.*))?", rest, re.DOTALL)
    host = (found[1] or found[2] or "") if found else ""
    if found is None or not host or (at == 0 and not user) or (is_uri and not _DOMAIN.fullmatch(host)):
        raise Invalid(f"{text!r} of ProxyJump is not [user@]host[:port]")
    try:
        port = parse_port(found[3]) if found[3] else 0
    except Invalid:
        raise Invalid(f"{text!r} of ProxyJump is not [user@]host[:port]") from None
    return Hop(host.removesuffix(".") if is_uri else host, user, port)


def print_jump(value: str) -> str:
    """Return *value* of ProxyJump as `ssh -G` prints it, which takes the last jump host apart; raises Invalid."""
    value = value.partition("#")[0].rstrip()
    if value.lower() == "none":
        return "none"
    *before, last = value.split(",")
    hops = [parse_hop(part.strip()) for part in (*before, last)]
    hop = hops[-1]
    if last.strip()[0] in "'\"":
        return value
    is_address = ":" in hop.host or not hop.host.strip("0123456789.")
    user = f"{hop.user}@" if hop.user else ""
    host = f"[{hop.host}]" if is_address else hop.host
    return ",".join((*before, f"{user}{host}{f':{hop.port}' if hop.port else ''}"))
