"""Nodes as they are found: logins that talk, other shells, sshd that forbids, an old Python. Kernels run there all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
import pytest_asyncio

from lab import EnvironmentUnfit, Gateway, Lab, Node
from lab.faults import add
from tests.integration.client import GatewayClient, GatewayError, host_of, start_on
from tests.integration.conftest import own_name
from tests.integration.faults import PrintingCell, cut_ssh, never_declared_dead, reconnected
from tests.integration.looks import home_of, no_kernels_left

pytestmark = [pytest.mark.timeout(180), pytest.mark.lab]

NO_FORWARDING: Final = ("AllowTcpForwarding no", "AllowStreamLocalForwarding no")
KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "noisy": {"noisy": True},
    "noisy-csh": {"noisy": True, "shell": "csh"},
    "noisy-fish": {"noisy": True, "shell": "fish"},
    "csh": {"shell": "csh"},
    "fish": {"shell": "fish"},
    "one-session": {"sshd_options": ["MaxSessions 1"]},
    "two-sessions": {"sshd_options": ["MaxSessions 2"]},
    "no-forwarding": {"sshd_options": NO_FORWARDING},
    "nothing-allowed": {"sshd_options": ["DisableForwarding yes", "MaxSessions 1"], "noisy": True},
    "old-python": {"python": "3.9"},
    "old-no-forwarding": {"python": "3.9", "sshd_options": NO_FORWARDING},
    "masked": {},
}
"""What `Lab.add_node` makes of each; `masked` gets its umask of 077 below."""
UNFIT: Final = "no-python"
KEEPALIVE: Final = 2.0


class Hostile:
    """One node of each kind that the lab's driver can make, by kind."""

    def __init__(self, lab: Lab, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        self._lab = lab
        self._found: dict[str, Node | EnvironmentUnfit] = {}
        self._wanted = wanted

    def make(self) -> None:
        """Make them at once."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._make, self._wanted))

    def _make(self, name: str) -> None:
        try:
            self._found[name] = self._lab.add_node(own_name(name), **self._wanted[name])
        except EnvironmentUnfit as error:
            self._found[name] = error

    @property
    def nodes(self) -> list[Node]:
        """Those that there are."""
        return [found for found in self._found.values() if isinstance(found, Node)]

    def __getitem__(self, name: str) -> Node:
        found = self._found[name]
        if isinstance(found, EnvironmentUnfit):
            raise found
        return found


@pytest.fixture(scope="module")
def hostile(lab: Lab) -> Iterator[Hostile]:
    """One node of each kind, gone after this file."""
    found = Hostile(lab, {**KINDS, UNFIT: {"python": "none"}})
    try:
        found.make()
        masked = found["masked"]
        text = masked.exec(["cat", f"{home_of(masked)}/.bashrc"]).stdout
        masked.exec(["sh", "-c", 'printf "%s" "$1" > "$HOME/.bashrc"', "sh", f"umask 077\n{text}"]).check()
        yield found
    finally:
        for node in found.nodes:
            node.remove()


@pytest.fixture(scope="module")
def gateway_to_all(lab: Lab, hostile: Hostile) -> Iterator[Gateway]:
    """A gateway whose hosts are the hostile nodes; it notices a dead connection within seconds."""
    env = {"EG_DISTRIBUTED_KEEPALIVE_INTERVAL": f"{KEEPALIVE:g}", "EG_DISTRIBUTED_KEEPALIVE_COUNT": "2"}
    gateway = lab.add_gateway(own_name("hostile"), hosts=[node.name for node in hostile.nodes], env=env)
    yield gateway
    gateway.remove()


@pytest_asyncio.fixture
async def client_to_all(gateway_to_all: Gateway) -> AsyncIterator[GatewayClient]:
    async with GatewayClient(gateway_to_all.url) as client:
        yield client


# -- every kind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
async def test_a_kernel_lives_its_whole_life_on_any_node(
    name: str, client_to_all: GatewayClient, hostile: Hostile
) -> None:
    """A kernel starts, executes, is interrupted, restarts in place and shuts down, whatever its node is like."""
    node = hostile[name]
    kernel = await start_on(client_to_all, node)
    assert await host_of(kernel) == node.name
    result = await kernel.execute("import sys\nprint('out')\nprint('err', file=sys.stderr)\nkept = 6 * 7\nkept")
    assert (result.stdout, result.stderr, result.text) == ("out\n", "err\n", "42")
    busy = await kernel.begin("print('on', flush=True)\nimport time\nwhile True: time.sleep(0.1)")
    await busy.printed("on")
    await kernel.interrupt()
    assert (await busy.result(20)).error == "KeyboardInterrupt"
    assert await kernel.evaluate("kept") == 42
    await kernel.restart()
    assert await host_of(kernel) == node.name
    assert await kernel.evaluate("'kept' in globals()") is False
    await kernel.delete()
    await no_kernels_left(node)


@pytest.mark.parametrize("name", ["noisy-fish", "no-forwarding"])
async def test_an_enterprise_gateway_launcher_runs_there_as_well(
    name: str, client_to_all: GatewayClient, hostile: Hostile
) -> None:
    """EG's own launcher finds its way back from a node with another shell, and from one that forbids forwarding."""
    kernel = await start_on(client_to_all, hostile[name], "python_distributed_eg")
    assert await host_of(kernel) == hostile[name].name


@pytest.mark.parametrize(("name", "umask"), [("masked", 0o077), ("csh", 0o022)])
async def test_a_kernel_has_the_umask_of_a_login(
    name: str, umask: int, client_to_all: GatewayClient, hostile: Hostile
) -> None:
    """Files that a user's cells write get the mode that they would get in a login on that node."""
    kernel = await start_on(client_to_all, hostile[name])
    assert await kernel.evaluate("__import__('os').umask(0)") == umask


async def test_a_node_without_python_says_what_to_install(client_to_all: GatewayClient, hostile: Hostile) -> None:
    """A node that has no python3 answers with 503 at once; the text names the host and what to install there."""
    began = time.monotonic()
    with pytest.raises(GatewayError) as raised:
        await start_on(client_to_all, hostile[UNFIT])
    assert time.monotonic() - began < 5
    assert raised.value.status == 503
    assert hostile[UNFIT].name in raised.value.reason
    assert "install python3 (3.9 or later)" in raised.value.reason.lower()


# -- sshd that forbids forwarding ------------------------------------------------------------------------------------


async def test_ten_kernels_share_a_node_that_forbids_forwarding(client_to_all: GatewayClient, hostile: Hostile) -> None:
    """Ten kernels work at once through one SSH channel, and the flood of one delays the others' cells, but breaks none."""
    node = hostile["no-forwarding"]
    kernels = await asyncio.gather(*(start_on(client_to_all, node) for _ in range(10)))
    flooding, others = kernels[0], kernels[1:]
    sums = await asyncio.gather(*(kernel.evaluate(f"sum(range({n}))") for n, kernel in enumerate(kernels)))
    assert sums == [sum(range(n)) for n in range(10)]

    heard = 0

    def hear(_: str, text: str) -> None:
        nonlocal heard
        heard += len(text)

    size, lines = 1 << 16, 400
    code = f"for _ in range({lines}): print('x' * {size - 1})"
    flood = await flooding.begin(code, on_stream=hear, keep=False)
    worst, cells = 0.0, 0
    while not flood.partial.reply:
        began = time.monotonic()
        answers = await asyncio.gather(*(kernel.evaluate("7 * 6") for kernel in others))
        assert answers == [42] * len(others)
        worst, cells = max(worst, time.monotonic() - began), cells + 1
    await flood.result()
    print(f"{heard} bytes of flood, {cells} rounds of {len(others)} cells meanwhile, the worst round {worst:.2f} s")
    assert heard == size * lines
    assert cells >= 1
    assert worst < 10


@pytest.mark.usefixtures("own_network")
@pytest.mark.parametrize("name", ["no-forwarding", "nothing-allowed"])
async def test_cuts_and_an_outage_lose_no_line_where_forwarding_is_forbidden(
    name: str, lab: Lab, gateway_to_all: Gateway, client_to_all: GatewayClient, hostile: Hostile
) -> None:
    """Killed SSH connections and an outage that outlasts the connection lose no line of a printing cell there either."""
    node = hostile[name]
    kernel = await start_on(client_to_all, node)
    async with never_declared_dead(client_to_all, kernel):
        cell = await PrintingCell.begin(kernel, node)
        for _ in range(2):
            earlier = await asyncio.to_thread(cut_ssh, node, gateway_to_all)
            await reconnected(node, gateway_to_all, earlier)
            await cell.progress()
        with add(lab, "partition", [node]):
            await asyncio.sleep(5 * KEEPALIVE)  # how long it lasts, not something that is waited for
        await cell.progress()
        await cell.complete()
