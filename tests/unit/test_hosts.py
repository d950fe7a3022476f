"""Host names as operators write them, and what is known of a host."""

from __future__ import annotations

import asyncio

import pytest

from eg_distributed.errors import HostUnreachable, RequestInvalid
from eg_distributed.hosts import Host, parse_hosts
from eg_distributed.node import Node
from eg_distributed.protocol import AgentIdentity
from eg_distributed.settings import Distributed

from .node_owner import NodeOwner


@pytest.mark.parametrize(
    ("written", "hosts"),
    [
        ("a,b", ("a", "b")),
        (" a , b ,", ("a", "b")),
        ("b,a,b", ("b", "a")),
        (["a", " b "], ("a", "b")),
        ("['a', \"b\"]", ("a", "b")),
        ("", ()),
        ([], ()),
        ("Node1,node1,NODE1.,node2", ("Node1", "node2")),
        ("::1,0:0:0:0:0:0:0:1,FE80::1%eth0,fe80::1%eth0", ("::1", "FE80::1%eth0")),
        ("[::1]", ("::1",)),
        ("10.0.0.1,::1,fe80::1%eth0,my_host.example", ("10.0.0.1", "::1", "fe80::1%eth0", "my_host.example")),
    ],
)
def test_hosts_are_read_as_written(written: str | list[str], hosts: tuple[str, ...]) -> None:
    """Strings and lists, blanks, doubles, and the brackets and quotes of a list in an environment variable."""
    assert parse_hosts(written) == hosts


@pytest.mark.parametrize(
    "name", ["-oProxyCommand=x", "a b", "a;b", "$(id)", "a/b", "x" * 254, "user@host", "a\n"[:1] + "\nb"]
)
def test_what_can_be_no_host_is_refused(name: str) -> None:
    """A name that could be an option or a command reaches no ssh."""
    with pytest.raises(RequestInvalid, match="is no host name"):
        parse_hosts([name])


@pytest.mark.parametrize(
    ("name", "host", "port"),
    [
        ("node1:22", "node1", "22"),
        ("node1.example.org:2222", "node1.example.org", "2222"),
        ("[fe80::1]:22", "fe80::1", "22"),
    ],
)
def test_a_port_is_refused_with_the_way_to_say_it(name: str, host: str, port: str) -> None:
    """A port in a list of hosts belongs into ssh_config, and the error has the two lines to write."""
    with pytest.raises(RequestInvalid, match="has a port") as refused:
        parse_hosts(["a", name])
    assert f"`Host {host}` and `Port {port}`" in str(refused.value)


async def test_a_host_is_unhealthy_for_a_while_after_a_failure() -> None:
    """A failure counts for retry_after seconds."""
    host = Host("a", Node("a", Distributed(), ("tests", "1"), NodeOwner(Distributed())))
    assert host.is_healthy(60)
    host.node.failed(HostUnreachable("no route", host="a"))
    assert not host.is_healthy(60)
    await asyncio.sleep(0)
    assert host.is_healthy(0)


async def test_no_kernel_counts_twice() -> None:
    """A kernel that is still starting may be told by the agent already."""
    host = Host("a", Node("a", Distributed(), ("tests", "1"), NodeOwner(Distributed())))
    host.node.running = {"1", "2"}
    assert host.count(starting={"2", "3"}) == 3


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (AgentIdentity("1", "/f", "m", "b"), AgentIdentity("1", "/f", "m", "b"), True),
        (AgentIdentity("1", "/f", "m", "b"), AgentIdentity("2", "/f", "m", "b"), False),  # another login
        (AgentIdentity("1", "/f", "m", "b"), AgentIdentity("1", "/f", "m", "c"), False),  # a clone that shares the home
        (AgentIdentity("1", "/f", "m", "b"), AgentIdentity("1", "/f", "n", "b"), False),  # a container that shares it
        (AgentIdentity("1", "/f", "m", ""), AgentIdentity("1", "/f", "m", ""), False),  # unknown: /proc hides the boot
        (AgentIdentity("1", "/f"), AgentIdentity("1", "/f"), False),
        (None, None, False),
    ],
)
async def test_two_names_are_one_machine_if_one_agent_answers_by_both(
    first: AgentIdentity | None, second: AgentIdentity | None, same: bool
) -> None:
    """Logins, and clones that share a home, are hosts of their own."""
    one, other = (Host(name, Node(name, Distributed(), ("tests", "1"), NodeOwner(Distributed()))) for name in "ab")
    for host, agent in ((one, first), (other, second)):
        host.node.place = agent.place if agent is not None else None
    assert (one.machine == other.machine) == same
