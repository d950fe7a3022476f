"""From groups to machines: names by template, and which node a pattern means."""

from __future__ import annotations

from lab.names import is_meant
from lab.topology.model import GatewayGroup, NodeGroup


def template(group: str, name: str, count: int) -> str:
    """Return the template of a group's names; one that isn't given is the group's own name, numbered."""
    return name or (f"{group}{{n}}" if count != 1 else group)


def node_template(group: str, nodes: NodeGroup) -> str:
    """Return the template of a group of nodes; numbered even for one, so that it can grow without renaming."""
    return nodes.name or f"{group}{{n}}"


def node_names(group: str, nodes: NodeGroup) -> list[str]:
    """Return the short names of a group's nodes."""
    return expand(node_template(group, nodes), nodes.count)


def gateway_names(group: str, gateways: GatewayGroup) -> list[str]:
    """Return the names of a group's gateways."""
    return expand(template(group, gateways.name, gateways.count), gateways.count)


def expand(text: str, count: int) -> list[str]:
    """Return `node1`, `node2` for `node{n}` and 2; a template without `{n}` names one machine, however many are asked for."""
    names = [text.replace("{n}", str(number)) for number in range(1, count + 1)]
    return list(dict.fromkeys(names))


def matches(pattern: str, name: str, nodes: NodeGroup) -> bool:
    """Return True if *pattern* means the node *name* (short) of the group *nodes*."""
    return is_meant(pattern, f"{name}.{nodes.domain}", nodes.roles)
