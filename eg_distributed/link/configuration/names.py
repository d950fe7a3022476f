"""Names of hosts and users: what ssh refuses, addresses in their usual form, and CanonicalizeHostname (ssh.c)."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping, Sequence

from .words import lower, matches_list

__all__ = ["FAMILIES", "Canonicalization", "canonical_address", "check_host", "check_user"]

FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}
"""What AddressFamily says."""
_OF_THE_SHELL = frozenset("'`\"$\\;&<>|(){},")
_OF_THE_SHELL_IN_USERS = frozenset("'`\";&<>|(){}")


def check_host(name: str) -> None:
    """Raise ValueError for a name of a host that ssh refuses, since it may stand in a command of ProxyCommand."""
    if name.startswith("-") or any(char in _OF_THE_SHELL or char.isspace() or _is_control(char) for char in name):
        raise ValueError("hostname contains invalid characters")


def check_user(name: str) -> None:
    """Raise ValueError for a name of a user that ssh refuses where it is not ssh_config's."""
    has_option = any(char.isspace() and after == "-" for char, after in itertools.pairwise(name))
    if (
        name.startswith("-")
        or name.endswith("\\")
        or has_option
        or any(char in _OF_THE_SHELL_IN_USERS or _is_control(char) for char in name)
    ):
        raise ValueError("remote username contains invalid characters")


def _is_control(char: str) -> bool:
    return ord(char) < 32 or ord(char) == 127


def canonical_address(name: str, family: int) -> str:
    """Return the usual form of an address, such as 10.0.0.1 for 10.1; empty for what is the name of a host."""
    if not name:
        return ""
    try:
        found = socket.getaddrinfo(name, 22, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        if len(found) == 1:
            usual = socket.getnameinfo(found[0][4], socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
            return name if lower(name) == usual else usual
    except (OSError, ValueError):  # the latter for a name that can't be encoded
        pass
    # An address of a link that is not there, for one.
    return name if "%" in name or ":" in name or not name.strip("0123456789.") else ""


class Canonicalization:
    """CanonicalizeHostname and its like, as they stand after the first pass."""

    def __init__(self, found: Mapping[str, Sequence[str]]) -> None:
        def first(keyword: str) -> str:
            return next(iter(found.get(keyword, [])), "")

        self.family = FAMILIES.get(first("addressfamily"), socket.AF_UNSPEC)
        self._said = first("canonicalizehostname") or "no"
        self.is_wanted = self._said != "no"
        # ssh sees a proxy in `ProxyJump none` here, unlike in `ProxyCommand none`.
        self._is_direct = first("proxycommand").lower() in ("", "none") and "proxyjump" not in found
        self._domains = [lower(domain).removesuffix(".") for domain in first("canonicaldomains").split("\0") if domain]
        self._most_dots = int(first("canonicalizemaxdots") or 1)
        self._falls_back = first("canonicalizefallbacklocal") != "no"
        self._aliases = [
            lower(rule).partition(":")[::2] if rule != "*" else ("*", "*")
            for rule in first("canonicalizepermittedcnames").split("\0")
            if rule and rule.lower() != "none"
        ]

    def canonical_name(self, host: str) -> str:
        """Return the name that stands for *host*; raises ValueError where it has to be in CanonicalDomains and is not."""
        is_done = self._is_direct or self._said == "always"
        if not is_done:
            return host
        if self.is_wanted and (found := self._in_domains(host)):
            return found
        if self._aliases and (alias := self._look_up(host)) is not None:
            return self._followed(host, alias)
        return host

    def _in_domains(self, host: str) -> str:
        if host.endswith("."):
            candidates = [host]
        elif host.count(".") > self._most_dots:
            return ""
        else:
            candidates = [f"{host}.{domain}." for domain in self._domains if domain != "none"]
        for candidate in candidates:
            if (alias := self._look_up(candidate)) is not None:
                return self._followed(candidate.removesuffix("."), alias)
        if not self._falls_back:
            raise ValueError(f"{host} is in none of CanonicalDomains")
        return ""

    def _followed(self, name: str, alias: str) -> str:
        """Return *alias*, what DNS calls *name*, where CanonicalizePermittedCNAMEs allows it, else *name*."""
        is_allowed = alias != name and any(
            matches_list(name, source) and matches_list(alias, target) for source, target in self._aliases
        )
        return alias if alias and is_allowed and self.is_wanted else name

    def _look_up(self, name: str) -> str | None:
        """Return what DNS calls *name*, None for one that does not exist."""
        try:
            found = socket.getaddrinfo(name, 22, self.family, socket.SOCK_STREAM, 0, socket.AI_CANONNAME)
        except (OSError, ValueError):
            return None
        return found[0][3]
