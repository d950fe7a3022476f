"""The handle of a kernel: what is known of it, at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eg_distributed import kernel as kernel_module
from eg_distributed.agent.processes import start_time
from eg_distributed.cluster import Cluster
from eg_distributed.errors import HostUnresponsive, KernelStartFailed, NoHostAvailable
from eg_distributed.kernel import RemoteKernel, State, logs_command
from eg_distributed.launcher_files import Shipping
from eg_distributed.protocol import AgentIdentity, Missing, Ping
from eg_distributed.settings import Distributed
from tests.until import until

from .agents import DEADLINE, STANDIN, alive, end_agents, standin, written
from .clusters import answers, gone, start, where
from .conftest import Hosts
from .ssh_server import Sshd


def watched(kernel: RemoteKernel) -> list[RemoteKernel]:
    """Return the list to which the kernel is added when it dies."""
    dead: list[RemoteKernel] = []
    kernel.on_exit = dead.append
    return dead


async def cut(sshd: Sshd, kernel: RemoteKernel) -> None:
    """Cut the network to the kernel's host, and wait until that is seen."""
    sshd.wire.refuse()
    sshd.wire.cut()
    await until("the cut is seen", lambda: kernel.state is State.UNKNOWN)


async def known(kernel: RemoteKernel) -> None:
    """Wait until it is known again whether the kernel lives."""
    await until("it is known again", lambda: kernel.state is not State.UNKNOWN)


async def test_a_cut_makes_a_kernel_unknown_and_never_dead(cluster: Cluster, hosts: Hosts) -> None:
    """ALIVE, UNKNOWN, ALIVE: nobody restarts a kernel because of the network."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    dead = watched(kernel)
    assert kernel.state is State.ALIVE
    for _ in range(3):
        await cut(sshd, kernel)
        await sshd.wire.open()
        await known(kernel)
        assert kernel.state is State.ALIVE
        assert await answers(kernel)
    assert dead == []


async def test_a_death_is_told_at_once(cluster: Cluster, hosts: Hosts) -> None:
    """The node says so, with code and last words; nobody polls."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1", "say:so long")
    dead = watched(kernel)
    os.kill(kernel.pid, signal.SIGKILL)
    await until("the death is told", lambda: dead)
    assert dead == [kernel]
    assert (kernel.state, kernel.exit_code, kernel.exit_log) == (State.DEAD, -9, "so long\n")
    await until("nothing is counted", lambda: cluster.count("node1") == 0)


async def test_a_death_is_said_in_the_log(cluster: Cluster, hosts: Hosts, caplog: pytest.LogCaptureFixture) -> None:
    """Host, signal and last words of a kernel that was not asked to end, once; nothing of one that was."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1", "say:LAST WORDS")
    os.kill(kernel.pid, signal.SIGKILL)
    await until("the death is told", lambda: kernel.death)
    assert kernel.death.startswith("The kernel was killed by signal 9 on node1.")
    assert kernel.death.endswith("Its last output:\nLAST WORDS")

    def said() -> list[str]:
        return [each.getMessage() for each in caplog.records if "LAST WORDS" in each.getMessage()]

    await until("it is said", said)  # by the cluster's thread, behind the death itself
    (line,) = said()
    assert line.startswith(f"kernel k1: {kernel.death.partition(chr(10))[0]}\n    LAST WORDS\nAll of its output: ")
    assert line.endswith(f"{logs_command('k1')} (`--previous` once it was started again)")
    kernel = await start(cluster, "k1", "node1", "say:ASKED")
    assert kernel.death == ""
    assert await cluster.run(kernel.signal(signal.SIGTERM))
    await until("it has ended", lambda: kernel.state is State.DEAD)
    kernel = await start(cluster, "k1", "node1", "say:ASKED")
    kernel.expect_end()
    os.kill(kernel.pid, signal.SIGTERM)
    await until("it has ended", lambda: kernel.state is State.DEAD)
    kernel = await start(cluster, "k1", "node1", "say:ASKED")
    await cluster.run(kernel.stop())
    kernel = await start(cluster, "k1", "node1", "say:ASKED")
    await cluster.run(cluster.release("k1"))
    assert not [each for each in caplog.records if "ASKED" in each.getMessage()]


async def test_a_death_during_a_cut_is_told_afterwards(cluster: Cluster, hosts: Hosts) -> None:
    """Unknown as long as nobody can know, then dead with its code, and told once."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    dead = watched(kernel)
    await cut(sshd, kernel)
    os.kill(kernel.pid, signal.SIGKILL)
    await gone(kernel.pid)
    assert kernel.state is State.UNKNOWN
    await sshd.wire.open()
    await until("the death is told", lambda: dead)
    assert (kernel.state, kernel.exit_code, len(dead)) == (State.DEAD, -9, 1)


async def test_a_host_that_stays_away_is_given_up(cluster: Cluster, hosts: Hosts, settings: Distributed) -> None:
    """With `restart-elsewhere`, kernels are dead after host_lost_after; one that was replaced is ended when its host is back."""
    settings.host_lost_policy, settings.host_lost_after = "restart-elsewhere", 0.5
    sshd, _ = await hosts("node1", "node2")
    kernel = await start(cluster, "k1", "node1 node2")
    dead = watched(kernel)
    pid = kernel.pid
    await cut(sshd, kernel)
    await until("it is given up", lambda: dead)
    assert kernel.lost
    assert alive(pid)
    assert where(await start(cluster, "k1", "node1 node2")) == "node2"
    await sshd.wire.open()
    await gone(pid)
    assert await answers(kernel)


async def test_a_lost_host_that_is_back_in_time_keeps_its_kernel(
    cluster: Cluster, hosts: Hosts, settings: Distributed
) -> None:
    """A kernel that was given up goes on if its host is back before a replacement has started, also after one that failed."""
    settings.host_lost_policy, settings.host_lost_after = "restart-elsewhere", 0.5
    first, second = await hosts("node1", "node2")
    kernel = await start(cluster, "k1", "node1 node2")
    dead = watched(kernel)
    pid = kernel.pid
    await cut(first, kernel)
    await until("it is given up", lambda: dead)
    second.wire.refuse()
    second.wire.cut()
    await until("the other host is away", lambda: not cluster.host("node2").node.connected.is_set())
    with pytest.raises(NoHostAvailable):
        await start(cluster, "k1", "node1 node2")
    assert (kernel.state, cluster.kernels) == (State.DEAD, {"k1": kernel})
    await first.wire.open()
    await until("it goes on", lambda: kernel.state is State.ALIVE)
    assert await answers(kernel)
    assert (kernel.pid, kernel.lost, dead) == (pid, False, [kernel])
    await cluster.run(kernel.stop())
    assert not alive(pid)


async def long_after(cluster: Cluster) -> None:
    """Have *cluster* look for lost kernels as in two hours of seconds, without any time for its hosts to change."""

    async def look() -> None:
        now = asyncio.get_running_loop().time()
        for second in range(7200):
            cluster._give_up_lost(now + second)

    await cluster.run(look())


@pytest.mark.parametrize("why", ["policy", "one host", "pin", "all away"])
async def test_kernels_are_not_given_up_because_the_gateway_cannot_see(
    cluster: Cluster, hosts: Hosts, settings: Distributed, why: str
) -> None:
    """Unless the operator wants it, another host is reached, and the kernel could start there, its host is waited for."""
    settings.host_lost_policy = "wait" if why == "policy" else "restart-elsewhere"
    sshd, other = await hosts("node1", "node2")
    kernel = await start(
        cluster, "k1", "node1" if why == "one host" else "node1 node2", pin="node1" if why == "pin" else None
    )
    dead = watched(kernel)
    await start(cluster, "k2", "node2")
    await cut(sshd, kernel)
    if why == "all away":
        other.wire.refuse()
        other.wire.cut()
        await until("the other host is away", lambda: not cluster.host("node2").node.connected.is_set())
    await long_after(cluster)
    assert (kernel.state, dead) == (State.UNKNOWN, [])
    await sshd.wire.open()
    await until("it goes on", lambda: kernel.state is State.ALIVE)
    assert await answers(kernel)


async def test_a_kernel_is_not_given_up_for_its_own_machine(
    cluster: Cluster, hosts: Hosts, settings: Distributed
) -> None:
    """Another name of the kernel's machine, by which that is still reached, is nowhere else: the kernel lives there."""
    settings.host_lost_policy, settings.host_lost_after = "restart-elsewhere", 0.1
    (sshd,) = await hosts("node1")
    await sshd.be_called("alias", settings)
    kernel = await start(cluster, "k1", "node1 alias")
    assert where(kernel) == "node1"
    await cluster.run(cluster.list_kernels("alias"))
    dead = watched(kernel)
    await cut(sshd, kernel)

    async def is_steady() -> bool:
        return cluster.host("alias").node.steady_for > settings.host_lost_after

    await until("the other name has been reached for long enough", lambda: cluster.run(is_steady()))
    await long_after(cluster)
    assert (kernel.state, dead) == (State.UNKNOWN, [])
    await sshd.wire.open()
    await until("it goes on", lambda: kernel.state is State.ALIVE)


async def test_signals_arrive(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """An interrupt reaches the kernel on its node; to a dead one nothing is sent."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1", f"note:{short / 'note'}")
    assert await cluster.run(kernel.signal(signal.SIGINT)) is True
    assert await written(short / "note") == "SIGINT"
    await cluster.run(kernel.stop())
    assert await cluster.run(kernel.signal(signal.SIGINT)) is False


async def test_a_signal_to_a_host_that_is_away_is_an_error(cluster: Cluster, hosts: Hosts) -> None:
    """Who interrupts hears that it did not arrive, at once."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    await cut(sshd, kernel)
    with pytest.raises(HostUnresponsive, match=r"^Host node1: It has not answered since .*; the kernel is kept"):
        await cluster.run(kernel.signal(signal.SIGINT))
    await sshd.wire.open()


async def test_an_interrupt_that_was_refused_never_strikes(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """A host hangs, whoever interrupts is told, and nothing of it arrives when the host goes on."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1", f"note:{short / 'note'}")
    cluster.settings.request_timeout = 0.3
    sshd.wire.freeze()
    with pytest.raises(
        HostUnresponsive, match=r"^Host node1: It has not answered since .*, so the interrupt was not sent"
    ):
        await cluster.run(kernel.signal(signal.SIGINT))
    cluster.settings.request_timeout = 5.0
    sshd.wire.thaw()
    await until("its host answers", lambda: kernel.state is State.ALIVE)
    await cluster.run(kernel.make_sure("nothing"))  # answered behind all that was sent before
    assert not (short / "note").exists()
    assert await cluster.run(kernel.signal(signal.SIGINT)) is True
    assert await written(short / "note") == "SIGINT"


async def test_an_interrupt_hits_no_other_kernel(cluster: Cluster, hosts: Hosts) -> None:
    """One whose kernel is forgotten, or started elsewhere, before its slow host has answered, is not sent at all."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    sshd.wire.freeze()
    interrupting = asyncio.create_task(asyncio.to_thread(cluster.submit(kernel.signal(signal.SIGINT)).result, 30))
    node = kernel.node
    assert node is not None
    await until("the host is asked whether it is there", lambda: bool(node._replies))
    kernel.attempt = "another"
    sshd.wire.thaw()
    assert await interrupting is False


async def test_what_could_not_be_done_well_is_refused_first(cluster: Cluster, hosts: Hosts) -> None:
    """`make_sure` raises for a host that is away, with what was not done, and for nothing that runs, or has ended."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    await cluster.run(kernel.make_sure("it was not begun"))
    await cut(sshd, kernel)
    with pytest.raises(HostUnresponsive, match="so it was not begun; the kernel is kept"):
        await cluster.run(kernel.make_sure("it was not begun"))
    await sshd.wire.open()
    await until("its host is back", lambda: kernel.state is State.ALIVE)
    await cluster.run(kernel.stop())
    sshd.wire.refuse()
    sshd.wire.cut()
    await cluster.run(kernel.make_sure("it was not begun"))


async def test_stop_escalates_and_says_the_code(cluster: Cluster, hosts: Hosts) -> None:
    """A kernel that ignores SIGTERM is killed after the grace."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1", "ignore:SIGTERM")
    await cluster.run(kernel.stop(grace=0.2))
    assert (kernel.state, kernel.exit_code) == (State.DEAD, -9)
    assert not alive(kernel.pid)


async def test_the_log_can_be_read(cluster: Cluster, hosts: Hosts) -> None:
    """What a kernel printed is there for its operator, from any position on."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1", "say:one", "say:two")
    whole = await cluster.run(cluster.read_log_part("node1", "k1", kernel.attempt, 0))
    assert (whole.text, whole.ended) == ("one\ntwo\n", False)
    rest = await cluster.run(cluster.read_log_part("node1", "k1", kernel.attempt, 4))
    assert (rest.text, rest.position) == ("two\n", whole.position)


async def test_a_request_reaches_the_kernel_whole(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """Environment of kernelspec and client, folder, key and signature scheme arrive on the node."""
    sshds = await hosts("node1")
    (short / "work").mkdir()
    kernel = await start(
        cluster,
        "k1",
        "node1",
        f"facts:{short / 'facts'}",
        spec_env={"WHERE": "${NODE}"},
        env={"KERNEL_USERNAME": "$NODE"},
        cwd=str(short / "work"),
        key="secret",
        signature_scheme="hmac-sha512",
    )
    facts = await written(short / "facts")
    assert (facts["env"]["WHERE"], facts["env"]["KERNEL_USERNAME"]) == ("node1", "$NODE")
    assert facts["cwd"] == str(short / "work")
    info = json.loads(Path(facts["argv"][1]).read_text())
    assert (info["key"], info["signature_scheme"]) == ("secret", "hmac-sha512")
    assert (kernel.connection_info["key"], kernel.connection_info["signature_scheme"]) == ("secret", "hmac-sha512")
    assert kernel.pid == facts["pid"]
    assert sshds[0].wire.connections == 1


@pytest.mark.parametrize(("language", "transport"), [("python", "ipc"), ("Python", "ipc"), ("R", "tcp"), ("", "tcp")])
async def test_the_transport_follows_the_language(
    cluster: Cluster, hosts: Hosts, short: Path, language: str, transport: str
) -> None:
    """UNIX sockets where they are known to work, loopback ports elsewhere; the client sees no difference."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1", f"facts:{short / 'facts'}", language=language)
    info = json.loads(Path((await written(short / "facts"))["argv"][1]).read_text())
    assert info["transport"] == transport
    assert kernel.connection_info["transport"] == "ipc"
    assert await answers(kernel)


@pytest.mark.parametrize("when", ["at once", "late"])
async def test_a_kernel_that_takes_no_sockets_gets_ports(
    cluster: Cluster,
    hosts: Hosts,
    short: Path,
    when: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that aborts on UNIX sockets, ready or not, is started on ports in the same start, and from the first next time."""
    monkeypatch.setattr(kernel_module, "PROVING", 10.0)
    await hosts("node1")
    runs = short / "runs"
    argv = standin(f"count:{runs}", f"ports:{when}")
    kernel = await start(cluster, "k1", "node1", argv=argv)
    dead = watched(kernel)
    assert await answers(kernel)
    assert runs.read_text() == "xx"
    (warning,) = [each.getMessage() for each in caplog.records if "loopback ports" in each.getMessage()]
    assert '"transport": "tcp"' in warning
    # The same kernelspec, although its argv has the kernel's id and a client's arguments.
    await start(cluster, "k2", "node1", argv=[*argv, "say:k2"], spec_argv=tuple(argv))
    assert runs.read_text() == "xxx"
    assert dead == []


async def test_a_kernel_that_fails_on_ports_as_well_says_why(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """What was wrong was not the transport: the error is the kernel's, and nothing is concluded from it."""
    await hosts("node1")
    argv = standin(f"count:{short / 'runs'}", "say:no module", "leave:1")
    for runs in ("xx", "xxxx"):
        with pytest.raises(KernelStartFailed, match=r"exited with code 1 before it was ready.*no module"):
            await start(cluster, "k1", "node1", argv=argv)
        assert (short / "runs").read_text() == runs
    assert cluster.kernels == {}


@pytest.mark.parametrize("params", [{"transport": "ipc"}, {"argv_name": "ipykernel"}])
async def test_a_known_transport_is_not_changed(
    cluster: Cluster, hosts: Hosts, short: Path, params: dict[str, str]
) -> None:
    """A kernelspec that names its transport keeps it, and so does ipykernel, which takes UNIX sockets."""
    await hosts("node1")
    name = params.pop("argv_name", "other")
    argv = [*standin(f"count:{short / 'runs'}", "leave:1"), f"say:{name}"]
    with pytest.raises(KernelStartFailed):
        await start(cluster, "k1", "node1", argv=argv, **params)
    assert (short / "runs").read_text() == "x"


async def test_a_kernel_that_ends_soon_after_its_start_gets_ports_the_next_time(cluster: Cluster, hosts: Hosts) -> None:
    """Its sockets were open and it counted as ready: the restart is what mends it."""
    await hosts("node1")
    argv = standin("ports:late")
    kernel = await start(cluster, "k1", "node1", argv=argv)
    await until("it has ended", lambda: kernel.state is State.DEAD)
    assert await answers(await start(cluster, "k1", "node1", argv=argv))


async def test_a_launchers_answer_makes_the_connection(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """A launcher's answer is decrypted here and used on the node; nonsense, and another kernel's, is ignored."""
    await hosts("node1")
    inner = await start(cluster, "inner", "node1", f"facts:{short / 'facts'}")
    info = json.loads(Path((await written(short / "facts"))["argv"][1]).read_text())
    heard: list[str] = []

    def decrypt(payload: str) -> dict[str, object]:
        heard.append(payload)
        if payload == "nonsense":
            raise ValueError(payload)
        return {**info, "key": "the launcher's", "pid": inner.pid}

    argv = [*STANDIN, "{response_address}", "answer:nonsense", "answer:proper"]
    kernel = await start(cluster, "k1", "node1", argv=argv, transport="launcher", decrypt=decrypt)
    assert heard == ["nonsense", "proper"]
    assert kernel.key == "the launcher's"
    assert await answers(kernel)


def gated(gate: Path, *arguments: str) -> list[str]:
    """Return the argv of a stand-in that does nothing until somebody has opened and closed the FIFO *gate*."""
    os.mkfifo(gate)
    return [STANDIN[0], "-ISc", f"open({str(gate)!r}).read();exec(open({STANDIN[2]!r}).read())", *arguments]


async def test_a_launchers_answer_during_a_cut_is_not_lost(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """A launcher answers once; what it says while its node is out of reach arrives when the node is back."""
    (sshd,) = await hosts("node1")
    await start(cluster, "inner", "node1", f"facts:{short / 'facts'}")
    info = json.loads(Path((await written(short / "facts"))["argv"][1]).read_text())
    argv = gated(short / "gate", "{response_address}", "answer:proper", f"note:{short / 'answered'}")
    starting = asyncio.ensure_future(
        start(cluster, "k1", "node1", argv=argv, transport="launcher", decrypt=lambda _: dict(info))
    )
    await until("it is under way", lambda: "k1" in cluster.kernels and cluster.kernels["k1"].pid)
    sshd.wire.refuse()
    sshd.wire.cut()
    with await asyncio.to_thread((short / "gate").open, "w"):
        pass
    await until("the launcher has answered", (short / "answered.set").exists)
    await sshd.wire.open()
    assert await answers(await asyncio.wait_for(starting, DEADLINE))


async def test_a_cut_during_a_start_does_not_end_it(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """A connection that is lost while the kernel comes up is made anew, and the start goes on."""
    (sshd,) = await hosts("node1")
    await start(cluster, "k0", "node1")
    gate = short / "gate"
    starting = asyncio.ensure_future(start(cluster, "k1", "node1", argv=gated(gate, "{connection_file}")))
    await until("it is under way", lambda: "k1" in cluster.kernels and cluster.kernels["k1"].pid)
    sshd.wire.cut()
    await until("the connection is back", lambda: cluster.host("node1").node.connections == 2)
    with await asyncio.to_thread(gate.open, "w"):
        pass
    kernel = await asyncio.wait_for(starting, DEADLINE)
    assert await answers(kernel)
    assert kernel.state is State.ALIVE


async def test_a_second_start_of_a_failing_kernel_tells_its_own_words(cluster: Cluster, hosts: Hosts) -> None:
    """Each attempt has its own log and its own exit."""
    await hosts("node1")
    for word in ("first", "second"):
        with pytest.raises(KernelStartFailed) as failed:
            await start(cluster, "k1", "node1", f"say:{word}", "leave:1")
        assert failed.value.log == f"{word}\n"


async def test_a_folder_that_is_not_there_is_told_in_the_gateways_log(
    cluster: Cluster, hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel starts all the same; who looks for its files learns where it is, and on which host."""
    await hosts("node1")
    await start(cluster, "k1", "node1", cwd="/of/a/laptop")
    (warning,) = [each.getMessage() for each in caplog.records if "started in" in each.getMessage()]
    assert warning.startswith(
        "kernel k1: node1: working directory /of/a/laptop does not exist on this node: started in"
    )


async def test_a_remedy_of_the_nodes_is_the_remedy(cluster: Cluster, hosts: Hosts) -> None:
    """What the node knows better than by the kind of its error comes in place of the general advice."""
    await hosts("node1")
    with pytest.raises(KernelStartFailed, match="not found on the node's PATH") as failed:
        await start(cluster, "k1", "node1", argv=["sitepython", "{connection_file}"])
    assert "/opt/site/bin:${PATH}" in failed.value.remedy


async def test_a_launcher_is_told_what_only_the_gateway_knows(cluster: Cluster, hosts: Hosts, short: Path) -> None:
    """Its start has the host's name, the ports and the attempt in its environment; a plain kernelspec's has none of them."""
    await hosts("node1")
    path = short / "facts"
    shipping = Shipping(files={"x.py": ""}, on_exit=("touch", str(short / "done")))
    kernel = await start(
        cluster, "k1", "node1", f"facts:{path}", shipping=shipping, port_range=(41000, 42999), env={"EG_NODE": "forged"}
    )
    environment = (await written(path))["env"]
    assert environment["EG_NODE"] == "node1"
    assert environment["EG_PORT_RANGE"] == "41000..42999"
    assert environment["EG_ATTEMPT"] == kernel.attempt
    assert environment["KERNEL_ID"] == "k1"
    await cluster.run(cluster.release("k1"))
    await until("what follows its end has run", lambda: (short / "done").exists())
    path.unlink()
    await start(cluster, "k2", "node1", f"facts:{path}")
    assert not {"EG_NODE", "EG_PORT_RANGE", "EG_ATTEMPT"} & set((await written(path))["env"])


# -- agents ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def moved(sshd: Sshd) -> Iterator[None]:
    """Have the host's next agent come up in another folder than the one before."""
    place = sshd.folder / "o"
    sshd.env["XDG_CACHE_HOME"] = str(place)
    try:
        yield
    finally:
        del sshd.env["XDG_CACHE_HOME"]
        end_agents(place)


@contextlib.contextmanager
def another_process() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that may stand for an agent."""
    process = subprocess.Popen(["sleep", "600"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def identity(kernel: RemoteKernel) -> AgentIdentity:
    """Return the kernel's agent's, as another object."""
    assert kernel.agent is not None
    return AgentIdentity(**vars(kernel.agent))


async def test_another_agents_word_is_no_death(
    cluster: Cluster,
    hosts: Hosts,
    settings: Distributed,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent in another folder that has no such kernel makes it UNKNOWN, for as long as it takes; its own finds it again."""
    monkeypatch.setattr("eg_distributed.cluster._TICK", 0.01)
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    pid, dead = kernel.pid, watched(kernel)
    assert kernel.node is not None
    with moved(sshd):
        await cut(sshd, kernel)
        await sshd.wire.open()
        await until("the other agent answers", lambda: "which was in" in caplog.text)
        assert kernel.node.connected.is_set()
        assert kernel.state is State.UNKNOWN
        # Its host is not out of reach, however long ago it was.
        kernel.node.disconnected_at, settings.host_lost_after = -1e6, 0.1
        for asked in (kernel.signal(signal.SIGINT), kernel.stop()):
            with pytest.raises(HostUnresponsive, match="is not the one that has the kernel") as failed:
                await cluster.run(asked)
            assert str(sshd.folder / "o") in str(failed.value)
            assert str(sshd.folder / "eg-distributed") in str(failed.value)
        settings.host_lost_after = 0.0
        sshd.wire.cut()
        node = kernel.node
        await until("it came again", lambda: node.connections == 3)
        await asyncio.wait_for(cluster.run(node.connected.wait()), DEADLINE)
        assert kernel.state is State.UNKNOWN
        assert sum("which was in" in each.getMessage() for each in caplog.records) == 1
    sshd.wire.cut()
    await known(kernel)
    assert (kernel.state, kernel.pid, dead) == (State.ALIVE, pid, [])
    assert alive(pid)
    assert await answers(kernel)


async def test_a_kernel_that_an_ending_agent_has_is_found_later(cluster: Cluster, hosts: Hosts) -> None:
    """UNKNOWN while an agent that ends slowly still has it, then ALIVE again, without another connection."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    assert kernel.node is not None
    agent, dead = (await cluster.run(kernel.node.request(Ping()))).pid, watched(kernel)
    await cut(sshd, kernel)
    os.kill(agent, signal.SIGKILL)
    await gone(agent)
    with another_process() as other:
        (path,) = sshd.folder.glob("eg-distributed/*/k/*/record.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "agent": [other.pid, start_time(other.pid)]}))
        await sshd.wire.open()
        await until("the next agent has spoken", lambda: kernel._elsewhere)
        assert kernel.state is State.UNKNOWN
        with pytest.raises(HostUnresponsive, match=r"An earlier agent in \S+ still has the kernel"):
            await cluster.run(kernel.signal(signal.SIGINT))
    await known(kernel)
    assert (kernel.state, dead, kernel.node.connections) == (State.ALIVE, [], 2)
    assert await answers(kernel)


async def test_an_agent_with_the_same_records_knows(cluster: Cluster, hosts: Hosts) -> None:
    """The next agent in the folder of one that ended has its records: what it does not know is dead."""
    (sshd,) = await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    assert kernel.node is not None
    agent = (await cluster.run(kernel.node.request(Ping()))).pid
    dead = watched(kernel)
    await cut(sshd, kernel)
    os.kill(agent, signal.SIGKILL)
    os.kill(kernel.pid, signal.SIGKILL)
    await gone(agent)
    for record in sshd.folder.glob("eg-distributed/*/k/*/record.json"):
        record.unlink()
    await sshd.wire.open()
    await until("the death is told", lambda: dead)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"id": "other"}, State.UNKNOWN),
        ({"folder": "/other"}, State.DEAD),
        ({"id": "other", "boot": "later"}, State.DEAD),
        ({"id": "other", "boot": ""}, State.UNKNOWN),
        ({"id": "other", "boot": "later", "machine": "other"}, State.UNKNOWN),
        (None, State.UNKNOWN),
    ],
)
async def test_whose_word_counts(cluster: Cluster, hosts: Hosts, changes: dict[str, str] | None, state: State) -> None:
    """A kernel is dead if its folder's agent has none, or its machine was booted since; no other agent's word counts."""
    await hosts("node1")
    kernel = await start(cluster, "k1", "node1")
    assert kernel.node is not None
    kernel.node.agent = None if changes is None else replace(identity(kernel), **changes)
    cluster.call_soon(cluster.hear, Missing("k1"))
    await until("it was heard", lambda: kernel.state is not State.ALIVE)
    assert kernel.state is state
    kernel.node.agent = identity(kernel)  # so that the end of the test finds it


async def test_a_later_process_of_the_gateway_knows_the_agent(clusters: Callable[..., Cluster], hosts: Hosts) -> None:
    """What is kept of a kernel says which agent has it: after the gateway's restart, too, another's word is no death."""
    (sshd,) = await hosts("node1")
    cluster = clusters()
    kernel = await start(cluster, "k1", "node1")
    kept, info, pid = json.loads(json.dumps(kernel.agent_kept)), kernel.connection_info, kernel.pid
    await asyncio.to_thread(cluster.close)
    later = clusters()
    with moved(sshd):
        adopted = later.adopt("k1", "node1", kernel.attempt, info, kept)
        later.serve_adopted()
        await until("the other agent has spoken", lambda: adopted._elsewhere)
        assert adopted.state is State.UNKNOWN
    await known(adopted)
    assert (adopted.state, adopted.pid) == (State.ALIVE, pid)
