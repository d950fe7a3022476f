"""At the edges: clients that leave, messages that are large, errors that are odd, and what lies beside kernel.json."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import httpx
import pytest

from lab import Gateway, Lab, Node
from tests.integration.client import ChannelsClosed, GatewayClient, GatewayError
from tests.integration.conftest import NODES, ClientOf, MakeGateway
from tests.integration.kernelspecs import argv_of, kernelspec, script
from tests.integration.looks import processes
from tests.until import until_in_thread

pytestmark = pytest.mark.lab(nodes=NODES)

Nodes = Sequence[Node]


def asleep(nodes: Nodes, seconds: int) -> bool:
    """Return True if a `sleep` of *seconds* runs on any of *nodes*."""
    return any(f"sleep {seconds}" in processes(node).values() for node in nodes)


async def test_a_start_whose_client_leaves_is_cancelled(nodes: Nodes, gateway: Gateway, client: GatewayClient) -> None:
    """A client with a time-out of its own leaves no process and no kernel, whether it asks for a kernel or for a session."""
    argv = ["/bin/sh", "-c", 'sleep 71; exec "$@"', "sh", *argv_of(gateway, "python_distributed")]
    gateway.add_kernelspec("slow", kernelspec(argv=argv))
    kernel = {"name": "slow"}
    await (await client.start_kernel()).delete()  # a gateway's first request begins before our adapter is loaded
    session = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": kernel}
    for path, asked in (("kernels", {**kernel, "env": {}}), ("kernels", kernel), ("sessions", session)):
        async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
            asking = asyncio.ensure_future(http.post(f"{gateway.url}/api/{path}", json=asked))
            await until_in_thread("the start is under way", lambda: asleep(nodes, 71))
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await until_in_thread("nothing of it runs", lambda: not asleep(nodes, 71))
        assert await client.list_kernels() == []
    # What is asked again begins from the start, with an id of the client's own as well.
    assert await (await client.start_kernel()).evaluate("1 + 1") == 2


async def test_a_large_message_reaches_the_kernel(client: GatewayClient) -> None:
    """As of a file in an upload widget: more than tornado's own limit of 10 MiB."""
    kernel = await client.start_kernel()
    size = 12_000_000
    result = await kernel.execute(f"print(len('{'x' * size}'))")
    assert (result.status, result.stdout) == ("ok", f"{size}\n")


async def test_a_message_above_the_limit_is_told_in_the_log(extra_gateway: MakeGateway, client_of: ClientOf) -> None:
    """Its websocket is closed, and the gateway's log names the kernel, both sizes and the setting."""
    small = extra_gateway("small", env={"EG_DISTRIBUTED_WEBSOCKET_MESSAGE_LIMIT": "1000000"})
    client = client_of(small)
    kernel = await client.start_kernel()
    await kernel.execute("1")
    with pytest.raises(ChannelsClosed):
        await kernel.execute("'" + "x" * 2_000_000 + "'")
    (line,) = [line for line in small.logs().splitlines() if "a client's message has" in line]
    assert kernel.id in line
    assert "at most 1000000 are allowed" in line
    assert "Distributed.websocket_message_limit" in line


async def test_a_kernels_odd_last_words_are_in_the_status_line(gateway: Gateway, client: GatewayClient) -> None:
    """`<`, colours and letters beyond Latin-1 cost the reason nothing else; the body has them as they are."""
    said = "in <frozen runpy> \\033[31mred\\033[0m \\342\\200\\246"
    gateway.add_kernelspec("odd", kernelspec(argv=script(f"printf '{said}'; exit 3")))
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        answer = await http.post(f"{gateway.url}/api/kernels", json={"name": "odd"})
    assert answer.status_code == 500
    assert "exited with code 3" in answer.reason_phrase
    assert answer.reason_phrase.endswith("in (frozen runpy) red ?")
    assert "<frozen runpy>" in answer.json()["reason"]


async def test_a_helper_beside_kernel_json_comes_along(nodes: Nodes, gateway: Gateway, client: GatewayClient) -> None:
    """`{resource_dir}` in argv works on every host with a folder that the gateway alone has; restarts bring what has changed."""
    argv = ["/bin/sh", "{resource_dir}/start.sh", *argv_of(gateway, "python_distributed")]
    gateway.add_kernelspec("helped", kernelspec(argv=argv))
    folder = await resource_dir(gateway, "helped")
    put(gateway, f"{folder}/start.sh", 'HELPED=1 exec "$@"')
    for node in nodes:
        kernel = await client.start_kernel("helped", env={"KERNEL_REMOTE_HOST": node.name})
        assert await kernel.evaluate("__import__('os').environ['HELPED']") == "1"
    put(gateway, f"{folder}/start.sh", 'HELPED=22 exec "$@"')
    await kernel.restart()
    assert await kernel.evaluate("__import__('os').environ['HELPED']") == "22"
    gateway.exec(["rm", f"{folder}/start.sh"]).check()
    with pytest.raises(GatewayError, match=f"a copy of the kernelspec's folder {folder} on the gateway"):
        await client.start_kernel("helped")
    with pytest.raises(GatewayError, match=r"start\.sh"):
        await kernel.restart()
    assert (await kernel.model())["execution_state"] == "dead"  # and not "busy", which it was told last


async def test_a_folder_that_is_too_large_names_itself(extra_gateway: MakeGateway, client_of: ClientOf) -> None:
    """The error has the folder, its size, the limit and what to do."""
    small = extra_gateway("tight", env={"EG_DISTRIBUTED_FOLDER_LIMIT": "1000"})
    argv = ["/bin/sh", "{resource_dir}/start.sh", *argv_of(small, "python_distributed")]
    small.add_kernelspec("large", kernelspec(argv=argv))
    folder = await resource_dir(small, "large")
    put(small, f"{folder}/data", "x" * 5000)
    with pytest.raises(GatewayError) as caught:
        await client_of(small).start_kernel("large")
    for word in (folder, "at most 1000 bytes", "Distributed.folder_limit", '"bring_folder": false'):
        assert word in caught.value.reason


def put(gateway: Gateway, path: str, text: str) -> None:
    """Write a file on the gateway's disk."""
    gateway.exec(["sh", "-c", 'printf "%s\\n" "$2" > "$1"', "sh", path, text]).check()


async def resource_dir(gateway: Gateway, name: str) -> str:
    """Return the folder of a kernelspec on the gateway's disk."""
    found = gateway.exec([gateway.python, "-m", "jupyter", "kernelspec", "list", "--json"]).check().stdout
    return str(json.loads(found)["kernelspecs"][name]["resource_dir"])


# -- more clients than one sshd has descriptors ------------------------------------------------------------------------

_CLIENTS = """
import glob, json, os, resource, select, socket, sys, time

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
where = os.environ.get("EG_DISTRIBUTED_RUNTIME_DIR") or glob.glob("/tmp/eg-distributed-*")[0]
folders = sorted(glob.glob(where + "/*/"))
clients = []
began = time.monotonic()
for _ in range(int(sys.argv[1])):
    for folder in folders:
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(folder + "c-1")  # waits where so many are waiting already
waiting = {each.fileno(): each for each in clients}
poll = select.epoll()
for number in waiting:
    poll.register(number, select.EPOLLIN)
while waiting and time.monotonic() - began < 25:  # ZMQ gives up who does not greet within 30
    for number, _ in poll.poll(1):
        if waiting[number].recv(10)[:1] == b"\\xff":  # ZMQ greets who connects
            del waiting[number]
            poll.unregister(number)
print(json.dumps([len(folders), len(clients), len(waiting), time.monotonic() - began]))
"""


def sshd_limits(node: Node) -> list[int]:
    """Return how many files each sshd of *node* may have open, those of its sessions included."""
    script = "for pid in $(pgrep sshd); do grep 'Max open files' /proc/$pid/limits; done"
    return [int(line.split()[3]) for line in node.exec(["sh", "-c", script]).stdout.splitlines()]


@pytest.mark.timeout(180)
async def test_more_clients_than_one_sshd_has_descriptors(
    lab: Lab, nodes: Nodes, extra_gateway: MakeGateway, client_of: ClientOf
) -> None:
    """With systemd's 1024 files for each sshd, 200 clients at once reach each of ten kernels on one node; none is refused."""
    if lab.driver == "local":
        pytest.skip("the nodes of a local lab have an SSH server with this machine's limits")
    node = nodes[0]
    gateway = extra_gateway("many", hosts=[node.name])
    kernels = [await client_of(gateway).start_kernel() for _ in range(10)]
    assert set(sshd_limits(node)) == {1024}
    before = len(sshd_limits(node))
    ran = await asyncio.to_thread(gateway.exec, [gateway.python, "-c", _CLIENTS, "200"], timeout=60)
    folders, clients, waiting, seconds = json.loads(ran.check().stdout)
    assert (folders, clients, waiting) == (len(kernels), 200 * len(kernels), 0), f"after {seconds:.1f} s"
    assert len(sshd_limits(node)) > before
    assert await kernels[-1].evaluate("1 + 1") == 2
    log = gateway.logs()
    assert "cannot be opened" not in log
    assert "SSH connections carry its channels" in log
