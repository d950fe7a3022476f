"""Values that clients and kernelspecs send: they arrive as they are, or are refused, and nothing takes one for a command."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from lab import Gateway, Node
from tests.integration.client import GatewayClient, GatewayError
from tests.integration.conftest import NODES
from tests.integration.kernelspecs import SPECS, kernelspec, plain
from tests.integration.looks import environment, home_of, nothing_ran

pytestmark = pytest.mark.lab(nodes=NODES)

Nodes = Sequence[Node]

NASTY = {
    "KERNEL_QUOTES": """it's "quoted" \\ and \\\\ '' "" \\'""",
    "KERNEL_LINES": "one\ntwo\r\n\tthree\n",
    "KERNEL_COMMAND": "$(touch /tmp/ran) `touch /tmp/ran` ; touch /tmp/ran & | > /tmp/ran < /etc/passwd",
    "KERNEL_REFERENCES": "$HOME ${HOME} ${NOPE:-default} $$ %HOME% {connection_file} {kernel_id} ~ * ? [a]",
    "KERNEL_UNICODE": "naïve 日本語 🚀 \u202e e\u0301 \x01\x7f\u2028",
    "KERNEL_LONG": "x'\"$ü\n" * 682,
    "KERNEL_EMPTY": "",
    "KERNEL_SPACES": "  both ends  ",
}


@SPECS
async def test_a_clients_values_arrive_as_they_are(
    nodes: Nodes, gateway: Gateway, client: GatewayClient, spec: str
) -> None:
    """Quotes, newlines, commands, references and unicode in KERNEL_* arrive byte for byte and run nothing."""
    found = await environment(await client.start_kernel(spec, env=NASTY))
    for name, value in NASTY.items():
        assert found[name] == value, name
    assert nothing_ran(nodes, gateway)


async def test_a_kernelspecs_values_are_expanded_on_the_node_once(
    nodes: Nodes, gateway: Gateway, client: GatewayClient
) -> None:
    """${NAME}, $NAME and ${NAME:-default} come from the node and the client; what is put in is not looked at again."""
    env = {
        "AT_HOME": "${HOME}/lib:$HOME/bin",
        "DEFAULTED": "${NOT_SET:-a default} ${KERNEL_GIVEN:-unused} [${NOT_SET}]",
        "INSERTED": "<${KERNEL_NASTY}>",
        "SHELL_TEXT": "$(touch /tmp/ran) `touch /tmp/ran` ; 'single' \"double\" 5$ $1 $$HOME",
        "SEVERAL_LINES": "a\nb\tc",
        # 100 KiB, in a few bytes more; of a client, Enterprise Gateway takes no value of more than 4096 characters.
        "BIG": "ü'\"`$(\n" * 12800,
        "KERNEL_DEFAULT": "the kernelspec's",
        "KERNEL_OVERRIDDEN": "the kernelspec's",
    }
    sent = {
        "KERNEL_NASTY": "$HOME ${HOME} $(touch /tmp/ran) $$",
        "KERNEL_GIVEN": "given",
        "KERNEL_OVERRIDDEN": "the client's",
    }
    gateway.add_kernelspec("expanding", plain(gateway, env=env))
    kernel = await client.start_kernel("expanding", env={**sent, "KERNEL_REMOTE_HOST": nodes[0].name})
    home = home_of(nodes[0])
    assert len(env["BIG"].encode()) >= 100 * 1024
    expected = {
        "AT_HOME": f"{home}/lib:{home}/bin",
        "DEFAULTED": "a default given []",
        "INSERTED": "<$HOME ${HOME} $(touch /tmp/ran) $$>",
        "SHELL_TEXT": "$(touch /tmp/ran) `touch /tmp/ran` ; 'single' \"double\" 5$ $1 $HOME",
        "SEVERAL_LINES": env["SEVERAL_LINES"],
        "BIG": env["BIG"],
        "KERNEL_DEFAULT": "the kernelspec's",
        "KERNEL_OVERRIDDEN": "the client's",
        **{name: sent[name] for name in ("KERNEL_NASTY", "KERNEL_GIVEN")},
    }
    for _ in ("start", "restart"):
        found = await environment(kernel)
        for name, value in expected.items():
            assert found[name] == value, name
        await kernel.restart()
    assert nothing_ran(nodes, gateway)


async def test_an_argument_is_one_argument(nodes: Nodes, gateway: Gateway, client: GatewayClient) -> None:
    """The kernelspec's argv reaches the kernel word by word, through no shell."""
    words = ["--flag=$(touch /tmp/ran)", "two words", "it's", "$HOME", "`touch /tmp/ran`", "", "{unknown}", "*"]
    code = "import sys; sys.exit(repr(sys.argv[1:-1]))"
    gateway.add_kernelspec("wordy", kernelspec(argv=["python3", "-c", code, *words, "{connection_file}"]))
    with pytest.raises(GatewayError) as failed:
        await client.start_kernel("wordy")
    assert repr(words) in failed.value.reason
    assert nothing_ran(nodes, gateway)


@pytest.mark.parametrize(
    "name",
    ["KERNEL_X;touch /tmp/ran;", "KERNEL_A=B", "KERNEL_ X", "KERNEL_X\n", "KERNEL_X\n\n", "KERNEL_Ü", "KERNEL_$(id)"],
)
async def test_malformed_names_are_refused(nodes: Nodes, gateway: Gateway, client: GatewayClient, name: str) -> None:
    """A name that no environment can hold is a 400 and starts nothing."""
    with pytest.raises(GatewayError) as refused:
        await client.start_kernel(env={name: "value"})
    assert refused.value.status == 400
    assert nothing_ran(nodes, gateway)
    assert await client.list_kernels() == []


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "1e9"])
async def test_a_launch_timeout_that_is_none_is_refused(client: GatewayClient, seconds: str) -> None:
    """A KERNEL_LAUNCH_TIMEOUT by which nothing could be timed is a 400 that names it, and starts nothing."""
    with pytest.raises(GatewayError, match="KERNEL_LAUNCH_TIMEOUT") as refused:
        await client.start_kernel(env={"KERNEL_LAUNCH_TIMEOUT": seconds})
    assert refused.value.status == 400
    assert await client.list_kernels() == []


async def test_an_environment_of_megabytes_is_refused(client: GatewayClient) -> None:
    """More than any system lets a process begin with is a 400, before a host hears of it."""
    with pytest.raises(GatewayError, match="environment has") as refused:
        await client.start_kernel(env={f"KERNEL_{number}": "x" * 4000 for number in range(300)})
    assert refused.value.status == 400


async def test_a_nul_in_a_value_is_refused(client: GatewayClient) -> None:
    """A value that no environment can hold is a 400 too."""
    with pytest.raises(GatewayError, match="KERNEL_X") as refused:
        await client.start_kernel(env={"KERNEL_X": "a\0b"})
    assert refused.value.status == 400


async def test_requests_at_once_keep_their_environments_apart(client: GatewayClient) -> None:
    """Kernels of requests that overlap have the values of their own request, and a later one without any has none of them."""
    names = [f"user{number}" for number in range(6)]
    starts = (client.start_kernel(env={"KERNEL_USERNAME": name, "KERNEL_MARK": name}) for name in names)
    kernels = await asyncio.gather(*starts)
    marks = [await kernel.evaluate("__import__('os').environ['KERNEL_MARK']") for kernel in kernels]
    assert marks == names
    later = await client.start_kernel(env=None)
    assert await later.evaluate("__import__('os').environ.get('KERNEL_MARK')") is None
