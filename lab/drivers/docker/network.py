"""The lab's network: one bridge, a free /24 of its own, and an address for every machine."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors

from lab import lease
from lab.errors import LabConflict, LabUsageError
from lab.names import LABEL, LABEL_USER, node_number, resource_name, short_name

Network = ipaddress.IPv4Network

POOLS = tuple(ipaddress.IPv4Network(pool) for pool in ("10.213.0.0/16", "172.30.0.0/16", "192.168.200.0/21"))
"""Where labs live, tried in turn: outside what engines, home routers and most clusters take by default, and in three ranges,
since companies give one of them or another to a VPN."""
POOL_VARIABLE = "LAB_POOL"
"""The variable that names another pool, for this machine; it wins over a lab.toml's `pool`."""
BROADEST_ROUTE = 8
"""Routes to more than a /8 say nothing of a single network: a VPN writes the default route as 0.0.0.0/1 and 128.0.0.0/1, so that
it wins over the one that is there."""

GATEWAY_OFFSET = 2
NODE_OFFSET = 10
EXTRA_OFFSET = 180
"""From here on for whoever has no number in the row: extra nodes, nodes of named groups, more gateways; below it, too, when
there are more of them."""


def pools(given: str = "") -> tuple[Network, ...]:
    """Return the pools to try: LAB_POOL, else *given* (of a lab.toml), else POOLS. Raises LabUsageError for what is no pool."""
    text = os.environ.get(POOL_VARIABLE) or given
    if not text:
        return POOLS
    try:
        pool = ipaddress.IPv4Network(text.strip())
    except ValueError as error:
        source = POOL_VARIABLE if os.environ.get(POOL_VARIABLE) else "the lab's `pool`"
        raise LabUsageError(f"{source} is no network: {error}", remedy="write it as 172.31.0.0/16") from None
    if not BROADEST_ROUTE <= pool.prefixlen <= 24:
        raise LabUsageError(
            f"{pool} is no pool for labs", remedy="a lab takes a /24 of it: choose a network of /8 to /24"
        )
    return (pool,)


def candidates(name: str, pool: Network) -> list[Network]:
    """Return the /24s of *pool* to try for the lab *name*, beginning at one of its own so that labs seldom ask for the same.

    Of a pool larger than a /16, the first 256 from there on.
    """
    count = 1 << (24 - pool.prefixlen)
    digest = hashlib.sha256(name.encode()).digest()
    begin = int.from_bytes(digest[: 1 if count <= 256 else 2], "big") % count
    first = int(pool.network_address)
    numbers = ((begin + step) % count for step in range(min(count, 256)))
    return [ipaddress.IPv4Network((first + (number << 8), 24)) for number in numbers]


def choose(
    name: str,
    networks: Mapping[str, Network],
    routed: Mapping[str, Network] | None = None,
    among: Sequence[Network] = POOLS,
) -> Network:
    """Return a /24 for the lab *name*, or raise LabConflict, which says who has the pools.

    The first that overlaps nothing of *networks* (the engine's) and *routed* (this machine's routes), both by owner. If there
    is none, the first that lies whole in broader routes: the lab's own, more specific route wins over them, so the lab works, and
    hides a /24 of what a VPN leads to, most of which is empty. An engine refuses what overlaps its own networks.
    """
    routed = routed or {}
    free = [
        candidate
        for pool in among
        for candidate in candidates(name, pool)
        if not any(candidate.overlaps(net) for net in networks.values())
    ]
    for candidate in free:
        if not any(candidate.overlaps(net) for net in routed.values()):
            return candidate
    for candidate in free:
        if all(net.prefixlen < candidate.prefixlen for net in routed.values() if candidate.overlaps(net)):
            return candidate
    raise LabConflict(
        f"no /24 of {' or '.join(map(str, among))} is free for the lab {name!r}",
        cause="; ".join(_owners(pool, {**networks, **routed}) for pool in among),
        remedy=f"name another pool, {POOL_VARIABLE}=… in the environment or `pool` in lab.toml, or remove what is not needed "
        "(`lab down --name …`, `docker network rm …`)",
    )


def _owners(pool: Network, taken: Mapping[str, Network]) -> str:
    """Say who has *pool*: those that cover it whole, else how many share it, and a few of them."""
    whole = sorted(owner for owner, net in taken.items() if pool.subnet_of(net))
    if whole:
        return f"{pool} is taken by {', '.join(whole)}"
    parts = sorted(owner for owner, net in taken.items() if pool.overlaps(net))
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return f"{pool} is shared by {', '.join(parts[:3])}{more}"


def routes(table: str) -> dict[str, Network]:
    """Return the destinations in the text of /proc/net/route, by interface and address; none that is broader than a /8."""
    found: dict[str, Network] = {}
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        address = int.from_bytes(bytes.fromhex(fields[1]), "little")
        mask = int.from_bytes(bytes.fromhex(fields[7]), "little")
        if mask.bit_count() >= BROADEST_ROUTE:
            net = ipaddress.IPv4Network((address & mask, mask.bit_count()))
            found[f"the route to {net} by {fields[0]}"] = net
    return found


def own_routes() -> dict[str, Network]:
    """Return this machine's routes; none where it has no /proc/net/route."""
    table = Path("/proc/net/route")
    return routes(table.read_text()) if table.exists() else {}


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
                labels = network.attrs.get("Labels") or {}
                whose = f", the lab {labels[LABEL]} of {labels.get(LABEL_USER, 'somebody')}" if LABEL in labels else ""
                found[f"the network {network.name} ({net}{whose})"] = net
    return found


def find(client: Any, name: str) -> Any | None:
    """Return the lab's network, or None."""
    found = client.networks.list(filters={"label": f"{LABEL}={name}"})
    return found[0] if found else None


def ensure(client: Any, name: str, pool: str = "") -> Any:
    """Return the lab's network, made now, in *pool* if that is named, if it is not there."""
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
    among = pools(pool)
    taken, routed = taken_by_engine(client.networks.list()), own_routes()
    while True:
        subnet = choose(name, taken, routed, among)
        addresses = docker.types.IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))
        try:
            return client.networks.create(
                resource,
                driver="bridge",
                check_duplicate=True,
                ipam=docker.types.IPAMConfig(pool_configs=[addresses]),
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
