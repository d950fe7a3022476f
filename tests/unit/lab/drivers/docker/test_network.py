import ipaddress
from types import SimpleNamespace

import pytest

from lab.drivers.docker import network
from lab.errors import LabConflict


def test_a_lab_begins_at_a_subnet_of_its_own() -> None:
    """The same name leads to the same /24 while it is free, so that a lab's addresses stay what they were."""
    assert network.choose("lab", {}) == network.choose("lab", {})
    assert network.choose("lab", {}).subnet_of(ipaddress.IPv4Network(network.POOL))


def test_a_taken_subnet_is_passed_over() -> None:
    """What overlaps, in whole or in part, is never chosen."""
    first = network.choose("lab", {})
    half = ipaddress.IPv4Network((first.network_address, 25))
    assert not network.choose("lab", {"other": half}).overlaps(first)


def test_an_exhausted_pool_names_who_has_it() -> None:
    """The error says which network to remove."""
    with pytest.raises(LabConflict, match="the network corp"):
        network.choose("lab", {"the network corp": ipaddress.IPv4Network("10.0.0.0/8")})


def test_routes_are_read_and_the_default_route_is_none() -> None:
    """A VPN's route counts as taken; the default route would overlap everything."""
    table = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "tun0\t0007D50A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert list(network.routes(table).values()) == [ipaddress.IPv4Network("10.213.7.0/24")]


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
