import ipaddress
from types import SimpleNamespace

import pytest

from lab.drivers.docker import network
from lab.errors import LabConflict, LabUsageError
from lab.names import LABEL, LABEL_USER


def test_a_lab_begins_at_a_subnet_of_its_own() -> None:
    """The same name leads to the same /24 while it is free, so that a lab's addresses stay what they were."""
    assert network.choose("lab", {}) == network.choose("lab", {})
    assert network.choose("lab", {}).subnet_of(network.POOLS[0])


def test_a_taken_subnet_is_passed_over() -> None:
    """What overlaps, in whole or in part, is never chosen."""
    first = network.choose("lab", {})
    half = ipaddress.IPv4Network((first.network_address, 25))
    assert not network.choose("lab", {"other": half}).overlaps(first)


def test_pools_are_tried_in_turn() -> None:
    """Where a company has 10.0.0.0/8, a lab goes elsewhere, whether the engine or a route says so."""
    corp = {"corp": ipaddress.IPv4Network("10.0.0.0/8")}
    assert network.choose("lab", corp).subnet_of(network.POOLS[1])
    assert network.choose("lab", {}, corp).subnet_of(network.POOLS[1])
    assert network.choose("lab", {"b": network.POOLS[1]}, corp).subnet_of(network.POOLS[2])


def test_a_subnet_that_only_broader_routes_cover_is_better_than_none() -> None:
    """The lab's own route is more specific than a VPN's; one that has a /24 of its own there, or the engine, is not overruled."""
    vpn = {str(net): net for net in map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))}
    first = network.choose("lab", {}, vpn)
    assert first.subnet_of(network.POOLS[0])
    assert not network.choose("lab", {}, {**vpn, "its own": first}).overlaps(first)
    assert network.choose("lab", {"engine": network.POOLS[0]}, vpn).subnet_of(network.POOLS[1])
    with pytest.raises(LabConflict):
        network.choose("lab", vpn)


def test_exhausted_pools_name_who_has_them() -> None:
    """Of each pool those that have it whole; where many share it, how many, and not all of them. And what to do."""
    shared = {f"the network n{net}": net for net in network.POOLS[1].subnets(new_prefix=24)}
    corp = {"the route to 10.0.0.0/8 by tun0": ipaddress.IPv4Network("10.0.0.0/8"), "home": network.POOLS[2]}
    # By networks of the engine, which has a part of what the route covers as well.
    with pytest.raises(LabConflict) as caught:
        network.choose("lab", {**shared, **corp, "mine": ipaddress.IPv4Network("10.213.1.0/24")})
    cause = caught.value.cause
    assert "10.213.0.0/16 is taken by the route to 10.0.0.0/8 by tun0;" in cause
    assert "mine" not in cause
    assert "and 253 more" in cause
    assert "192.168.200.0/21 is taken by home" in cause
    assert "LAB_POOL" in caught.value.remedy
    assert "lab.toml" in caught.value.remedy


def test_another_pool_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the lab.toml, and over it by LAB_POOL for this machine; then no other is tried."""
    monkeypatch.delenv("LAB_POOL", raising=False)
    assert network.pools() == network.POOLS
    assert network.pools("172.31.0.0/16") == (ipaddress.IPv4Network("172.31.0.0/16"),)
    monkeypatch.setenv("LAB_POOL", "10.99.7.0/24")
    (only,) = network.pools("172.31.0.0/16")
    assert network.choose("lab", {}, {}, [only]) == only
    with pytest.raises(LabConflict):
        network.choose("lab", {"it": only}, {}, [only])
    monkeypatch.setenv("LAB_POOL", "10.0.0.0/8")
    (wide,) = network.pools()
    assert network.choose("lab", {}, {}, [wide]).subnet_of(wide)


@pytest.mark.parametrize("text", ["10.213.0.0", "10.213.0.1/16", "10.0.0.0/7", "10.213.0.0/25", "fd00::/16", "x"])
def test_what_is_no_pool_is_said_to_be_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake names the variable or the key, and not a free subnet."""
    monkeypatch.setenv("LAB_POOL", text)
    with pytest.raises(LabUsageError):
        network.pools()


def test_routes_are_read_and_the_default_route_is_none() -> None:
    """A VPN's route counts as taken; the default route, and the two halves that VPNs make of it, would overlap everything."""
    table = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "vpn0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
        "vpn0\t00000080\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n"
        "tun0\t0007D50A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        "tun1\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n"
    )
    assert list(map(str, network.routes(table).values())) == ["10.213.7.0/24", "10.0.0.0/8"]


def test_a_labs_network_is_said_to_be_one() -> None:
    """Whose it is tells whom to ask, and which command removes it."""
    labels = {LABEL: "other", LABEL_USER: "ann@desk"}
    attrs = {"IPAM": {"Config": [{"Subnet": "10.213.3.0/24"}]}, "Labels": labels}
    (owner,) = network.taken_by_engine([SimpleNamespace(name="eglab-other", attrs=attrs)])
    assert owner == "the network eglab-other (10.213.3.0/24, the lab other of ann@desk)"


def test_networks_of_the_engine_are_read_without_their_ipv6() -> None:
    """Networks without a subnet, or with an IPv6 one, take nothing of ours."""
    configs = [{"Subnet": "172.17.0.0/16"}, {"Subnet": "fd00::/64"}, {}]
    engine = [
        SimpleNamespace(name="bridge", attrs={"IPAM": {"Config": configs}}),
        SimpleNamespace(name="host", attrs={"IPAM": {"Config": None}}),
    ]
    assert list(network.taken_by_engine(engine).values()) == [ipaddress.IPv4Network("172.17.0.0/16")]


def test_addresses_are_pinned_by_name() -> None:
    """The gateway and the numbered nodes have fixed addresses; others get the next free one."""
    subnet = ipaddress.IPv4Network("10.213.7.0/24")
    assert network.address_for(subnet, "gateway", "gateway", set()) == "10.213.7.2"
    assert network.address_for(subnet, "node1", "node", set()) == "10.213.7.11"
    assert network.address_for(subnet, "node100", "node", set()) == "10.213.7.110"
    extra = network.address_for(subnet, "odd", "node", set())
    assert network.address_for(subnet, "other", "gateway", {extra}) != extra


def test_addresses_end() -> None:
    """A full subnet is an error that names it, not a crash."""
    subnet = ipaddress.IPv4Network("10.213.7.0/24")
    with pytest.raises(LabConflict, match=r"10\.213\.7\.0/24"):
        network.address_for(subnet, "odd", "node", {str(address) for address in subnet})


@pytest.mark.parametrize(("address", "inside"), [("10.213.7.5", True), ("10.213.8.5", False), ("", False)])
def test_an_old_address_counts_only_in_the_same_subnet(address: str, *, inside: bool) -> None:
    """After the network was made anew elsewhere, machines move with it."""
    assert network.contains(ipaddress.IPv4Network("10.213.7.0/24"), address) is inside
