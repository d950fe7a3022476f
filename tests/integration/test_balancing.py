"""Which host a kernel lands on, seen from the hosts' own process tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import pytest_asyncio

from lab import Gateway, Node
from tests.integration.client import GatewayClient, GatewayError, Kernel, host_of, hosts_of
from tests.integration.conftest import NODES, ClientOf, MakeGateway, MakeNode
from tests.integration.kernelspecs import kernelspec, plain, script
from tests.integration.looks import count_kernels

pytestmark = pytest.mark.lab(nodes=NODES)

Nodes = Sequence[Node]
Names = tuple[str, ...]
PATIENT = {"KERNEL_LAUNCH_TIMEOUT": "110"}
"""For many at once: thirty interpreters share this machine's cores while they start."""


@pytest.fixture
def least(gateway_with: Callable[..., Gateway]) -> Gateway:
    """A gateway that balances by least-connection."""
    return gateway_with(env={"EG_LOAD_BALANCING_ALGORITHM": "least-connection"})


@pytest_asyncio.fixture
async def frugal(least: Gateway, names: Names) -> AsyncIterator[GatewayClient]:
    """A client of `least`, which knows its hosts: one that has not answered within a second counts for two kernels more."""
    async with GatewayClient(least.url) as found:
        for host in names:
            await (await found.start_kernel(env=pin(host))).delete()
        yield found


def pin(host: str) -> dict[str, str]:
    return {"KERNEL_REMOTE_HOST": host}


async def start_one_by_one(client: GatewayClient, count: int, name: str = "python_distributed") -> list[Kernel]:
    return [await client.start_kernel(name) for _ in range(count)]


def spread(counts: Counter[str]) -> int:
    """Return by how many kernels the fullest node leads."""
    return max(counts.values()) - min(counts.values())


async def test_round_robin_gives_each_host_the_same(nodes: Nodes, names: Names, client: GatewayClient) -> None:
    """Nine kernels, one after the other, over three nodes: three each."""
    await start_one_by_one(client, 9)
    assert count_kernels(nodes) == dict.fromkeys(names, 3)


@pytest.mark.timeout(240)
@pytest.mark.lab(nodes=NODES, alone=True)
async def test_thirty_starts_at_once_spread_evenly(nodes: Nodes, names: Names, client: GatewayClient) -> None:
    """Thirty concurrent starts: ten each, since starts under way count."""
    kernels = await client.start_kernels(30, env=PATIENT, timeout=120)
    assert len({kernel.id for kernel in kernels}) == 30
    assert count_kernels(nodes) == dict.fromkeys(names, 10)
    await kernels[0].delete()
    await kernels[-1].delete()
    assert (await kernels[1].execute("6 * 7")).text == "42"


@pytest.mark.timeout(240)
async def test_least_connection_evens_out_starts_at_once(nodes: Nodes, names: Names, frugal: GatewayClient) -> None:
    """Nine concurrent starts by least-connection: three each, though none has been counted when the others pick."""
    await frugal.start_kernels(9, env=PATIENT, timeout=120)
    assert count_kernels(nodes) == dict.fromkeys(names, 3)


async def test_least_connection_evens_out_pins_and_deletions(nodes: Nodes, names: Names, frugal: GatewayClient) -> None:
    """After pins to one host, and after one host lost its kernels, new kernels go where the fewest are."""
    pinned = [await frugal.start_kernel(env=pin(names[0])) for _ in range(2)]
    await start_one_by_one(frugal, 4)
    assert count_kernels(nodes) == dict.fromkeys(names, 2)
    for kernel in pinned:
        await kernel.delete()
    await start_one_by_one(frugal, 3)
    counts = count_kernels(nodes)
    assert counts.total() == 7
    assert spread(counts) <= 1


async def test_least_connection_sees_other_gateways(
    nodes: Nodes, names: Names, client: GatewayClient, frugal: GatewayClient
) -> None:
    """Kernels that another gateway runs on a host count as well: the nodes say what they carry."""
    for _ in range(2):
        await client.start_kernel(env=pin(names[1]))
    await start_one_by_one(frugal, 4)
    assert count_kernels(nodes) == dict.fromkeys(names, 2)


async def test_kernelspecs_with_own_hosts_stay_fair(
    nodes: Nodes, names: Names, gateway: Gateway, client: GatewayClient
) -> None:
    """Two kernelspecs on overlapping host sets, started in turns, each use their own hosts evenly."""
    node1, node2, node3 = names
    gateway.add_kernelspec("left", plain(gateway, remote_hosts=f"{node1},{node2}"))
    gateway.add_kernelspec("right", plain(gateway, remote_hosts=[node2, node3]))
    left, right = [], []
    for _ in range(4):
        left.append(await client.start_kernel("left"))
        right.append(await client.start_kernel("right"))
    assert count_kernels(nodes) == {node1: 2, node2: 4, node3: 2}
    assert Counter(await hosts_of(left)) == {node1: 2, node2: 2}
    assert Counter(await hosts_of(right)) == {node2: 2, node3: 2}


async def test_a_pin_lands_where_it_says_and_moves_no_round(names: Names, client: GatewayClient) -> None:
    """KERNEL_REMOTE_HOST decides the host, and the next kernel goes where it would have gone without the pin."""
    first = await host_of(await client.start_kernel())
    following = names[(names.index(first) + 1) % NODES]
    for _ in range(2):
        for host in (first, following):
            kernel = await client.start_kernel(env=pin(host))
            assert await host_of(kernel) == host
            await kernel.delete()
    assert await host_of(await client.start_kernel()) == following


async def test_a_pin_outside_the_hosts_is_refused(nodes: Nodes, names: Names, client: GatewayClient) -> None:
    """A pin to a host that is none of the kernel's is 403 and names those that are; nothing starts."""
    with pytest.raises(GatewayError) as refused:
        await client.start_kernel(env=pin("elsewhere.lab.test"))
    assert refused.value.status == 403
    assert "elsewhere.lab.test" in refused.value.reason
    for host in names:
        assert host in refused.value.reason
    with pytest.raises(GatewayError) as malformed:
        await client.start_kernel(env=pin("-oProxyCommand=touch"))
    assert malformed.value.status == 400
    assert count_kernels(nodes).total() == 0


async def test_an_operator_may_allow_any_pin(names: Names, extra_gateway: MakeGateway, client_of: ClientOf) -> None:
    """With EG_DISTRIBUTED_ALLOW_ANY_HOST a pin reaches hosts outside the kernel's; the balancer doesn't."""
    client = client_of(extra_gateway("any", env={"EG_DISTRIBUTED_ALLOW_ANY_HOST": "true"}, hosts=[names[0]]))
    assert await host_of(await client.start_kernel(env=pin(names[2]))) == names[2]
    assert await hosts_of(await start_one_by_one(client, 2)) == [names[0], names[0]]


async def test_a_failed_start_leaves_no_count(
    nodes: Nodes, names: Names, least: Gateway, frugal: GatewayClient
) -> None:
    """Kernels that failed to start on one host don't keep later ones away from it."""
    least.add_kernelspec("doomed", kernelspec(argv=script("exit 1")))
    for _ in range(3):
        with pytest.raises(GatewayError, match=names[0]):
            await frugal.start_kernel("doomed", env=pin(names[0]))
    await start_one_by_one(frugal, 6)
    assert count_kernels(nodes) == dict.fromkeys(names, 2)


async def test_a_start_that_its_host_failed_leaves_no_count(
    names: Names, extra_gateway: MakeGateway, extra_node: MakeNode, client_of: ClientOf
) -> None:
    """Starts that a host could not take, since it was down, don't keep later ones away once it is back."""
    spare = extra_node("spare")
    env = {"EG_LOAD_BALANCING_ALGORITHM": "least-connection", "EG_DISTRIBUTED_RETRY_AFTER": "0"}
    client = client_of(extra_gateway("counting", env=env, hosts=[spare.name, names[0]]))
    spare.kill()
    for _ in range(3):
        with pytest.raises(GatewayError, match=spare.name) as failed:
            await client.start_kernel(env=pin(spare.name))
        assert failed.value.status == 503
    spare.start()
    await (await client.start_kernel(env=pin(spare.name))).delete()
    landed = Counter(await hosts_of(await start_one_by_one(client, 4)))
    assert landed == {spare.name: 2, names[0]: 2}


async def test_a_failed_start_shifts_no_other_host(
    nodes: Nodes, names: Names, gateway: Gateway, client: GatewayClient
) -> None:
    """A kernel that fails by its own fault is tried on one host only, and the rest stay evenly spread."""
    gateway.add_kernelspec("doomed", kernelspec(argv=script("exit 1"), remote_hosts=",".join(names)))
    with pytest.raises(GatewayError) as failed:
        await client.start_kernel("doomed")
    assert failed.value.status == 500
    assert sum(host in failed.value.reason for host in names) == 1
    await start_one_by_one(client, 3)
    assert count_kernels(nodes) == dict.fromkeys(names, 1)


async def test_a_host_that_is_down_is_passed_over(
    names: Names, extra_gateway: MakeGateway, extra_node: MakeNode, client_of: ClientOf
) -> None:
    """A start whose turn falls on a host that is down, or on a name that resolves to nothing, lands on the next one."""
    spare = extra_node("spare")
    hosts = [spare.name, "nowhere.lab.test", names[0]]
    gateway = extra_gateway("passing", hosts=hosts)
    gateway.add_kernelspec("only", plain(gateway, remote_hosts=spare.name))
    client = client_of(gateway)
    assert await host_of(await client.start_kernel("only")) == spare.name
    await client.close_kernels()
    spare.kill()
    assert await hosts_of(await start_one_by_one(client, 2)) == [names[0], names[0]]
    with pytest.raises(GatewayError) as failed:
        await client.start_kernel("only")
    assert failed.value.status == 503
    assert spare.name in failed.value.reason
    spare.start()
    assert await host_of(await client.start_kernel("only")) == spare.name
