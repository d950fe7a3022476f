"""Names and labels: how a lab, its machines and what belongs to them are called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Final

from lab.errors import LabUsageError

DOMAIN: Final = "lab.test"
"""Reserved for tests (RFC 2606), so no resolver of the real world ever answers for it."""

USER: Final = "lab"
"""The login user on every node."""

LABEL: Final = "eg_distributed.lab"
"""On everything that the lab makes; its value is the lab's name. `lab down` looks at nothing else."""

LABEL_USER: Final = f"{LABEL}.user"
"""`user@host`: who made it, for the others on a shared engine. Without it, it is anybody's."""
LABEL_ROLE: Final = f"{LABEL}.role"
LABEL_MACHINE: Final = f"{LABEL}.machine"
LABEL_SPEC: Final = f"{LABEL}.spec"
LABEL_ADDRESS: Final = f"{LABEL}.address"
LABEL_HOST_KEY: Final = f"{LABEL}.host-key"
LABEL_HOSTS: Final = f"{LABEL}.hosts"
LABEL_TRUSTED: Final = f"{LABEL}.trusted"
LABEL_DEFINITION: Final = f"{LABEL}.definition"
"""The machine's spec as JSON: what `lab up` without a file, `lab scale` and the plan read a running lab from."""
LABEL_AUTHORITY: Final = f"{LABEL}.authority"
"""The public key that signed the node's host key; not there in a lab without certificates."""

DEFAULT_GATEWAY: Final = "gateway"
"""The short name of the gateway that every lab has."""

_PATTERN: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_NUMBERED: Final = re.compile(r"node([1-9][0-9]*)")


def check_name(name: str, what: str = "lab") -> str:
    """Return *name* if it can be part of a host name, else raise LabUsageError; called with all names from outside."""
    if not _PATTERN.fullmatch(name):
        raise LabUsageError(
            f"{name!r} can't be the name of a {what}",
            cause="names are 1 to 32 lower-case letters, digits and inner hyphens",
            remedy="choose a name like 'lab' or 'node1'",
        )
    return name


def is_name(text: str) -> bool:
    """Return True if *text*, found on a label or as a folder's name, can be the name of a lab."""
    return bool(_PATTERN.fullmatch(text))


def short_name(name: str) -> str:
    """Return the first label of *name*: `node1` for `node1`, `node1.lab.test` and `node1.other.test`."""
    return name.partition(".")[0]


def fqdn(name: str) -> str:
    """Return the full name of a machine: `node1.lab.test` for both `node1` and `node1.lab.test`; other full names stay."""
    return name if "." in name else f"{name}.{DOMAIN}"


def node_number(name: str) -> int | None:
    """Return 3 for `node3`, and None for machines outside the numbered row (extra nodes, gateways)."""
    match = _NUMBERED.fullmatch(short_name(name))
    return int(match.group(1)) if match else None


def resource_name(lab: str, machine: str | None = None) -> str:
    """Return what the engine calls the lab's network, or one *machine*'s container."""
    return f"eglab-{lab}" if machine is None else f"eglab-{lab}-{short_name(machine)}"


def sort_key(name: str) -> tuple[int, str]:
    """Sort node2 before node10, and extra nodes behind the numbered ones."""
    return (node_number(name) or 1_000_000, name)


def is_meant(pattern: str, name: str, roles: Collection[str]) -> bool:
    """Return True if *pattern* means the node of the full name *name* with these *roles*.

    A pattern is a short name, a full name, either with `*`, `?` and `[…]`, or `@role`. A short name without a `*` means a
    node of any domain. Called by whatever chooses nodes: gateways' hosts in lab.toml, a spec's `serving`, fault plans.
    """
    if pattern.startswith("@"):
        return pattern[1:] in roles
    return fnmatchcase(short_name(name), pattern) or fnmatchcase(name, pattern)


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Return up to *count* of the *known* words that *word* may be a misspelling of, the nearest first.

    Compared in lower case: MaxSessions and maxsessions are one word to the person who types it.
    """
    by_lower: dict[str, str] = {}
    for each in known:
        by_lower.setdefault(each.lower(), each)
    return [by_lower[close] for close in difflib.get_close_matches(word.lower(), by_lower, count, 0.5)]
