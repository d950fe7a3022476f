"""What no single key of a lab.toml can say: names that clash, references that lead nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from lab.errors import LabUsageError
from lab.names import check_name, nearest
from lab.topology import daemons as kinds
from lab.topology.model import Topology
from lab.topology.naming import gateway_names, matches, node_names

MAX_NODES: Final = 160
"""A lab's /24 has that many addresses for nodes."""

Refuse = Callable[[tuple[str | int, ...], str, str], Exception]


def check(topology: Topology, refuse: Refuse) -> None:
    """Raise what *refuse* makes of (path, why, remedy) for the first thing in *topology* that can't be."""
    taken: dict[str, str] = {}
    for group, nodes in topology.nodes.items():
        if nodes.count > 1 and nodes.name and "{n}" not in nodes.name:
            raise refuse(
                ("nodes", group, "name"),
                f"{nodes.name!r} can't name {nodes.count} nodes",
                "add `{n}`, or say `count = 1`",
            )
        for name in node_names(group, nodes):
            _take(taken, name, f"[nodes.{group}]", ("nodes", group, "name"), refuse)
        for user in nodes.users or ():
            _refer(user, topology.users, ("nodes", group, "users"), "users", refuse)
        _check_sshd(nodes.sshd, ("nodes", group, "sshd"), refuse)
        for variable in nodes.login_env:
            _check_variable(variable, ("nodes", group, "login_env", variable), refuse)
    for kind in topology.clusters:
        what = "`with`" if kind == kinds.JUPYTERLAB else f"the cluster {kind!r}"
        _take(taken, kind if kind == kinds.JUPYTERLAB else kinds.MACHINES[kind], what, ("with",), refuse)
    total = sum(nodes.count for nodes in topology.nodes.values())
    if not 1 <= total <= MAX_NODES:
        raise refuse(("nodes",), f"a lab can't have {total} nodes", f"choose 1 to {MAX_NODES}")
    known = [(name, nodes) for group, nodes in topology.nodes.items() for name in node_names(group, nodes)]
    for group, gateways in topology.gateways.items():
        for name in gateway_names(group, gateways):
            _take(taken, name, f"[gateways.{group}]", ("gateways", group, "name"), refuse)
        for name in gateways.kernelspecs or ():
            _refer(name, topology.kernelspecs, ("gateways", group, "kernelspecs"), "kernelspecs", refuse)
        for pattern in gateways.hosts or ():
            if not any(matches(pattern, name, nodes) for name, nodes in known):
                raise refuse(("gateways", group, "hosts"), f"{pattern!r} is no node of this lab", _names(known))
        for variable in gateways.env:
            _check_variable(variable, ("gateways", group, "env", variable), refuse)
    for reserved in ("lab", "root", "sshd", "gateway"):
        if reserved in topology.users:
            raise refuse(("users", reserved), f"every machine has a {reserved!r} already", "choose another name")
    services = {kinds.MACHINES[kind] for kind in topology.clusters if kind != kinds.JUPYTERLAB}
    for number, step in enumerate(topology.faults):
        for pattern in step.nodes:
            if pattern not in services and not any(matches(pattern, name, nodes) for name, nodes in known):
                raise refuse(("faults", number, "nodes"), f"{pattern!r} is no node of this lab", _names(known))


def _take(taken: dict[str, str], name: str, owner: str, path: tuple[str | int, ...], refuse: Refuse) -> None:
    try:
        check_name(name, "machine")
    except LabUsageError as error:
        raise refuse(path, f"it makes the name {name!r}: {error.cause}", error.remedy) from None
    if name in taken:
        raise refuse(path, f"{name!r} is a name of {taken[name]} too", "machines of one lab need different names")
    taken[name] = owner


def _refer(name: str, known: Iterable[str], path: tuple[str | int, ...], table: str, refuse: Refuse) -> None:
    names = list(known)
    if name not in names:
        close = nearest(name, names)
        remedy = f"did you mean {close[0]!r}?" if close else f"add [{table}.{name}]"
        raise refuse(path, f"there is no [{table}.{name}]", remedy)


def _check_sshd(options: Iterable[str], path: tuple[str | int, ...], refuse: Refuse) -> None:
    for keyword in options:
        if not keyword.isalnum():
            raise refuse((*path, keyword), f"{keyword!r} is no keyword of sshd_config", "see `man sshd_config`")
        if keyword.lower() in {"match", "include"}:
            raise refuse((*path, keyword), f"{keyword} can't be here: it would take the lines behind it along", "")


def _check_variable(name: str, path: tuple[str | int, ...], refuse: Refuse) -> None:
    if not name.isidentifier() or not name.isascii():
        raise refuse(path, f"{name!r} is no name of a variable", "letters, digits and `_`")


def _names(known: Iterable[tuple[str, object]]) -> str:
    names = [name for name, _ in known]
    shown = ", ".join(names[:8])
    return f"its nodes are {shown}{' …' if len(names) > 8 else ''}"
