"""A kernel's life through a gateway: cells, interrupts, restarts, death and end, and what is left of it: nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import uuid
from collections.abc import Sequence

import pytest

from lab import Gateway, Node
from tests.integration.client import GatewayClient, GatewayError, Kernel, host_of
from tests.integration.conftest import NODES, ClientOf, MakeGateway
from tests.integration.kernelspecs import SPECS, argv_of, kernelspec, plain, script
from tests.integration.looks import kernel_files, kernel_sockets, listening, processes, zombies
from tests.until import MACHINE_SECONDS, until, until_in_thread

pytestmark = pytest.mark.lab(nodes=NODES)

Nodes = Sequence[Node]
Names = tuple[str, ...]
ALONE = pytest.mark.lab(nodes=NODES, alone=True)
"""For promises of seconds: another worker's kernels would take this machine's processors meanwhile."""

PID = "__import__('os').getpid()"
SLEEP = "print('begin', flush=True)\nimport time\ntime.sleep(60)\nprint('end')"


@SPECS
async def test_a_cell_runs(client: GatewayClient, spec: str) -> None:
    """Output on both streams, in order, a value, an error that leaves the kernel usable."""
    kernel = await client.start_kernel(spec)
    result = await kernel.execute("import sys\nfor n in range(3): print(n)\nprint('no', file=sys.stderr)\n6 * 7")
    assert (result.status, result.stdout, result.stderr, result.text) == ("ok", "0\n1\n2\n", "no\n", "42")
    failed = await kernel.execute("1 / 0")
    assert (failed.status, failed.error) == ("error", "ZeroDivisionError")
    assert await kernel.evaluate("'ünï' + 'cödé'") == "ünïcödé"
    model = await kernel.model()
    assert model["name"] == spec
    assert model["connections"] == 1


@SPECS
async def test_an_interrupt_ends_a_cell_and_nothing_else(client: GatewayClient, spec: str) -> None:
    """KeyboardInterrupt in the cell under way; variables survive, and so does the kernel's process."""
    kernel = await client.start_kernel(spec)
    await kernel.execute("x = 123")
    pid = await kernel.evaluate(PID)
    for _ in range(2):
        cell = await kernel.begin(SLEEP)
        await cell.printed("begin")
        await kernel.interrupt()
        assert (await cell.result(10)).error == "KeyboardInterrupt"
    assert await kernel.evaluate("x + 1") == 124
    assert await kernel.evaluate(PID) == pid


async def test_an_interrupt_reaches_the_cells_subprocess(nodes: Nodes, client: GatewayClient) -> None:
    """As in a terminal: a program that the cell runs is interrupted with it."""
    kernel = await client.start_kernel()
    node = await node_of(nodes, kernel)
    cell = await kernel.begin("import subprocess\nprint('begin', flush=True)\nsubprocess.run(['sleep', '61'])")
    await cell.printed("begin")
    await until_in_thread("the subprocess is there", lambda: "sleep 61" in processes(node).values())
    await kernel.interrupt()
    assert (await cell.result(10)).error == "KeyboardInterrupt"
    assert "sleep 61" not in processes(node).values()


@SPECS
async def test_a_cell_may_ask(client: GatewayClient, spec: str) -> None:
    """input() and getpass() reach the client and get its answers."""
    kernel = await client.start_kernel(spec)
    cell = await kernel.begin(
        "import getpass\nname = input('who? ')\nword = getpass.getpass('word? ')\nprint(name, word)",
        stdin=["Grace", "hopper"],
    )
    assert (await cell.result(20)).stdout == "Grace hopper\n"
    assert cell.prompts == ["who? ", "word? "]


@pytest.mark.timeout(300)
@SPECS
async def test_a_hundred_megabytes_of_output_arrive_whole(client: GatewayClient, spec: str) -> None:
    """100 MB on iopub, sent as fast as the kernel can: every byte, once, in order; the kernel answers afterwards."""
    kernel = await client.start_kernel(spec)
    received, digest = 0, hashlib.sha256()

    def take(name: str, text: str) -> None:
        nonlocal received
        received += len(text)
        digest.update(text.encode())

    # Fewer messages than ZMQ's high-water mark: beyond 1000, a kernel itself drops what nobody had a processor to take.
    chunks, size = 800, 128 * 1024
    code = f"""
import hashlib, sys
digest = hashlib.sha256()
for number in range({chunks}):
    text = (f"{{number:07d}} " * {size // 8})[:-1] + chr(10)
    digest.update(text.encode())
    sys.stdout.write(text)
    sys.stdout.flush()
"""
    result = await kernel.execute(code, timeout=240, on_stream=take, keep=False)
    assert result.status == "ok"
    assert received == chunks * size
    assert digest.hexdigest() == await kernel.evaluate("digest.hexdigest()")


@SPECS
async def test_a_restart_stays_in_place(nodes: Nodes, gateway: Gateway, client: GatewayClient, spec: str) -> None:
    """Same host, same id, same endpoints at the gateway, same websocket; a new process without the old variables."""
    kernel = await client.start_kernel(spec)  # without a pin, which would keep it there by itself
    await kernel.execute("x = 123")
    host, pid, sockets = await host_of(kernel), await kernel.evaluate(PID), socket_names(gateway)
    assert len(sockets) == 5
    for _ in range(2):
        await kernel.restart()
        assert kernel.closed is None
        assert await host_of(kernel) == host
        assert (await kernel.execute("x")).error == "NameError"
    assert await kernel.evaluate(PID) != pid
    assert socket_names(gateway) == sockets
    assert [model["id"] for model in await client.list_kernels()] == [kernel.id]
    node = await node_of(nodes, kernel)
    assert len(kernel_files(node)) == 1


async def test_a_restart_has_the_clients_values_again(nodes: Nodes, client: GatewayClient) -> None:
    """What the request said goes for each start of the kernel: its values, and its pin."""
    kernel = await client.start_kernel(env={"KERNEL_REMOTE_HOST": nodes[1].name, "KERNEL_MARK": "mine"})
    await kernel.restart()
    assert await host_of(kernel) == nodes[1].name
    assert await kernel.evaluate("__import__('os').environ['KERNEL_MARK']") == "mine"


async def test_a_restart_ends_a_kernel_that_does_not_listen(client: GatewayClient) -> None:
    """A kernel that is busy and ignores SIGTERM is killed for the restart."""
    kernel = await client.start_kernel()
    cell = await kernel.begin(
        "import signal, time\nfor s in (signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_IGN)\n"
        "print('begin', flush=True)\ntime.sleep(600)"
    )
    await cell.printed("begin")
    await kernel.restart()
    assert await kernel.evaluate("1 + 1") == 2


@SPECS
async def test_a_shutdown_leaves_nothing(nodes: Nodes, gateway: Gateway, client: GatewayClient, spec: str) -> None:
    """No process (not the launcher's listener nor a cell's children), file, socket, zombie or port is left."""
    before = sum(map(zombies, nodes))
    kernel = await client.start_kernel(spec)
    node = await node_of(nodes, kernel)
    await kernel.execute("import subprocess\nchild = subprocess.Popen(['sleep', '62'])")
    assert any("sleep 62" in args for args in processes(node).values())
    assert len(kernel_files(node)) == 1
    assert len(socket_names(gateway)) == 5
    await kernel.delete()
    await until_in_thread("processes are gone", lambda: not processes(node))
    await until_in_thread("files are gone", lambda: not kernel_files(node))
    await until_in_thread("sockets are gone", lambda: not kernel_sockets(gateway))
    assert await client.list_kernels() == []
    await until_in_thread("no zombie is left", lambda: sum(map(zombies, nodes)) <= before)
    with pytest.raises(GatewayError) as gone:
        await kernel.model()
    assert gone.value.status == 404


@pytest.mark.usefixtures("own_network")
async def test_no_port_but_ssh_and_http(nodes: Nodes, gateway: Gateway, client: GatewayClient) -> None:
    """While kernels run: 22 on every node, the HTTP port at the gateway, and nothing else towards the network."""
    kernels = [await client.start_kernel() for _ in nodes]
    for kernel in kernels:
        await kernel.execute("1")
    assert [listening(node) for node in nodes] == [{22}] * 3
    assert listening(gateway) == {8888}
    assert listening(gateway, loopback=True) == set()


@pytest.mark.usefixtures("own_network")
async def test_nobody_signals_a_launchers_kernel_from_the_network(nodes: Nodes, client: GatewayClient) -> None:
    """The launcher's listener, which obeys whoever connects, is ended as soon as the launcher has answered."""
    kernel = await client.start_kernel("python_distributed_eg", env={"KERNEL_REMOTE_HOST": nodes[0].name})
    await kernel.execute("1")
    attack = """
import json, socket, sys
for port in map(int, sys.argv[2:]):
    with socket.create_connection((sys.argv[1], port), 5) as sock:
        sock.sendall(json.dumps({"signum": 9}).encode())
"""
    ports = listening(nodes[0]) - {22}
    nodes[1].exec(["python3", "-c", attack, nodes[0].name, *map(str, ports)])
    await until_in_thread("the launcher is alone", lambda: len(processes(nodes[0])) == 1)
    assert (await kernel.execute("6 * 7")).text == "42"


@ALONE
@SPECS
async def test_a_kernel_that_dies_is_restarted_at_once(nodes: Nodes, client: GatewayClient, spec: str) -> None:
    """A crash is pushed: clients hear `restarting` well before Enterprise Gateway's 3 s poll, three times in a row.

    Their websockets work with the new kernel, although each start of a launcher signs with a new key.
    """
    kernel = await client.start_kernel(spec, env={"KERNEL_REMOTE_HOST": nodes[2].name})
    for round_ in range(3):
        pid = await kernel.evaluate(PID)
        kernel.states.clear()
        began = time.monotonic()
        cell = await kernel.begin("import os; os._exit(9)")
        await kernel.wait_state("restarting", 10)
        assert time.monotonic() - began < 1.5, f"round {round_}"
        await kernel.handshake(30)
        assert not cell.partial.reply
        assert await kernel.evaluate(PID) != pid
        assert await host_of(kernel) == nodes[2].name
    assert len(await client.list_kernels()) == 1


async def test_a_kernel_that_is_killed_with_no_client_ends(nodes: Nodes, client: GatewayClient) -> None:
    """Enterprise Gateway's own rule: with nobody connected, a dead remote kernel is shut down instead of restarted."""
    kernel = await client.start_kernel()
    node = await node_of(nodes, kernel)
    await kernel.disconnect()

    async def unwatched() -> bool:
        return bool((await kernel.model())["connections"] == 0)

    await until("the websocket's end is seen", unwatched, MACHINE_SECONDS, pause=0.1)
    (pid,) = [pid for pid, args in processes(node).items() if "ipykernel_launcher" in args]
    node.exec(["kill", "-9", str(pid)]).check()

    async def gone() -> bool:
        return await client.list_kernels() == []

    await until("the kernel is gone", gone, MACHINE_SECONDS, pause=0.1)


# -- kernels behind wrappers, and of other kinds ------------------------------------------------------------------------

_RUN = "import subprocess, sys; "
WRAPPERS = {
    "conda run": ["python3", "-c", _RUN + "sys.exit(subprocess.call(sys.argv[1:]))"],
    "setsid": ["setsid", "--wait"],
    "srun": ["python3", "-c", _RUN + "sys.exit(subprocess.Popen(sys.argv[1:], start_new_session=True).wait())"],
    "login shell": ["bash", "-lc", '"$0" "$@"; exit $?'],
    "timeout": ["timeout", "600", "nice"],
    "left alone": ["sh", "-c", 'nohup setsid "$0" "$@" & sleep 4'],
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=list(WRAPPERS))
async def test_a_kernel_behind_a_wrapper_lives_as_any_other(
    nodes: Nodes, gateway: Gateway, client: GatewayClient, wrapper: list[str]
) -> None:
    """Interrupts reach the kernel and keep its variables; a restart, its death and its end leave neither it nor its wrapper."""
    gateway.add_kernelspec("wrapped", kernelspec(argv=[*wrapper, *argv_of(gateway, "python_distributed")]))
    kernel = await client.start_kernel("wrapped")
    node = await node_of(nodes, kernel)

    def pids() -> set[int]:
        return {
            pid for pid, args in processes(node).items() if args.rpartition(" -f ")[0].endswith("ipykernel_launcher")
        }

    await kernel.execute("x = 123")
    for code in (SLEEP, "print('begin', flush=True)\nwhile True: pass"):
        cell = await kernel.begin(code)
        await cell.printed("begin")
        await kernel.interrupt()
        assert (await cell.result(10)).error == "KeyboardInterrupt"
    assert await kernel.evaluate("x + 1") == 124
    pid = await kernel.evaluate(PID)
    cell = await kernel.begin("print('begin', flush=True)\nwhile True: pass")
    await cell.printed("begin")
    await kernel.restart()
    assert (await kernel.execute("x")).error == "NameError"
    assert pid not in pids()
    kernel.states.clear()
    pid = await kernel.evaluate(PID)
    await kernel.begin("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    await kernel.wait_state("restarting", 20)
    await kernel.handshake(30)
    assert await kernel.evaluate(PID) != pid
    cell = await kernel.begin("print('begin', flush=True)\nwhile True: pass")
    await cell.printed("begin")
    await kernel.delete()
    await until_in_thread("processes are gone", lambda: not processes(node))


async def test_a_kernel_that_dies_says_how_in_its_cell(client: GatewayClient) -> None:
    """Its exit code, its host and its last words are the running cell's stderr, before the kernel is restarted."""
    kernel = await client.start_kernel()
    host = await host_of(kernel)
    # Two cells: ipykernel takes what goes to its stderr, and a thread of its own passes it on to the log.
    said = await kernel.begin("import os; _ = os.write(2, b'LAST WORDS\\n')")
    await said.printed("LAST WORDS", 20, to="stderr")
    cell = await kernel.begin("print('begin', flush=True); os._exit(3)")
    await cell.printed("LAST WORDS", 20, to="stderr")
    await kernel.wait_state("restarting", 20)
    told = "".join(text for name, text in cell.partial.streams if name == "stderr")
    assert f"The kernel exited with code 3 on {host}." in told


async def test_a_working_directory_of_another_user_is_no_obstacle(client: GatewayClient) -> None:
    """A notebook server of root sends /root with every start."""
    kernel = await client.start_kernel(env={"KERNEL_WORKING_DIR": "/root"})
    assert await kernel.evaluate("__import__('os').getcwd()") == await kernel.evaluate(
        "__import__('os').environ['HOME']"
    )


async def test_a_kernel_that_takes_no_unix_sockets_gets_ports(gateway: Gateway, client: GatewayClient) -> None:
    """It aborts on them, and runs on loopback ports within the same start; so does the next one, from the first."""
    python = argv_of(gateway, "python_distributed")[0]
    code = """
import json, os, sys
with open(sys.argv[1]) as file: transport = json.load(file)["transport"]
print(transport, flush=True)
if transport == "ipc": sys.exit("RuntimeError: Invalid argument")
os.execv(sys.executable, [sys.executable, "-m", "ipyk" + "ernel_launcher", "-f", sys.argv[1]])
"""
    gateway.add_kernelspec("portly", kernelspec(argv=[python, "-c", code, "{connection_file}"]))
    for _ in range(2):
        kernel = await client.start_kernel("portly")
        assert (await kernel.execute("6 * 7")).text == "42"
        await kernel.restart()
        assert (await kernel.execute("6 * 7")).text == "42"


async def test_a_small_range_of_ports_is_enough(
    gateway: Gateway, extra_gateway: MakeGateway, client_of: ClientOf
) -> None:
    """A restart takes the ports of the kernel that it replaces, whose last connections were closed just now."""
    spec = plain(gateway, transport="tcp", port_range="29000..29005")
    narrow = extra_gateway("narrow", env={"EG_MIN_PORT_RANGE_SIZE": "5"}, kernelspecs={"narrow": spec})
    kernel = await client_of(narrow).start_kernel("narrow")
    for _ in range(3):
        assert (await kernel.execute("6 * 7")).text == "42"
        await kernel.restart()
    assert (await kernel.execute("6 * 7")).text == "42"


# -- starts that fail --------------------------------------------------------------------------------------------------


@ALONE
async def test_a_kernel_that_exits_tells_why_at_once(names: Names, gateway: Gateway, client: GatewayClient) -> None:
    """HTTP 500 right away, with host, exit code and the kernel's own last lines."""
    text = "echo 'first line'; echo 'ModuleNotFoundError: no <luck> at all: \"ünï\"' >&2; exit 3"
    gateway.add_kernelspec("exits", kernelspec(argv=script(text)))
    await client.start_kernel()  # so that a first connection is not what is measured
    began = time.monotonic()
    with pytest.raises(GatewayError) as failed:
        await client.start_kernel("exits")
    assert time.monotonic() - began < 2
    assert failed.value.status == 500
    for part in ("exited with code 3", "first line", 'ModuleNotFoundError: no <luck> at all: "ünï"'):
        assert part in failed.value.reason
    assert any(host in failed.value.reason for host in names)


@ALONE
async def test_a_wrong_interpreter_is_named_at_once(names: Names, gateway: Gateway, client: GatewayClient) -> None:
    """HTTP 500 within half a second that names host and path; one that lacks the kernel's module says so in its own words."""
    await client.start_kernel()
    for argv, expected in (
        (["/opt/nowhere/python", "-f", "{connection_file}"], "/opt/nowhere/python"),
        (["/etc/passwd", "-f", "{connection_file}"], "/etc/passwd"),
        (["python3", "-m", "no_such_kernel", "-f", "{connection_file}"], "No module named no_such_kernel"),
    ):
        gateway.add_kernelspec("wrong", kernelspec(argv=argv))
        taken = []
        for _ in names:
            began = time.monotonic()
            with pytest.raises(GatewayError) as failed:
                await client.start_kernel("wrong")
            taken.append(time.monotonic() - began)
            assert failed.value.status == 500
            assert expected in failed.value.reason
            assert any(host in failed.value.reason for host in names)
        assert min(taken) < 0.5, taken


SLOW_AGAIN = 'if rm "/tmp/$KERNEL_ID" 2>/dev/null; then sleep 3; else touch "/tmp/$KERNEL_ID"; fi; exec "$@"'
"""Every second start of a kernel takes three seconds."""


async def test_an_interrupt_during_a_restart_is_answered(gateway: Gateway, client: GatewayClient) -> None:
    """While a kernel is being started again an interrupt is refused with its host and the reason, and is no unknown error."""
    argv = ["/bin/sh", "-c", SLOW_AGAIN, "sh", *argv_of(gateway, "python_distributed")]
    gateway.add_kernelspec("slow-again", kernelspec(argv=argv))
    kernel = await client.start_kernel("slow-again")
    restarting = asyncio.create_task(kernel.restart())
    refused: list[GatewayError] = []
    while not restarting.done():
        try:
            await kernel.interrupt()
        except GatewayError as error:
            refused.append(error)
        await asyncio.wait({restarting}, timeout=0.1)
    await restarting
    assert refused
    assert {error.status for error in refused} == {503}
    assert all("being started again" in error.reason and "node" in error.reason for error in refused)
    assert await kernel.evaluate("6 * 7") == 42


async def test_a_restart_that_fails_has_the_status_of_its_error(client: GatewayClient) -> None:
    """The restart of a kernel that does not exist is a 404, as all else that is asked of one is, and not an unknown error."""
    await client.start_kernel()  # nothing of ours is loaded before the first
    path = f"/api/kernels/{uuid.uuid4()}"
    for action in ("interrupt", "restart"):
        with pytest.raises(GatewayError) as failed:
            await client.request("POST", f"{path}/{action}")
        assert failed.value.status == 404


async def test_a_launcher_that_fails_after_its_answer_tells_why(gateway: Gateway, client: GatewayClient) -> None:
    """Enterprise Gateway's launcher says where its kernel listens before it does; if that fails, its end is seen."""
    argv = [*argv_of(gateway, "python_distributed_eg"), "--kernel-class-name", "no_such.Kernel"]
    gateway.add_kernelspec("classless", kernelspec(argv=argv))
    began = time.monotonic()
    with pytest.raises(GatewayError, match="No module named 'no_such'") as failed:
        await client.start_kernel("classless")
    assert failed.value.status == 500
    assert time.monotonic() - began < 10


async def test_a_kernelspec_without_placeholders_is_refused(gateway: Gateway, client: GatewayClient) -> None:
    """A kernelspec that never says where its kernel listens is a 400 that says what to add."""
    gateway.add_kernelspec("placeless", kernelspec(argv=["python3", "-m", "ipykernel_launcher"]))
    with pytest.raises(GatewayError, match="connection_file") as failed:
        await client.start_kernel("placeless")
    assert failed.value.status == 400


async def test_a_kernel_that_never_listens_times_out(
    names: Names, gateway: Gateway, client: GatewayClient, extra_gateway: MakeGateway, client_of: ClientOf
) -> None:
    """HTTP 504 with host, timeout and output, after KERNEL_LAUNCH_TIMEOUT, or else EG_KERNEL_LAUNCH_TIMEOUT."""
    silent = {"silent": kernelspec(argv=script("echo 'waiting for nothing'; exec sleep 1000"))}
    gateway.add_kernelspec("silent", silent["silent"])
    impatient = extra_gateway("impatient", env={"EG_KERNEL_LAUNCH_TIMEOUT": "3"}, kernelspecs=silent)
    for asking, env, seconds in ((client, {"KERNEL_LAUNCH_TIMEOUT": "2"}, 2), (client_of(impatient), {}, 3)):
        await asking.start_kernels(NODES, env={"KERNEL_LAUNCH_TIMEOUT": "60"})  # the first ones wait for connections
        began = time.monotonic()
        with pytest.raises(GatewayError) as failed:
            await asking.start_kernel("silent", env=env)
        assert seconds - 0.5 < time.monotonic() - began < seconds + 5
        assert failed.value.status == 504
        assert "waiting for nothing" in failed.value.reason
        assert f"{seconds} s" in failed.value.reason
        assert any(host in failed.value.reason for host in names)


async def test_a_setting_that_enterprise_gateway_refuses_is_said(gateway: Gateway, client: GatewayClient) -> None:
    """Its own check of a range of ports comes with its words, not as an unknown error."""
    gateway.add_kernelspec("ranged", plain(gateway, port_range="40000..40011"))
    with pytest.raises(GatewayError, match=r"40000\.\.40011") as failed:
        await client.start_kernel("ranged")
    assert failed.value.status == 500


async def test_users_are_authorized(gateway: Gateway, client: GatewayClient) -> None:
    """authorized_users and unauthorized_users of the kernelspec decide by KERNEL_USERNAME; others get 403."""
    spec = plain(gateway, authorized_users="bob,alice,bad_guy", unauthorized_users="bad_guy")
    gateway.add_kernelspec("guarded", spec)
    for user in ("bad_guy", "stranger"):
        with pytest.raises(GatewayError, match=user) as refused:
            await client.start_kernel("guarded", env={"KERNEL_USERNAME": user})
        assert refused.value.status == 403
    kernel = await client.start_kernel("guarded", env={"KERNEL_USERNAME": "alice"})
    assert await kernel.evaluate("__import__('os').environ['KERNEL_USERNAME']") == "alice"


# -- helpers -----------------------------------------------------------------------------------------------------------


async def node_of(nodes: Nodes, kernel: Kernel) -> Node:
    """Return the node that *kernel* runs on."""
    host = await host_of(kernel)
    return next(node for node in nodes if node.name == host)


def socket_names(gateway: Gateway) -> list[str]:
    """Return the paths of kernels' sockets at *gateway*."""
    found = [
        f"{folder}/{name}" for folder in kernel_sockets(gateway) for name in gateway.exec(["ls", folder]).stdout.split()
    ]
    return sorted(os.path.normpath(path) for path in found)
