"""From a topology, or from what runs, to the machines that shall be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from lab.errors import LabUsageError
from lab.kernelspecs import OURS
from lab.names import DEFAULT_GATEWAY, fqdn, node_number, short_name, sort_key
from lab.topology import daemons as kinds
from lab.topology.checks import MAX_NODES
from lab.topology.model import KernelspecEntry, NodeGroup, Topology
from lab.topology.naming import expand, gateway_names, node_names, node_template, template
from lab.topology.specs import GatewaySpec, NodeSpec, gateway_spec, node_spec

ADDED: Final = "with:jupyterlab"
"""The group of the gateway that `with` adds; no group of a lab.toml can have this name."""


def is_added(gateway: GatewaySpec) -> bool:
    """Return True for the gateway that `with` has added to those of the topology."""
    return gateway.group == ADDED


@dataclass(frozen=True)
class Desired:
    """The machines of a topology's groups; nodes and gateways outside of groups are nobody's business here.

    What `with` asks for (`spark`, `yarn`, `jupyterlab`) is among them.
    """

    nodes: tuple[NodeSpec, ...]
    gateways: tuple[GatewaySpec, ...]
    services: tuple[NodeSpec, ...] = ()

    def scaled(self, counts: Mapping[str, int]) -> Desired:
        """Return this with other numbers of nodes (by group), and gateways that follow; raise LabUsageError."""
        nodes = list(self.nodes)
        for group, count in counts.items():
            row = [node for node in nodes if node.group == group]
            if not row:
                there = ", ".join(sorted({node.group for node in nodes})) or "none"
                raise LabUsageError(f"there is no group {group!r} to scale", cause=f"the groups are: {there}")
            names = expand(row[0].template, count)
            if len(names) != count:
                raise LabUsageError(
                    f"the group {group!r} can't have {count} nodes",
                    cause=f"its template {row[0].template!r} has no {{n}}",
                )
            domain = row[0].name.partition(".")[2]
            begin = nodes.index(row[0])
            nodes = [node for node in nodes if node.group != group]
            nodes[begin:begin] = [dataclasses.replace(row[0], name=f"{name}.{domain}") for name in names]
        if not 1 <= len(nodes) <= MAX_NODES:
            raise LabUsageError(f"a lab can't have {len(nodes)} nodes", remedy=f"choose 1 to {MAX_NODES}")
        return Desired(tuple(nodes), tuple(gateway.serving(nodes) for gateway in self.gateways), self.services)

    def running(self, wanted: Iterable[str]) -> Desired:
        """Return this with what `with` means by *wanted* (`spark`, `yarn`, `jupyterlab`), and nothing else of that kind."""
        words = set(wanted)
        chosen = kinds.check(words - {kinds.JUPYTERLAB})
        nodes = tuple(dataclasses.replace(node, daemons=kinds.on_nodes(chosen)) for node in self.nodes)
        gateways = [gateway for gateway in self.gateways if not is_added(gateway)]
        if kinds.JUPYTERLAB in words:
            name = kinds.JUPYTERLAB
            gateways.append(GatewaySpec(name, (), group=ADDED, template=name, program=name).serving(nodes))
        served = tuple(dataclasses.replace(gateway, clusters=chosen) for gateway in gateways)
        return Desired(nodes, served, masters(chosen, nodes))

    @property
    def words(self) -> tuple[str, ...]:
        """What `with` would have to say for this."""
        clusters = kinds.of(daemon for service in self.services for daemon in service.daemons)
        return (*clusters, *(gateway.name for gateway in self.gateways if is_added(gateway)))

    def text(self) -> str:
        """Return this as JSON, for `from_text`."""
        return json.dumps(msgspec.to_builtins(self))


def from_text(text: str) -> Desired | None:
    """Return what `Desired.text` wrote; None if *text* is anything else."""
    try:
        found = {what: [(each["name"], json.dumps(each)) for each in specs] for what, specs in json.loads(text).items()}
        nodes, services = (
            tuple(node_spec(name, definition) for name, definition in found[what]) for what in ("nodes", "services")
        )
        gateways = tuple(gateway_spec(name, (), definition) for name, definition in found["gateways"])
    except (ValueError, TypeError, AttributeError, KeyError):
        return None
    return Desired(nodes, gateways, services) if nodes else None


def from_topology(topology: Topology) -> Desired:
    """Return what a file says."""
    nodes: list[NodeSpec] = []
    for group, wanted in topology.nodes.items():
        chosen = topology.users if wanted.users is None else {name: topology.users[name] for name in wanted.users}
        nodes += [
            NodeSpec(
                f"{name}.{wanted.domain}",
                sshd_lines(wanted.sshd),
                wanted.shell,
                wanted.noisy,
                wanted.python,
                wanted.trusted,
                dict(wanted.login_env),
                group,
                node_template(group, wanted),
                wanted.roles,
                dict(chosen),
                tuple(sorted(set(wanted.packages))),
                wanted.limits,
                topology.auth.kind,
                topology.auth.validity,
            )
            for name in node_names(group, wanted)
        ]
    kernelspecs = {name: kernel_json(name, entry) for name, entry in topology.kernelspecs.items()}
    gateways = []
    for group, offered in topology.gateways.items():
        names = kernelspecs if offered.kernelspecs is None else offered.kernelspecs
        gateways += [
            GatewaySpec(
                name,
                (),
                dict(offered.env),
                offered.options,
                {kernelspec: kernelspecs[kernelspec] for kernelspec in names},
                group,
                template(group, offered.name, offered.count),
                offered.hosts,
                offered.limits,
                program=offered.program,
            ).serving(nodes)
            for name in gateway_names(group, offered)
        ]
    return Desired(tuple(nodes), tuple(gateways)).running(topology.clusters)


def masters(wanted: Iterable[str], nodes: Iterable[NodeSpec]) -> tuple[NodeSpec, ...]:
    """Return the masters' machines for the clusters *wanted*; logins prove themselves there as on the *nodes*."""
    like = next(iter(nodes), None)
    proof = {"auth": like.auth, "validity": like.validity} if like else {}
    return tuple(
        NodeSpec(fqdn(kinds.MACHINES[kind]), group=kind, daemons=(kinds.MASTERS[kind],), **proof)  # type: ignore[arg-type]
        for kind in kinds.check(wanted)
    )


def from_running(
    nodes: Iterable[NodeSpec],
    gateways: Iterable[GatewaySpec],
    *,
    gateway: bool = True,
    services: Iterable[NodeSpec] = (),
) -> Desired:
    """Return what a lab was made to be, by what is left of it.

    Nodes that are gone but still in a gateway's hosts are wanted again, and so is the default gateway unless *gateway* is
    False: half-made labs are made whole by this.
    """
    row = {node.name: node for node in nodes if node.group}
    kept = [each for each in gateways if each.group]
    for name in (host for each in kept for host in each.hosts):
        if name not in row:
            like = next((node for node in row.values() if _fits(short_name(name), node.template)), None)
            if like is not None:
                row[name] = dataclasses.replace(like, name=name)
            elif node_number(name) is not None:
                row[name] = NodeSpec(name, group="node", template="node{n}")
    highest = max((node_number(name) or 0 for name, node in row.items() if node.template == "node{n}"), default=0)
    for number in range(1, highest):
        # The row has no holes: node1 is missing where node2 is there.
        first = next(node for node in row.values() if node.template == "node{n}")
        name = f"node{number}.{first.name.partition('.')[2]}"
        row.setdefault(name, dataclasses.replace(first, name=name))
    wanted = sorted(row.values(), key=lambda node: sort_key(node.name))
    if gateway and all(map(is_added, kept)):
        kept.insert(0, GatewaySpec(DEFAULT_GATEWAY, (), group=DEFAULT_GATEWAY, template=DEFAULT_GATEWAY))
    found: set[str] = set(kinds.of(daemon for machine in (*wanted, *services) for daemon in machine.daemons))
    found |= {each.name for each in kept if is_added(each)}
    return Desired(tuple(wanted), tuple(each.serving(wanted) for each in kept)).running(found)


def _fits(name: str, text: str) -> bool:
    """Say whether *name* is one of the template *text*."""
    before, numbered, after = text.partition("{n}")
    middle = name.removeprefix(before).removesuffix(after)
    return bool(numbered) and name == f"{before}{middle}{after}" and middle.isdecimal()


def sshd_lines(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return sshd_config lines; a list becomes several, as `AcceptEnv` takes them."""
    said = [
        (keyword, each)
        for keyword, value in options.items()
        for each in (value if isinstance(value, tuple) else (value,))
    ]
    return tuple(f"{keyword} {('yes' if each else 'no') if isinstance(each, bool) else each}" for keyword, each in said)


def kernel_json(name: str, entry: KernelspecEntry) -> dict[str, Any]:
    """Return the kernel.json of one of [kernelspecs]."""
    metadata = dict(entry.metadata)
    metadata.setdefault("process_proxy", {"class_name": OURS})
    found: dict[str, Any] = {
        "display_name": entry.display_name or name,
        "language": entry.language,
        "metadata": metadata,
        "argv": list(entry.argv),
    }
    return {**found, "env": dict(entry.env)} if entry.env else found


def numbered(count: int) -> Topology:
    """Return the topology of `lab up --nodes COUNT`."""
    if not 1 <= count <= MAX_NODES:
        raise LabUsageError(f"a lab can't have {count} nodes", remedy=f"choose 1 to {MAX_NODES}")
    return Topology(nodes={"node": NodeGroup(count=count)})
