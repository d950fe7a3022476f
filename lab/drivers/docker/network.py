"""The lab's network: one bridge, a free /24 of its own, and an address for every machine."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import docker
import docker.errors

from lab import lease
from lab.errors import LabConflict
from lab.names import LABEL, LABEL_USER, node_number, resource_name, short_name

Network = ipaddress.IPv4Network

POOL = ipaddress.ip_network("10.213.0.0/16")
"""Where labs live: outside what engines, home routers and most clusters take by default."""

GATEWAY_OFFSET = 2
NODE_OFFSET = 10
EXTRA_OFFSET = 180
"""From here on for whoever has no number in the row: extra nodes, nodes of named groups, more gateways; below it, too, when
there are more of them."""


def candidates(name: str) -> list[Network]:
    """Return the /24s to try for the lab *name*, beginning at one of its own so that labs seldom ask for the same."""
    subnets = [net for net in POOL.subnets(new_prefix=24) if isinstance(net, Network)]
    begin = hashlib.sha256(name.encode()).digest()[0]
    return subnets[begin:] + subnets[:begin]


def choose(name: str, taken: Mapping[str, Network]) -> Network:
    """Return the first candidate that overlaps nothing of *taken* (owner: subnet), or say who owns what clashes."""
    for candidate in candidates(name):
        if not any(candidate.overlaps(other) for other in taken.values()):
            return candidate
    owners = sorted(owner for owner, net in taken.items() if net.overlaps(ipaddress.IPv4Network(POOL)))
    raise LabConflict(
        f"no /24 of {POOL} is free for the lab {name!r}",
        cause=f"taken by {', '.join(owners)}",
        remedy="remove one of them (`docker network ls`, `lab down --name …`)",
    )


def routes(table: str) -> dict[str, Network]:
    """Return the destinations in the text of /proc/net/route, by interface and address; the default route is none."""
    found: dict[str, Network] = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        address = int.from_bytes(bytes.fromhex(fields[1]), "little")
        mask = int.from_bytes(bytes.fromhex(fields[7]), "little")
        if mask:
            net = ipaddress.IPv4Network((address & mask, mask.bit_count()))
            found[f"the route to {net} by {fields[0]}"] = net
    return found


def taken_by_engine(networks: Iterable[Any]) -> dict[str, Network]:
    """Return the subnets of the engine's networks, by name."""
    found: dict[str, Network] = {}
    for network in networks:
        for config in (network.attrs.get("IPAM") or {}).get("Config") or []:
            try:
                net = ipaddress.ip_network(config.get("Subnet", ""), strict=False)
            except ValueError:
                continue
            if isinstance(net, Network):
                found[f"the network {network.name} ({net})"] = net
    return found


def find(client: Any, name: str) -> Any | None:
    """Return the lab's network, or None."""
    found = client.networks.list(filters={"label": f"{LABEL}={name}"})
    return found[0] if found else None


def ensure(client: Any, name: str) -> Any:
    """Return the lab's network, made now if it is not there."""
    existing = find(client, name)
    if existing is not None:
        return existing
    resource = resource_name(name)
    if client.networks.list(names=[f"^{resource}$"]):
        raise LabConflict(
            f"the network {resource} is in the way",
            cause=f"it lacks the label {LABEL}={name}, so it isn't this lab's",
            remedy=f"`docker network rm {resource}` if nobody needs it, or choose another name for the lab",
        )
    taken = taken_by_engine(client.networks.list())
    table = Path("/proc/net/route")
    if table.exists():
        taken.update(routes(table.read_text()))
    while True:
        subnet = choose(name, taken)
        pool = docker.types.IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))
        try:
            return client.networks.create(
                resource,
                driver="bridge",
                check_duplicate=True,
                ipam=docker.types.IPAMConfig(pool_configs=[pool]),
                labels={LABEL: name, LABEL_USER: lease.me(), **lease.labels(name)},
            )
        except docker.errors.APIError as error:
            # What overlaps may be known to the engine alone (its own routes, in a virtual machine): try the next one.
            if "overlap" not in str(error).lower():
                raise
            taken[f"something that the engine knows ({subnet})"] = subnet


def subnet_of(network: Any) -> Network:
    """Return the subnet of the lab's *network*."""
    return ipaddress.IPv4Network(network.attrs["IPAM"]["Config"][0]["Subnet"])


def address_for(subnet: Network, machine: str, role: str, taken: Collection[str]) -> str:
    """Return the address of *machine*: fixed for the gateway and the numbered nodes, the next free one for others."""
    number = node_number(machine)
    if role == "node" and number is not None and NODE_OFFSET + number < EXTRA_OFFSET:
        address = str(subnet[NODE_OFFSET + number])
        if address not in taken:
            return address
    if role == "gateway" and short_name(machine) == "gateway":
        return str(subnet[GATEWAY_OFFSET])
    # 254 addresses: .1 is the bridge's. The row's own places are taken last.
    for offset in [*range(EXTRA_OFFSET, 255), *range(EXTRA_OFFSET - 1, NODE_OFFSET, -1)]:
        address = str(subnet[offset])
        if address not in taken:
            return address
    raise LabConflict(f"no address of {subnet} is free for {machine}", remedy="remove machines that are not needed")


def contains(subnet: Network, address: str) -> bool:
    """Say whether *address* (perhaps empty) is one of *subnet*; a lab's network may have been made anew."""
    try:
        return ipaddress.IPv4Address(address) in subnet
    except ValueError:
        return False
