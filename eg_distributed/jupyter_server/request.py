"""What a kernel manager of jupyter_client knows of a kernel, turned into a StartRequest; needs no jupyter_client itself.

A server hands all of its own environment on with the session of a notebook (`{**os.environ, "JPY_SESSION_NAME": …}`), secrets
included, and a script that calls `start_kernel` hands on nothing. Neither is what a kernel on another machine is to get: of this
process's environment that is KERNEL_*, which is meant for kernels, and what `inherited_envs` names; of what was added for this
kernel, what `client_envs` names.
"""

from __future__ import annotations

import getpass
import logging
import os
import posixpath
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Protocol

from eg_distributed import spec_request
from eg_distributed.errors import RequestInvalid, RequestRefused
from eg_distributed.hosts import HostSet
from eg_distributed.request import StartRequest, check_env
from eg_distributed.settings import Distributed
from eg_distributed.spec_request import Asked, values_of
from eg_distributed.wire import shown

__all__ = ["KernelManager", "added_for", "request_for"]

log = logging.getLogger(__name__)

BALANCER = "least-connection"
"""What balances where nothing is set. Not Enterprise Gateway's round-robin: most of these processes start one kernel or two, and
a round of one is always the same host."""
_OF_ONE = frozenset(
    f"KERNEL_{name}" for name in ("WORKING_DIR", "REMOTE_HOST", "LAUNCH_TIMEOUT", "USERNAME", "LANGUAGE")
)
"""What a kernel's environment says of it alone."""
_SESSION = "JPY_SESSION_NAME"
"""The notebook's path, which jupyter_server adds for each session."""
_KEYS = frozenset(
    ("authorized_users", "bring_folder", "impersonation", "interrupt_signal", "launcher", "on_exit", "port_range")
) | {"preload", "remote_hosts", "transport", "unauthorized_users", "warm"}
"""What a kernelspec's stanza may have in its config."""
_FIRST = random.random()
"""Where in a host set this process begins with its rounds, as a part of the whole."""


class KernelManager(spec_request.KernelManager, Protocol):
    """What is needed of jupyter_client's KernelManager."""

    kernel_id: str


def request_for(
    manager: KernelManager,
    config: Mapping[str, Any],
    launch: Mapping[str, Any],
    settings: Distributed,
    own: Mapping[str, str],
    handed: Mapping[str, str] | None = None,
) -> StartRequest:
    """Return the request to start *manager*'s kernel; raises RequestInvalid or RequestRefused.

    Args:
        manager: the kernel's manager
        config: the provisioner's part of the kernelspec
        launch: what the kernel is started with: `env`, `cwd`, `extra_arguments` and others, as jupyter_client hands them on
        settings: the cluster's
        own: this process's environment
        handed: what that was when *launch* was made, where it is not the same: a restart may come much later

    """
    if unknown := sorted(set(config) - _KEYS):
        log.warning(
            "kernelspec %s: no %s is known in its provisioner's config", manager.kernel_name, ", ".join(unknown)
        )
    env = _values(manager, launch, settings, own, own if handed is None else handed)
    check_env(env)
    _check_user(env, config, settings)
    port_range = str(config.get("port_range") or settings.port_range)
    asked = Asked(
        manager=manager,
        launch=launch,
        kernel_id=manager.kernel_id,
        config=config,
        env=env,
        hosts=settings.remote_hosts,
        balancer=own.get("EG_LOAD_BALANCING_ALGORITHM") or BALANCER,
        launch_timeout=float(env.get("KERNEL_LAUNCH_TIMEOUT") or settings.kernel_launch_timeout),
        port_range=_ports(port_range),
        named_range=port_range,
        impersonation=bool(settings.impersonation_enabled),
        cwd=_here(settings.folders),
    )
    request = spec_request.start_request(asked, settings)
    if not request.hosts:
        raise RequestInvalid(
            f"kernelspec {manager.kernel_name!r} has no hosts, and neither has this process",
            remedy='name them by c.Distributed.remote_hosts, EG_REMOTE_HOSTS, or "remote_hosts" in its provisioner\'s config',
        )
    if request.balancer == "round-robin":
        request = replace(request, hosts=_turned(request.hosts))
    return request


def _turned(hosts: HostSet) -> HostSet:
    """Return *hosts* from this process's own place on: else the first one would get the first kernel of every process."""
    first = int(_FIRST * len(hosts))
    return hosts[first:] + hosts[:first]


# -- env -----------------------------------------------------------------------------------------------------------


def _values(
    manager: KernelManager,
    launch: Mapping[str, Any],
    settings: Distributed,
    own: Mapping[str, str],
    handed: Mapping[str, str],
) -> dict[str, Any]:
    """Return the variables of the kernel beside its kernelspec's."""
    env: Mapping[str, Any] = launch.get("env") or {}
    # What the caller has added, and not what of this process it has handed on.
    added = {name: value for name, value in env.items() if handed.get(name) != value and not name.startswith("KERNEL_")}
    meant = {name: value for name, value in {**own, **env}.items() if name.startswith("KERNEL_")}
    if "KERNEL_ID" in own:
        # This process runs in a kernel itself: what was meant for that one is not for those it starts.
        meant = {
            name: value
            for name, value in meant.items()
            if name not in _OF_ONE or (name in env and handed.get(name) != value)
        }
    sent = {**added, **meant}
    if folder := launch.get("cwd"):
        sent.setdefault("KERNEL_WORKING_DIR", elsewhere(str(folder), settings.folders))
    if session := sent.get(_SESSION):
        sent[_SESSION] = elsewhere(str(session), settings.folders)
    values = values_of(
        manager.kernel_spec.env, sent, own, inherited=settings.inherited_envs, allowed=[*settings.client_envs, _SESSION]
    )
    if left := sorted(added.keys() - values.keys()):
        log.info(
            "kernel %s: not passed on of what it was started with: %s (Distributed.client_envs)",
            manager.kernel_id,
            ", ".join(name[:80] for name in left[:20]),
        )
    values["KERNEL_ID"] = manager.kernel_id  # never one that this process has from a kernel that it is started by
    values.setdefault("KERNEL_LANGUAGE", (manager.kernel_spec.language or "unknown-kernel-language").lower())
    values.setdefault("KERNEL_USERNAME", _user())
    values["EG_IMPERSONATION_ENABLED"] = str(bool(settings.impersonation_enabled))
    return values


def added_for(env: Mapping[str, Any], handed: Mapping[str, str], allowed: Iterable[str]) -> dict[str, str]:
    """Return what of *env* was added for one kernel and may reach it: what a later process restarts it with.

    *handed* is the environment of the process that was handed on with it, which is not kept: it has secrets.
    """
    names = {*allowed, _SESSION}
    return {
        name: value
        for name, value in env.items()
        if isinstance(value, str) and handed.get(name) != value
        and (name.startswith("KERNEL_") or name in names or "*" in names)
    }  # fmt: skip


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _check_user(env: Mapping[str, str], config: Mapping[str, Any], settings: Distributed) -> None:
    """Raise RequestRefused if the kernel's user may not start it, by Enterprise Gateway's rules."""
    user = env["KERNEL_USERNAME"]
    refused = {*settings.unauthorized_users, *_names(config.get("unauthorized_users"))}
    allowed = _names(config.get("authorized_users")) or set(settings.authorized_users)
    if user in refused or (allowed and user not in allowed):
        raise RequestRefused(
            f"KERNEL_USERNAME={user} is not authorized to start this kernel",
            remedy="see authorized_users and unauthorized_users of the kernelspec and of Distributed",
        )


def _names(value: str | Iterable[str] | None) -> set[str]:
    parts = value.split(",") if isinstance(value, str) else value or ()
    return {name for part in parts if (name := str(part).strip())}


def _ports(text: str) -> tuple[int, int] | None:
    """Return the first and the last port of *text* (`LOW..HIGH`), None for `0..0`; raises RequestInvalid."""
    low, dots, high = text.partition("..")
    if not (dots and low.isdecimal() and high.isdecimal() and int(low) <= int(high) <= 65535):
        raise RequestInvalid(f"the port_range {shown(text)} is none", remedy="write 40000..42000, or 0..0 for any")
    return (int(low), int(high)) if int(high) else None


# -- folders -------------------------------------------------------------------------------------------------------


def _here(folders: Mapping[str, str]) -> str | None:
    """Return what this process's own folder is called on the hosts: where a kernel starts of which nothing else is said."""
    try:
        return elsewhere(os.getcwd(), folders)  # noqa: PTH109 - a text, as all folders here
    except OSError:  # it was removed
        return None


def elsewhere(folder: str, folders: Mapping[str, str]) -> str:
    """Return what *folder*, a path of this machine, is called on the hosts, by *folders*; the longest match counts."""
    path = os.path.abspath(folder)  # noqa: PTH100 - links stay, as users and hosts name them
    for here in sorted(folders, key=len, reverse=True):
        if path == here or path.startswith(here.rstrip("/") + "/"):
            return posixpath.join(folders[here], PurePosixPath(path).relative_to(here).as_posix()).removesuffix("/.")
    return path
