"""What any adapter asks the cluster for: the request itself, and the rules that its parts keep.

An adapter knows its gateway, and nothing else: it takes argv and `env` out of a kernelspec, the client's values out of a
request, and makes a StartRequest of them with the functions here. So a rule that protects a node (which of the client's values
reach a kernel, which hosts a client may name) is the same whatever gateway is in front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import RequestInvalid, RequestRefused
from .hosts import HostSet, canonical_name, parse_hosts
from .launcher_files import Shipping
from .wire import Message, shown

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_]+)\}")
_LEFT_TO_THE_NODE = ("connection_file", "response_address", "launcher", "python")
"""Placeholders in argv that only the node can fill in."""
_SECRETS = ("EG_AUTH_TOKEN", "KG_AUTH_TOKEN", "EG_REMOTE_PWD")
"""Variables of a gateway that no kernel gets, whatever its configuration lets kernels inherit."""
_MAX_ENV = 1024 * 1024  # characters of a request's env: execve takes no more than that on most systems
_MAX_LAUNCH_TIMEOUT = 86400  # seconds
_MOST_PRELOADED = 50


@dataclass(frozen=True)
class StartRequest:
    """All that is needed to start a kernel; built by an adapter, checked there, kept for restarts."""

    kernel_id: str
    argv: list[str]
    hosts: tuple[str, ...]
    """The kernel's host set."""
    spec_argv: tuple[str, ...] = ()
    """The kernelspec's own argv, by which what is learnt of a kernel counts for the next one; empty: `argv` is."""
    spec_env: dict[str, str] = field(default_factory=dict)
    """From the kernelspec: expanded once, on the node."""
    env: dict[str, str] = field(default_factory=dict)
    """From the client and the gateway: data, never expanded; wins over `spec_env`."""
    pin: str | None = None
    cwd: str | None = None
    key: str = ""
    signature_scheme: str = "hmac-sha256"
    kernel_name: str = ""
    language: str = ""
    transport: str = "auto"
    """`ipc`, `tcp`, `auto`, or `launcher` for one that sends its connection information to `{response_address}`."""
    port_range: tuple[int, int] | None = None
    launch_timeout: float = 30.0
    """Seconds for the whole start, other hosts included."""
    balancer: str = "round-robin"
    decrypt: Callable[[str], Message] | None = None
    """Turns a launcher's answer into connection information; raises ValueError."""
    shipping: Shipping = field(default_factory=Shipping)
    """What a launcher of ours needs on the node."""
    warm: bool = False
    """Whether it may be forked from a template on the node; see agent/warm.py."""
    preload: tuple[str, ...] = ()
    """Modules that such a template imports beside ipykernel."""
    queues: bool = True
    """Whether it waits for its turn on a host that starts others; where it does not, others wait for it all the same."""

    @property
    def own_argv(self) -> tuple[str, ...]:
        """What is the same for all kernels of the kernelspec, whatever id and arguments they have."""
        return self.spec_argv or tuple(self.argv)


# -- warm starts -------------------------------------------------------------------------------------------------


def warm_of(config: Mapping[str, Any], kernel_name: str, *, by_default: bool) -> tuple[bool, tuple[str, ...]]:
    """Return whether a kernelspec's kernels may be forked from a template, and what that imports for them.

    Raises RequestInvalid for a `warm` or a `preload` in *config*, the kernelspec's, that is none.
    """
    wanted = config.get("warm", by_default)
    if not isinstance(wanted, bool):
        raise RequestInvalid(
            f"kernelspec {kernel_name!r} has a warm that is neither true nor false", remedy="write one of them"
        )
    names = config.get("preload", [])
    if not isinstance(names, list) or len(names) > _MOST_PRELOADED or not all(_is_module(name) for name in names):
        raise RequestInvalid(
            f"kernelspec {kernel_name!r} has a preload that is no list of modules",
            remedy=f'write at most {_MOST_PRELOADED} names, such as ["numpy", "pandas"]',
        )
    return wanted, tuple(names)


def _is_module(name: object) -> bool:
    return isinstance(name, str) and len(name) < 200 and all(part.isidentifier() for part in name.split("."))


# -- argv --------------------------------------------------------------------------------------------------------


def fill_argv(words: Iterable[str], values: Mapping[str, str]) -> list[str]:
    """Return *words*, a kernelspec's own argv, with its placeholders filled in from *values*, once.

    What only the node knows stays, whatever *values* say of it, and so does a placeholder that nobody knows.
    """
    known = {name: value for name, value in values.items() if name not in _LEFT_TO_THE_NODE}
    return [_PLACEHOLDER.sub(lambda match: known.get(match[1], match[0]), word) for word in words]


def waits_for_answer(argv: Sequence[str], kernel_name: str) -> bool:
    """Return True if what *argv* starts sends its connection information, False if it reads a file; else raise RequestInvalid."""
    if any("{response_address}" in word for word in argv):
        return True
    if not any("{connection_file}" in word for word in argv):
        raise RequestInvalid(
            f"kernelspec {kernel_name!r} has neither {{connection_file}} nor {{response_address}} in its argv",
            remedy="add '-f', '{connection_file}' to its argv",
        )
    return False


# -- env ---------------------------------------------------------------------------------------------------------


def data_env(
    requested: Mapping[str, Any], own: Mapping[str, str], *, inherited: Iterable[str], allowed: Iterable[str]
) -> dict[str, Any]:
    """Return what a kernel gets besides its kernelspec's env: the client's values over what it inherits from the gateway.

    Args:
        requested: what the client sent; of it, KERNEL_* and the names in *allowed* and *inherited* are taken
        own: the gateway's environment; of it, the names in *inherited* are taken
        inherited: names that the gateway's configuration lets kernels inherit
        allowed: names that the gateway's configuration lets clients set; `*` is any name

    """
    heirs, clients = _stripped(inherited), _stripped(allowed)
    env: dict[str, Any] = {name: value for name, value in own.items() if name in heirs}
    env |= {
        name: value
        for name, value in requested.items()
        if "*" in clients or name.startswith("KERNEL_") or name in clients or name in heirs
    }
    return {name: value for name, value in env.items() if name not in _SECRETS}


def _stripped(names: Iterable[str]) -> set[str]:
    return {name.strip() for name in names if name.strip()}


def check_env(env: Mapping[str, Any]) -> None:
    """Raise RequestInvalid for what no environment can hold, and for a KERNEL_LAUNCH_TIMEOUT that is not one.

    Values are otherwise free, since no shell sees them. Called by the cluster for each start, so that no adapter can forget it;
    by an adapter as well, if its gateway uses the values before that.
    """
    for name, value in env.items():
        if not _NAME.match(name):
            raise RequestInvalid(
                f"{shown(name)} is no name for an environment variable", remedy="use letters, digits and _"
            )
        if not isinstance(value, str) or "\0" in value:
            raise RequestInvalid(
                f"the value of {name[:80]} cannot be an environment variable's", remedy="send text without NUL"
            )
    size = sum(len(name) + len(value) for name, value in env.items())
    if size > _MAX_ENV:
        raise RequestInvalid(
            f"the environment has {size} characters", remedy=f"send fewer than {_MAX_ENV}; large data belongs in a file"
        )
    given = env.get("KERNEL_LAUNCH_TIMEOUT") or "1"
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MAX_LAUNCH_TIMEOUT:  # never true of a NaN
        raise RequestInvalid(
            f"KERNEL_LAUNCH_TIMEOUT={given[:80]!r} is no launch timeout",
            remedy=f"send seconds, more than 0 and at most {_MAX_LAUNCH_TIMEOUT}",
        )


# -- pins --------------------------------------------------------------------------------------------------------


def pin_of(env: Mapping[str, str]) -> str | None:
    """Return the one host that a client's KERNEL_REMOTE_HOST names, None if it names none; raises RequestInvalid."""
    pins: HostSet = parse_hosts(env.get("KERNEL_REMOTE_HOST", ""))
    if len(pins) > 1:
        raise RequestInvalid("KERNEL_REMOTE_HOST names more than one host", remedy="name one")
    return pins[0] if pins else None


def check_pin(pin: str | None, hosts: Collection[str], *, allow_any_host: bool) -> None:
    """Raise RequestRefused if *pin* is outside the host set *hosts* and the operator does not allow that.

    Called by the cluster for each start, so that no adapter can forget it.
    """
    if pin is not None and canonical_name(pin) not in map(canonical_name, hosts) and not allow_any_host:
        raise RequestRefused(
            f"KERNEL_REMOTE_HOST={pin} is none of this kernel's hosts ({', '.join(hosts)})",
            remedy="name one of them, or have the operator set Distributed.allow_any_host",
        )
