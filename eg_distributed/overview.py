"""What operators see of hosts and kernels, as data: the same behind the command line and a server's REST API.

What is in it, and what it means, is in `docs/rest.schema.json`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from .clock import monotonic
from .cluster import Cluster
from .errors import HostError
from .hosts import Host, HostSet, canonical_name
from .protocol import Listed
from .settings import Distributed
from .unended import Unended, find_unended, runtime_folders

__all__ = ["Unread", "hosts_seen", "kernels_seen", "kernels_written", "unended_on"]

_Answers = dict[str, list[Listed] | HostError]
Unread = dict[str, str]
"""Why a file cannot be read, by its path."""


async def hosts_seen(cluster: Cluster, hosts: HostSet, seconds: float | None = None) -> list[dict[str, Any]]:
    """Ask each of *hosts*, and say of each whether it answers, how many kernels run there, and what stands between.

    On the cluster's loop. A host that does not answer within *seconds* is told of as one that does not, and holds up no other.
    """
    answers = await _ask(cluster, hosts, seconds)
    first_names = _first_names(cluster, answers)
    return [_host(cluster, cluster.host(name), answer, first_names[name]) for name, answer in answers.items()]


def _host(cluster: Cluster, host: Host, answer: list[Listed] | HostError, first: str) -> dict[str, Any]:
    node = host.node
    is_reached = not isinstance(answer, HostError)
    kernels = [] if isinstance(answer, HostError) else [each for each in answer if each.state != "exited"]
    own = cluster.identity[0]
    return {
        "host": host.name,
        "state": "reachable" if is_reached else "unreachable",
        "same_as": None if first == host.name else first,
        "kernels": len(kernels) if is_reached else None,
        "own_kernels": sum(kernel.owner == own for kernel in kernels) if is_reached else None,
        "orphans": sum(not kernel.claimed for kernel in kernels) if is_reached else None,
        "protocol": node.protocol if is_reached else None,
        "silent_since": None if is_reached else node.silent_since,
        "error": str(answer) if isinstance(answer, HostError) else None,
    }


async def kernels_seen(
    cluster: Cluster, hosts: HostSet, seconds: float | None = None, *, orphans: bool = False
) -> dict[str, Any]:
    """Ask each of *hosts* what runs there, whichever gateway started it; with *orphans* only what no gateway answers for.

    On the cluster's loop; as `hosts_seen`. A machine with two names is listed by the first one that answers.
    """
    answers = await _ask(cluster, hosts, seconds)
    first_names = _first_names(cluster, answers)
    found = [
        {"host": host, **kernel.write()}
        for host, answer in answers.items()
        if not isinstance(answer, HostError) and first_names[host] == host
        for kernel in answer
        if not (orphans and kernel.claimed)
    ]
    return {
        "kernels": found,
        "errors": {host: str(error) for host, error in answers.items() if isinstance(error, HostError)},
    }


async def _ask(cluster: Cluster, hosts: HostSet, seconds: float | None) -> _Answers:
    """Ask *hosts*, but for those that failed just now: a page that asks every second must not try to log in every second."""
    held_off: dict[str, HostError] = {}
    for name in hosts:
        node = cluster.host(name).node
        is_recent = monotonic() - node.failed_at < cluster.settings.retry_after
        if node.last_error is not None and is_recent and not node.connected.is_set():
            held_off[name] = node.last_error
    asked = await cluster.list_kernels(tuple(name for name in hosts if name not in held_off), seconds)
    return {name: held_off[name] if name in held_off else asked[name] for name in hosts}


def _first_names(cluster: Cluster, answers: _Answers) -> dict[str, str]:
    """Return for each host by which name its machine is listed: the first that answers; one that does not is known by its own.

    Asked when all have answered, since what machine a name leads to is known from then on.
    """
    first: dict[object, str] = {}
    for name, answer in answers.items():
        if not isinstance(answer, HostError):
            first.setdefault(cluster.host(name).machine, name)
    return {
        name: name if isinstance(answer, HostError) else first[cluster.host(name).machine]
        for name, answer in answers.items()
    }


def unended_on(settings: Distributed, hosts: HostSet | None) -> tuple[list[Unended], Unread]:
    """Return the attempts on *hosts* (None: any) that gateways of this user on this machine are still to end. Reads files."""
    found, errors = find_unended(runtime_folders(settings.runtime_dir))
    wanted = None if hosts is None else {canonical_name(host) for host in hosts}
    return [each for each in found if wanted is None or canonical_name(each.host) in wanted], errors


def kernels_written(seen: dict[str, Any], unended: tuple[Iterable[Unended], Unread] | None) -> dict[str, Any]:
    """Return what `kernels_seen` has returned, with what is still to be ended, where that was asked for."""
    if unended is None:
        return seen
    still, unread = unended
    return {**seen, "unended": [asdict(each) for each in still], "errors": {**seen["errors"], **unread}}
