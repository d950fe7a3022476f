"""Hosts that take no login: starts pass over them, and a pin to one says why and what to do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import pytest_asyncio

from eg_distributed.settings import Distributed
from lab import Gateway, Lab, Node
from lab.faults import add
from tests.integration.client import GatewayClient, GatewayError, host_of
from tests.integration.conftest import NODES, own_name
from tests.integration.kernelspecs import plain

pytestmark = [pytest.mark.timeout(180), pytest.mark.lab(nodes=NODES)]

Nodes = Sequence[Node]
DEADLINE = Distributed.request_timeout.default_value
"""Seconds after which a host that hangs is left; `connect_timeout` is the same."""
BAD_HOSTS = ("hanging", "refusing", "untrusted", "unwelcoming", "nowhere")
WORDS = {
    "hanging": ("no SSH login", "no answer within 5 s", "check that the host is up"),
    "refusing": ("connection refused", "check that sshd runs"),
    "untrusted": ("host key", "{known_hosts}"),
    "unwelcoming": ("refused to log in", "public key", "authorized_keys"),
    "nowhere": ("name does not resolve", "check remote_hosts"),
}
"""What the error about each bad host must say: the cause, and what to do."""


FAULTS = {"hanging": "pause", "refusing": "refuse", "unwelcoming": "key-removed"}


@pytest.fixture
def faulty(gateway_with: Callable[..., Gateway]) -> Gateway:
    """A gateway for this file, so that what it remembers of failed hosts disturbs no other test."""
    return gateway_with(env={"EG_DISTRIBUTED_KEEPALIVE_INTERVAL": "2", "EG_DISTRIBUTED_KEEPALIVE_COUNT": "3"})


@pytest_asyncio.fixture
async def faulty_client(faulty: Gateway) -> AsyncIterator[GatewayClient]:
    async with GatewayClient(faulty.url) as client:
        yield client


@pytest.fixture(scope="module")
def bad_hosts(lab: Lab) -> Iterator[dict[str, Node]]:
    """Nodes that are about to take no login, each for another reason."""
    made = {name: lab.add_node(own_name(name)) for name in FAULTS}
    made["untrusted"] = lab.add_node(own_name("untrusted"), trusted=False)
    yield made
    for node in made.values():
        node.remove()


@dataclass(frozen=True)
class Bad:
    """A host that takes no login during a test: why, and its full name."""

    kind: str
    host: str


@pytest.fixture
def bad(
    request: pytest.FixtureRequest, lab: Lab, bad_hosts: dict[str, Node], nodes: Nodes, faulty: Gateway
) -> Iterator[Bad]:
    """Such a host (`nowhere` is no node), and `faulty` has the kernelspec `via`: it may run there or on the first node."""
    kind: str = request.param
    if kind == "untrusted" and lab.driver == "local":
        pytest.skip(
            "a local lab's gateways find nodes by the ssh_config of those that they trust: others have no name there"
        )
    host = bad_hosts[kind].name if kind in bad_hosts else f"{kind}.lab.test"
    faulty.add_kernelspec("via", plain(faulty, remote_hosts=f"{host},{nodes[0].name}"))
    with add(lab, FAULTS[kind], [bad_hosts[kind]]) if kind in FAULTS else contextlib.nullcontext():
        yield Bad(kind, host)


@pytest.mark.parametrize("bad", BAD_HOSTS, indirect=True)
async def test_a_start_without_a_pin_passes_over_a_host_that_takes_no_login(
    bad: Bad, faulty: Gateway, faulty_client: GatewayClient, nodes: Nodes
) -> None:
    """A kernel whose first host can't be logged in to starts on the next one, one deadline later at most."""
    began = time.monotonic()
    kernel = await faulty_client.start_kernel("via")
    assert time.monotonic() - began < DEADLINE + 4
    assert await host_of(kernel) == nodes[0].name
    assert f"{bad.host} could not take it" in faulty.logs(), "the bad host was never tried"


@pytest.mark.parametrize("bad", BAD_HOSTS, indirect=True)
async def test_a_pin_to_a_host_that_takes_no_login_fails_with_cause_and_remedy(
    bad: Bad, faulty: Gateway, faulty_client: GatewayClient
) -> None:
    """A kernel pinned to a host that can't be logged in to fails with 503: the text names host, cause and remedy."""
    began = time.monotonic()
    with pytest.raises(GatewayError) as raised:
        await faulty_client.start_kernel("via", {"KERNEL_REMOTE_HOST": bad.host})
    assert time.monotonic() - began < DEADLINE + 2
    assert raised.value.status == 503
    known_hosts = faulty.exec(["sh", "-c", 'echo "$HOME/.ssh/known_hosts"']).check().stdout.strip()
    for word in (bad.host, *WORDS[bad.kind]):
        assert word.format(known_hosts=known_hosts).lower() in raised.value.reason.lower()
