"""Enterprise Gateway's options, and what its operator sets: as an Enterprise Gateway without us has them."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from lab import Gateway, Node
from tests.integration.client import GatewayClient
from tests.integration.conftest import NODES, ClientOf, MakeGateway
from tests.integration.kernelspecs import plain
from tests.integration.looks import environment, home_of, nothing_ran
from tests.until import until, until_in_thread

Nodes = Sequence[Node]
METRICS_PORT, METRICS_FILE = 19118, "/tmp/gateway.prom"
# A gateway shows its numbers from its first kernel on, for as long as it runs.
NUMBERS = (f"port:tcp 127.0.0.1:{METRICS_PORT}*", f"file:{METRICS_FILE}")
pytestmark = pytest.mark.lab(nodes=NODES, leaks=NUMBERS)
SCRAPE = f"""
import urllib.request
with urllib.request.urlopen("http://127.0.0.1:{METRICS_PORT}/metrics", timeout=10) as answer:
    print(answer.read().decode())
"""


async def test_idle_kernels_are_culled(extra_gateway: MakeGateway, client_of: ClientOf) -> None:
    """Enterprise Gateway's culling ends an idle kernel and spares a busy one, in both kinds of kernelspec."""
    manager = "--RemoteMappingKernelManager"
    options = [f"{manager}.cull_idle_timeout=4", f"{manager}.cull_interval=1", f"{manager}.cull_connected=True"]
    client = client_of(extra_gateway("culling", options=options))
    busy = await client.start_kernel()
    cell = await busy.begin("import time\nfor n in range(600): print(n, flush=True); time.sleep(0.1)")
    for spec in ("python_distributed", "python_distributed_eg"):
        idle = await client.start_kernel(spec)
        await idle.execute("1")
        await idle.disconnect()

    async def culled() -> bool:
        return [model["id"] for model in await client.list_kernels()] == [busy.id]

    await until("the idle kernels are culled", culled, seconds=40, pause=0.1)
    assert not cell.partial.reply
    await busy.interrupt()
    assert (await cell.result()).error == "KeyboardInterrupt"


async def test_the_working_directory(nodes: Nodes, client: GatewayClient) -> None:
    """KERNEL_WORKING_DIR is where the kernel starts; one that the node lacks falls back to home; default is home."""
    home = home_of(nodes[0])
    for wanted, expected in (("/usr/share", "/usr/share"), ("/no/such/folder", home), (None, home)):
        env = {"KERNEL_REMOTE_HOST": nodes[0].name, **({"KERNEL_WORKING_DIR": wanted} if wanted else {})}
        kernel = await client.start_kernel(env=env)
        assert await kernel.evaluate("__import__('os').getcwd()") == expected


async def test_an_alternate_interrupt_signal(gateway: Gateway, client: GatewayClient) -> None:
    """EG_ALTERNATE_SIGINT in the kernelspec is what an interrupt sends."""
    gateway.add_kernelspec("alternate", plain(gateway, env={"EG_ALTERNATE_SIGINT": "SIGUSR2"}))
    kernel = await client.start_kernel("alternate")
    cell = await kernel.begin(
        "import signal, time\ngot = []\nsignal.signal(signal.SIGUSR2, lambda *a: got.append(a[0]))\n"
        "print('begin', flush=True)\nwhile not got: time.sleep(0.05)\nprint(*got)"
    )
    await cell.printed("begin")
    await kernel.interrupt()
    assert (await cell.result(20)).stdout.split() == ["begin", str(int(signal.SIGUSR2))]


@pytest.fixture
def configured(nodes: Nodes, gateway_with: Callable[..., Gateway]) -> Iterator[Gateway]:
    """A gateway whose operator has set what goes to kernels, a folder for logs, and secrets that must not go anywhere."""
    env = {
        "EG_INHERITED_ENVS": "SITE,LD_MOON",
        "EG_CLIENT_ENVS": "COLOUR",
        "SITE": "paris $(touch /tmp/ran)",
        "DB_PASSWORD": "secret",
        "EG_WEBHOOK_PASSWORD": "secret",
        "EG_REMOTE_PWD": "secret",
        "EG_KERNEL_LOG_DIR": "/tmp/kernel-logs",
        "EG_DISTRIBUTED_METRICS_PORT": str(METRICS_PORT),
        "EG_DISTRIBUTED_METRICS_TEXTFILE": METRICS_FILE,
        "EG_DISTRIBUTED_METRICS_INTERVAL": "1",
    }
    yield gateway_with(env=env)
    for node in nodes:
        node.exec(["rm", "-rf", "/tmp/kernel-logs"]).check()


@pytest_asyncio.fixture
async def operated(configured: Gateway) -> AsyncIterator[GatewayClient]:
    """A client of `configured`."""
    async with GatewayClient(configured.url) as found:
        yield found


async def test_the_gateways_environment_stays_there(nodes: Nodes, configured: Gateway, operated: GatewayClient) -> None:
    """With and without `env` in the request a kernel gets inherited_envs, client_envs and KERNEL_* alone."""
    sent = {"COLOUR": "blue", "SHAPE": "round", "KERNEL_EXTRA": "1", "EG_REMOTE_PWD": "x", "LD_PRELOAD": "/nowhere.so"}
    without = await environment(await operated.start_kernel(env=None))
    with_env = await environment(await operated.start_kernel(env=sent))
    for found in (without, with_env):
        assert "secret" not in found.values()
        assert found["SITE"] == "paris $(touch /tmp/ran)"
        assert found["HOME"] in {home_of(node) for node in nodes}
        assert not {"DB_PASSWORD", "EG_WEBHOOK_PASSWORD", "EG_REMOTE_PWD", "EG_REMOTE_HOSTS", "LD_MOON"} & found.keys()
        assert not {name for name in found if name.startswith(("JPY_PARENT", "SSH_"))}
        assert str(Path(configured.python).parent) not in found["PATH"].split(":")
    assert "COLOUR" not in without
    assert (with_env["COLOUR"], with_env["KERNEL_EXTRA"]) == ("blue", "1")
    assert not {"SHAPE", "LD_PRELOAD"} & with_env.keys()
    assert nothing_ran(nodes, configured)


async def test_the_operators_folder_for_logs(nodes: Nodes, operated: GatewayClient) -> None:
    """EG_KERNEL_LOG_DIR: what a kernel printed is found there on its node, for its user alone, also after its end."""
    kernel = await operated.start_kernel(env={"KERNEL_REMOTE_HOST": nodes[0].name})
    await kernel.execute("import os; os.system('echo said on stdout')\nos.write(2, b'said on stderr')")
    await kernel.delete()
    path = f"/tmp/kernel-logs/kernel-{kernel.id}.log"
    log = nodes[0].exec(["cat", path]).check().stdout
    assert "said on stderr" in log
    assert nodes[0].exec(["stat", "-c", "%a", path]).stdout == "600\n"


async def test_numbers_for_prometheus(nodes: Nodes, configured: Gateway, operated: GatewayClient) -> None:
    """The port and the file say what the gateway's kernels do, and the port is open to the gateway's own machine alone."""
    kernel = await operated.start_kernel(env={"KERNEL_REMOTE_HOST": nodes[0].name})
    await kernel.execute("print('x' * 10_000)")
    host = f'host="{nodes[0].name}"'
    scraped = configured.exec([configured.python, "-c", SCRAPE]).check().stdout
    assert f'jupyter_distributed_kernels{{{host},state="alive"}} 1.0' in scraped
    assert f"jupyter_distributed_host_unreachable{{{host}}} 0.0" in scraped
    assert "process_resident_memory_bytes" in scraped
    counted = next(
        line for line in scraped.splitlines() if line.startswith(f"jupyter_distributed_start_seconds_count{{{host}")
    )
    assert float(counted.split()[-1]) >= 1

    def written() -> bool:
        text = configured.exec(["cat", METRICS_FILE]).check().stdout
        assert "process_resident" not in text
        return f'jupyter_distributed_relayed_bytes_total{{direction="from_kernel",{host}}}' in text or (
            f'jupyter_distributed_relayed_bytes_total{{{host},direction="from_kernel"}}' in text
        )

    await until_in_thread("the file follows", written)
    listening = configured.exec(["cat", "/proc/net/tcp"]).check().stdout
    assert f" 0100007F:{METRICS_PORT:04X} " in listening
    assert f" 00000000:{METRICS_PORT:04X} " not in listening
