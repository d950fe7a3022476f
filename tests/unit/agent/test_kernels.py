"""Kernels on their node, as an agent starts, watches and ends them; the kernel is a stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import socket
import stat
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eg_distributed.agent import kernels as kernels_module
from eg_distributed.agent import log_caps, processes
from eg_distributed.agent.aside import aside
from eg_distributed.agent.kernels import LOG_CAP, RUNNING, TAIL, Kernel
from eg_distributed.agent.processes import OPEN_FILES
from eg_distributed.agent.wrappers import Family
from eg_distributed.link.connect import connect
from eg_distributed.protocol import CHANNELS
from eg_distributed.settings import Distributed
from tests.unit.agents import DEADLINE, STANDIN, Refusal, Visitor, alive, standin, written
from tests.until import until

SLEEPER = [sys.executable, "-ISc", "import sys; sys.stdin.read()"]


def folders(home: Path) -> list[Path]:
    """Return the folders of all kernels of the agents below *home*."""
    return list(home.glob("eg-distributed/*/k/*"))


async def facts(visitor: Visitor, home: Path, **params: Any) -> Any:
    """Start a kernel that tells what it was started with, and return that."""
    path = home / "facts"
    await visitor.ready("k1", standin(f"facts:{path}"), **params)
    return await written(path)


# -- start and exit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
async def test_ready_is_told_when_all_channels_accept(visitor: Visitor, home: Path, transport: str) -> None:
    """A start answers with the pid at once, and `ready` comes when the five sockets are there."""
    described = await visitor.start("k1", standin(), transport=transport)
    assert described["state"] == "starting"
    assert alive(described["pid"])
    event = await visitor.event("ready", "k1")
    assert event["attempt"] == "a1"
    answer, _, writer = await visitor.stream("k1", "control")
    assert answer["ok"]
    writer.close()
    (listed,) = await visitor.request("list")
    assert listed["state"] == "running"


async def test_an_exit_at_start_is_told_with_code_and_last_words(visitor: Visitor) -> None:
    """Whoever waits for a kernel that ended hears its code and its output, without waiting for a time-out."""
    await visitor.start("k1", standin("say:ModuleNotFoundError: no ipykernel", "leave:3"))
    event = await visitor.event("exited", "k1")
    assert event["exit_code"] == 3
    assert event["log"] == "ModuleNotFoundError: no ipykernel\n"
    assert not any(e["event"] == "ready" for e in visitor.events)


async def test_an_end_by_signal_is_told_as_its_negative(visitor: Visitor) -> None:
    """Exit code -N means signal N, as everywhere in Python."""
    await visitor.start("k1", standin("die:SIGSEGV"))
    assert (await visitor.event("exited", "k1"))["exit_code"] == -signal.SIGSEGV


async def test_an_end_later_on_is_told_as_well(visitor: Visitor) -> None:
    """A kernel that dies in the middle of its work is pushed, not polled for."""
    await visitor.ready("k1", standin())
    _, _, writer = await visitor.stream("k1")
    writer.write(b"\0\0\0\0\3bye")
    assert (await visitor.event("exited", "k1"))["exit_code"] == 7
    writer.close()


async def test_only_the_end_of_a_long_log_goes_with_an_exit(visitor: Visitor) -> None:
    """An exit is a small message however much was printed."""
    await visitor.start("k1", standin("flood:100000", "say:last", "leave:1"))
    log = (await visitor.event("exited", "k1"))["log"]
    assert len(log) == TAIL
    assert log.endswith("\nlast\n")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("/no/such/python", "No such file or directory"),
        ("no-such-python", "not found on the node's PATH"),
        ("/", "Permission denied"),
    ],
)
async def test_what_cannot_be_executed_is_an_error_at_once(
    visitor: Visitor, home: Path, program: str, why: str
) -> None:
    """A wrong interpreter is an answer, not a time-out, and leaves no kernel and no file."""
    with pytest.raises(Refusal, match=f"cannot execute '{program}': {why}") as refused:
        await visitor.start("k1", [program, "-f", "{connection_file}"])
    assert refused.value.kind == "start"
    assert folders(home) == []
    assert await visitor.request("list") == []


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"argv": []}, "."),
        ({"env": {"A": "nul\0"}}, "cannot be passed on"),
        ({"env": {"A=B": "c"}}, "cannot be passed on"),
        ({"env": {"A": 1}}, "."),
        ({"spec_env": {"A": None}}, "."),
        ({"env": {"A": "x" * 200_000}}, "cannot execute .* list too long"),
        ({"transport": "tcp", "port_range": [1, 3]}, "no 5 free ports"),
    ],
)
async def test_a_malformed_start_leaves_nothing(visitor: Visitor, home: Path, params: dict[str, Any], why: str) -> None:
    """Whatever is wrong with a request: an error, no kernel, no file, and the agent goes on."""
    with pytest.raises(Refusal, match=why):
        await visitor.start("k1", **{"argv": standin(), **params})
    assert folders(home) == []
    assert await visitor.request("list") == []
    await visitor.ready("k1", standin())


async def test_a_kernel_that_runs_is_not_started_again(visitor: Visitor) -> None:
    """A second start under the same id is refused while the first one runs, and possible once it has ended."""
    pid = (await visitor.ready("k1", standin()))["pid"]
    with pytest.raises(Refusal, match=f"already runs on this node .pid {pid}."):
        await visitor.start("k1", standin())
    await visitor.request("stop", kernel="k1", grace=0)
    visitor.events.clear()
    assert (await visitor.ready("k1", standin(), attempt="a2"))["pid"] != pid


async def test_ports_are_taken_from_the_range(visitor: Visitor, home: Path) -> None:
    """`port_range` counts on the node, where the kernel listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        low = min(probe.getsockname()[1], 65000)
    await visitor.ready("k1", standin(), transport="tcp", port_range=[low, low + 300])
    info = json.loads((folders(home)[0] / "connection.json").read_text())
    assert info["ip"] == "127.0.0.1"
    ports = [info[f"{channel}_port"] for channel in ("shell", "iopub", "stdin", "hb", "control")]
    assert len(set(ports)) == 5
    assert all(low <= port <= low + 300 for port in ports)


async def test_a_folder_of_the_client_need_not_exist_here(visitor: Visitor, home: Path) -> None:
    """A kernel starts in the folder it is told, else in its home, and its log says so."""
    assert (await facts(visitor, home, cwd=str(home / ".ssh")))["cwd"] == str(home / ".ssh")
    await visitor.request("stop", kernel="k1", grace=0)
    (home / "facts").unlink()
    visitor.events.clear()
    assert (await facts(visitor, home, cwd="/of/a/laptop"))["cwd"] == str(home)
    assert "/of/a/laptop does not exist on this node" in await visitor.request("log", kernel="k1")


AS_NOBODY = """
import os, sys
from pathlib import Path
from eg_distributed.agent.spawning import spawn
if os.getuid() == 0:  # who can enter every folder
    os.setuid(65534)
env = {b"HOME": b"/tmp"}
process, warning = spawn(["/bin/sh", "-c", "pwd; echo $PWD"], env, sys.argv[1], 0o077, Path(sys.argv[2]))
process.wait()
print(warning)
"""


@pytest.mark.parametrize("mode", [0o000, 0o666])
def test_a_folder_that_cannot_be_entered_keeps_no_kernel_from_starting(short: Path, mode: int) -> None:
    """A notebook server of root sends /root, which is on every node: the kernel starts in its home, and that is told."""
    short.chmod(0o777)
    closed = short / "closed"
    closed.mkdir()
    closed.chmod(mode)
    command = [sys.executable, "-c", AS_NOBODY, str(closed), str(short / "log")]
    warning = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert warning == f"working directory {closed} cannot be entered (Permission denied): started in /tmp"
    assert (short / "log").read_text() == f"{warning}\n/tmp\n/tmp\n"


async def test_a_home_that_is_no_folder_is_left_out(visitor: Visitor, home: Path) -> None:
    """A kernelspec may set HOME to anything: then the kernel starts in the root folder."""
    path = home / "facts"
    described = await visitor.ready("k1", standin(f"facts:{path}"), cwd="/of/a/laptop", spec_env={"HOME": "/no/home"})
    assert described["warning"].endswith("home /no/home does not exist on this node: started in /")
    assert (await written(path))["cwd"] == "/"


@pytest.mark.parametrize("cwd", ["~/a b/ü", "$HOME/a b/ü", "${HOME}/a b/ü", "a b/ü", "{home}/a b/ü"])
async def test_a_working_directory_may_be_the_logins(visitor: Visitor, home: Path, cwd: str) -> None:
    """`~` and $NAME are the login's, a relative folder is below its home, and PWD says where the kernel is."""
    folder = home / "a b" / "ü"
    folder.mkdir(parents=True)
    found = await facts(visitor, home, cwd=cwd.replace("{home}", str(home)))
    assert found["cwd"] == str(folder)
    assert found["env"]["PWD"].encode("latin-1") == os.fsencode(folder)


async def test_a_folder_with_a_dollar_in_its_name_is_that_folder(visitor: Visitor, home: Path) -> None:
    """What exists by its very name is not expanded."""
    (home / "$HOME").mkdir()
    assert (await facts(visitor, home, cwd=str(home / "$HOME")))["cwd"] == str(home / "$HOME")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("#!/no/such/sh\n", "its first line, '#!/no/such/sh', names an interpreter that is not there"),
        ("#!/bin/sh\r\nexit\r\n", r"its first line, '#!/bin/sh\\r', ends in a carriage return"),
        ("exec python\n", "it has no #! line"),
    ],
)
async def test_a_script_that_cannot_be_executed_is_told_by_its_first_line(
    visitor: Visitor, home: Path, content: str, why: str
) -> None:
    """The system says "no such file" of a script that is there, when its interpreter is not."""
    script = home / "start.sh"
    script.write_bytes(content.encode())
    script.chmod(0o755)
    for program, spec_env in ((str(script), {}), ("start.sh", {"PATH": str(home)})):
        with pytest.raises(Refusal, match=f"cannot execute '{program}': {why}"):
            await visitor.start("k1", [program, "{connection_file}"], spec_env=spec_env)


async def test_a_program_that_is_not_on_the_path_says_which_path(visitor: Visitor) -> None:
    """The PATH that was searched is named, and what to write, since no profile of a login shell is read."""
    with pytest.raises(Refusal, match="PATH, which is '/opt/none:/bin'; no profile") as refused:
        await visitor.start("k1", ["sitepython", "{connection_file}"], spec_env={"PATH": "/opt/none:/bin"})
    assert all(word in refused.value.remedy for word in ("whole path", "bash", '"-lc"', '"/opt/site/bin:${PATH}"'))


@pytest.mark.parametrize("log_dir", ["/proc/x", "{home}/file/logs", "{home}/dir"])
async def test_a_log_that_cannot_be_written_is_no_fault_of_the_program(
    visitor: Visitor, home: Path, log_dir: str
) -> None:
    """A folder for logs that can't be made, or written to, is named, and the setting that named it."""
    (home / "file").write_text("")
    (home / "dir" / "kernel-k1.log").mkdir(parents=True)
    with pytest.raises(Refusal, match=r"cannot (make the folder of|write) the kernel's log") as refused:
        await visitor.start("k1", standin(), log_dir=log_dir.replace("{home}", str(home)))
    assert "EG_KERNEL_LOG_DIR" in refused.value.remedy
    assert folders(home) == []


# -- environment -------------------------------------------------------------------------------------------------

NASTY = {
    "QUOTES": """it's "quoted" \\ and \\n""",
    "NEWLINES": "one\ntwo\r\n\tthree",
    "COMMANDS": "$(touch /tmp/pwned) `touch /tmp/pwned` ; touch /tmp/pwned & | > < * ? ~ ! #",
    "REFERENCES": "$HOME ${HOME} ${HOME:-x} $$",
    "UNICODE": "żółć 日本語 🎉 \u2028 \x7f",
    "SURROGATE": "\ud83d",
    "LARGE": "x" * (100 * 1024),
    "EMPTY": "",
    "EQUALS": "a=b=c",
    "ASCII": string.printable,
}


async def test_client_values_arrive_byte_for_byte(visitor: Visitor, home: Path) -> None:
    """No shell, no expansion, no locale has a say in what a client sent."""
    env = (await facts(visitor, home, env=NASTY))["env"]
    arrived = {name: env[name].encode("latin-1") for name in NASTY}
    assert arrived == {name: value.encode("utf-8", "surrogatepass") for name, value in NASTY.items()}


async def test_kernelspec_values_are_expanded_on_the_node(
    home: Path, settings: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References in `spec_env` see the node's environment and the client's values; client values are data and win."""
    monkeypatch.setenv("LC_OF_THE_NODE", "here")
    visitor = await Visitor.at(await connect("localhost", settings))
    spec_env = {
        "A": "${LC_OF_THE_NODE}/lib:$CLIENT",
        "B": "${NOWHERE:-default} $(id) `id`",
        "C": "of the kernelspec",
        "LC_OF_THE_NODE": "${LC_OF_THE_NODE}+",
    }
    client = {"CLIENT": "$HOME", "C": "${of the client"}
    env = (await facts(visitor, home, spec_env=spec_env, env=client))["env"]
    assert env["A"] == "here/lib:$HOME"
    assert env["B"] == "default $(id) `id`"
    assert env["C"] == "${of the client"
    assert env["LC_OF_THE_NODE"] == "here+"
    visitor.close()


async def test_what_belongs_to_the_login_is_stripped(
    home: Path, settings: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`JPY_PARENT_PID` would have the kernel end with a process that is not its parent; `SSH_*` names a connection."""
    for name in ("JPY_PARENT_PID", "JPY_SESSION_NAME", "SSH_CONNECTION"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LC_KEPT", "1")
    visitor = await Visitor.at(await connect("localhost", settings))
    env = (await facts(visitor, home))["env"]
    assert env["LC_KEPT"] == "1"
    assert not [name for name in env if name.startswith(("JPY_", "SSH_"))]
    visitor.close()


async def test_the_program_is_looked_up_in_the_kernels_own_path(visitor: Visitor, home: Path) -> None:
    """A kernelspec that sets PATH gets its program from there."""
    (home / "bin").mkdir()
    (home / "bin" / "our-python").symlink_to(STANDIN[0])
    path = home / "facts"
    argv = ["our-python", *standin(f"facts:{path}")[1:]]
    await visitor.ready("k1", argv, spec_env={"PATH": f"{home}/bin:$PATH"})
    assert (await written(path))["env"]["PATH"].startswith(f"{home}/bin:/")


# -- processes ---------------------------------------------------------------------------------------------------


async def test_a_kernel_has_a_session_and_nothing_of_the_agents(visitor: Visitor, home: Path) -> None:
    """Own session and group, default signals, no open file besides its own."""
    found = await facts(visitor, home)
    assert found["pid"] == found["group"] == found["session"]
    assert found["blocked"] == 0
    assert not found["ignored"] & (1 << (signal.SIGINT - 1) | 1 << (signal.SIGHUP - 1) | 1 << (signal.SIGCHLD - 1))
    assert [path for path in found["descriptors"] if not path.startswith(("/proc/", str(home)))] == []


async def test_the_gateways_own_environment_stays_with_it(
    home: Path, settings: Distributed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the gateway's own machine a kernel has what a login would give it, and none of the gateway's settings and secrets."""
    for name in ("EG_AUTH_TOKEN", "EG_REMOTE_PWD", "MY_SECRET"):
        monkeypatch.setenv(name, "secret")
    visitor = await Visitor.at(await connect("localhost", settings))
    env = (await facts(visitor, home))["env"]
    assert "secret" not in env.values()
    assert env["PATH"] == os.environ["PATH"]
    visitor.close()


async def test_a_kernel_has_the_logins_limit_of_open_files(visitor: Visitor, home: Path) -> None:
    """The agent raises its own limit, for its streams; a kernel has what a login has."""
    limits = "import resource,sys;open(sys.argv[1],'w').write(str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))"
    gate = home / "gate"
    os.mkfifo(gate)
    code = f"open({str(gate)!r}).read();{limits}"
    await visitor.start("k1", [sys.executable, "-c", code, str(home / "limit"), "{connection_file}"])
    with await asyncio.to_thread(gate.open, "w"):  # its limit is set right after its start
        pass
    await visitor.event("exited", "k1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert int((home / "limit").read_text()) == soft
    agent = (await visitor.request("ping"))["pid"]
    assert resource.prlimit(agent, resource.RLIMIT_NOFILE)[0] == max(soft, min(hard, OPEN_FILES))


async def test_a_start_that_fails_is_no_kernel_that_is_waited_for(visitor: Visitor, home: Path) -> None:
    """An end that is asked for while a start fails is answered, and nothing goes on trying."""
    starting = asyncio.ensure_future(visitor.start("k1", ["/nowhere/python"]))
    stopping = asyncio.ensure_future(visitor.request("stop", kernel="k1", grace=0))
    with pytest.raises(Refusal):
        await starting
    await asyncio.wait_for(stopping, DEADLINE)
    assert folders(home) == []


def free_range(count: int) -> list[int]:
    """Return the first and the last of *count* ports that nobody has, below those that outgoing connections are given."""
    for first in random.sample(range(20000, 32000, count), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return [first, first + count - 1]
    raise AssertionError(f"no {count} free ports in a row")


async def test_ports_of_a_range_are_given_once(visitor: Visitor, home: Path) -> None:
    """Two kernels that start at once within a port range get different ports, although neither has bound them yet."""
    never = [sys.executable, "-c", "import signal; signal.pause()", "{connection_file}"]
    ports_of_both = free_range(10)
    for kernel in ("k1", "k2"):
        await visitor.start(kernel, never, transport="tcp", port_range=ports_of_both)
    records = [json.loads(path.read_text()) for path in home.glob("eg-distributed/*/k/*/connection.json")]
    ports = [{value for key, value in record.items() if key.endswith("_port")} for record in records]
    assert [len(each) for each in (*ports, ports[0] | ports[1])] == [5, 5, 10]


async def test_ports_are_held_until_the_kernel_has_them(visitor: Visitor, home: Path) -> None:
    """No other program is given a kernel's port while that kernel starts, and the kernel can listen on it all the same."""
    gate = home / "gate"
    await visitor.start("k1", gated(gate), transport="tcp")
    info = json.loads((folders(home)[0] / "connection.json").read_text())
    for channel in CHANNELS:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", info[f"{channel}_port"]))
    gate.write_text("")
    await visitor.event("ready", "k1")


def gated(gate: Path) -> list[str]:
    """Return the argv of a stand-in that begins once *gate* is there."""
    wait = f"import os, sys, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\nos.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-ISc", wait, *standin()]


async def test_ports_can_be_had_again_at_once(visitor: Visitor, home: Path) -> None:
    """Connections that a kernel has closed keep its ports for a minute (TIME_WAIT), but not from a kernel."""
    ports = free_range(5)
    for stream in ("s1", "s2"):
        visitor.events.clear()
        await visitor.ready("k1", standin(), transport="tcp", port_range=ports)
        _, _, writer = await visitor.stream("k1", stream=stream)
        writer.write(b"\0\0\0\0\3bye")
        await visitor.event("exited", "k1")
        writer.close()


async def test_without_free_ports_the_remedy_is_named(visitor: Visitor) -> None:
    """Another host, or more ports: what helps is said, with the range."""
    with pytest.raises(Refusal, match=r"no 5 free ports in the port range 1\.\.3") as refused:
        await visitor.start("k1", standin(), transport="tcp", port_range=[1, 3])
    assert "widen the port range" in refused.value.remedy


@pytest.mark.parametrize("behaviour", ["refused", "complains"])
async def test_a_port_that_another_took_costs_no_start(visitor: Visitor, home: Path, behaviour: str) -> None:
    """A kernel that ends, or waits, because one of its ports is taken is started once more on others, within the same start."""
    described = await visitor.start("k1", standin(f"{behaviour}:{home / 'once'}"), transport="tcp")
    event = await visitor.event("ready", "k1")
    assert event["attempt"] == "a1"
    assert [e["event"] for e in visitor.events if e.get("kernel") == "k1"] == ["ready"]
    (listed,) = await visitor.request("list")
    assert listed["pid"] != described["pid"]
    assert event["pid"] == listed["pid"]
    assert not alive(described["pid"])
    answer, _, writer = await visitor.stream("k1", "hb")
    assert answer["ok"]
    writer.close()


LISTENER = """
import json, os, socket, sys, time
info, twice = json.load(open(sys.argv[1])), os.path.exists(sys.argv[2])
open(sys.argv[2], "w").close()
if sys.argv[3] == "always" or not twice:
    os.setuid(65534)
held = [socket.create_server(("127.0.0.1", info[name + "_port"])) for name in ("shell", "iopub", "stdin", "hb", "control")]
time.sleep(600)
"""
"""Listens on a kernel's ports, as another user: always, or only when it is first run."""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can play another user")
async def test_a_kernel_whose_ports_another_user_has_is_not_ready(visitor: Visitor, home: Path) -> None:
    """Nothing signed with the kernel's key goes to another user's listener: the start begins again on other ports, or fails."""
    argv = [sys.executable, "-ISc", LISTENER, "{connection_file}"]
    await visitor.start("k1", [*argv, str(home / "one"), "always"], transport="tcp")
    ended = await visitor.event("exited", "k1")
    assert ended["exit_code"] == -signal.SIGKILL
    assert "another user listens on a port of this kernel" in ended["log"]
    first = await visitor.start("k2", [*argv, str(home / "two"), "once"], transport="tcp")
    assert (await visitor.event("ready", "k2"))["pid"] != first["pid"]
    assert {event["event"] for event in visitor.events if event.get("kernel") == "k1"} == {"exited"}


async def test_a_port_that_stays_taken_is_told(visitor: Visitor) -> None:
    """The second time the kernel's own words are the answer."""
    await visitor.start("k1", standin("say:Address already in use", "leave:1"), transport="tcp")
    event = await visitor.event("exited", "k1")
    assert (event["exit_code"], event["log"]) == (1, "Address already in use\n")
    await visitor.request("stop", kernel="k1", grace=0, forget=True)


async def test_interrupts_arrive_even_if_the_login_ignored_them(home: Path, settings: Distributed) -> None:
    """An agent that was started by a background job, with SIGINT ignored and blocked, has kernels that can be interrupted."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        link = await connect("localhost", settings)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
    visitor = await Visitor.at(link)
    found = await facts(visitor, home)
    assert found["blocked"] == 0
    assert not found["ignored"] & (1 << (signal.SIGINT - 1))
    assert await visitor.request("signal", kernel="k1", signum=signal.SIGINT)
    await visitor.event("exited", "k1")
    visitor.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
async def test_signals_reach_the_whole_group(visitor: Visitor, home: Path, signum: signal.Signals) -> None:
    """A signal reaches the kernel and its children; they live on if they handle it."""
    argv = standin(f"note:{home / 'one'}")
    # Two of them in one group, of which the outer one is the kernel.
    outer = f"import subprocess,sys;subprocess.Popen([*{argv[:3]!r},'-','note:{home / 'two'}']);"
    outer += f"sys.argv=sys.argv[1:];exec(compile(open({argv[2]!r}).read(),{argv[2]!r},'exec'))"
    await visitor.ready("k1", [argv[0], "-ISc", outer, *argv[2:]])
    await until("both have their handlers", lambda: (home / "one.set").exists() and (home / "two.set").exists())
    assert await visitor.request("signal", kernel="k1", signum=signum)
    assert await written(home / "one") == signum.name
    assert await written(home / "two") == signum.name


async def test_a_signal_to_an_ended_kernel_is_not_delivered(visitor: Visitor) -> None:
    """After the end nobody gets the signal, whoever has the pid now."""
    await visitor.start("k1", standin("leave:0"))
    await visitor.event("exited", "k1")
    assert await visitor.request("signal", kernel="k1", signum=signal.SIGTERM) is False
    with pytest.raises(Refusal, match="k2") as refused:
        await visitor.request("signal", kernel="k2", signum=signal.SIGTERM)
    assert refused.value.kind == "gone"


async def test_stop_asks_first(visitor: Visitor) -> None:
    """A kernel that heeds SIGTERM ends by it, without waiting for the grace to pass."""
    await visitor.ready("k1", standin())
    answer = await asyncio.wait_for(visitor.request("stop", kernel="k1", grace=60), DEADLINE)
    assert answer == {"stopped": True, "exit_code": -signal.SIGTERM}


async def test_stop_kills_who_does_not_listen(visitor: Visitor) -> None:
    """A kernel that ignores SIGTERM is killed after the grace."""
    pid = (await visitor.ready("k1", standin("ignore:SIGTERM")))["pid"]
    assert (await visitor.request("stop", kernel="k1", grace=0.2))["exit_code"] == -signal.SIGKILL
    assert not alive(pid)


async def test_what_a_kernel_left_in_its_group_ends_with_it(visitor: Visitor, home: Path) -> None:
    """Children of cells don't outlive the kernel, even if they ignore SIGTERM."""
    await visitor.start("k1", standin(f"child:{home / 'child'}", "leave:0"))
    child = int(await written(home / "child"))
    await visitor.event("exited", "k1")
    await until("the child has ended", lambda: not alive(child))


# -- files -------------------------------------------------------------------------------------------------------


async def test_files_are_for_their_user_alone(visitor: Visitor, home: Path) -> None:
    """Folders are 0700 and files 0600, whatever the login's umask, since the connection file holds the key."""
    await visitor.ready("k1", standin("say:hello"), key="secret")
    base = home / "eg-distributed"
    for path in [*base.glob("*"), *base.rglob("k/*")]:
        assert stat.S_IMODE(path.stat().st_mode) in (0o700, 0o600), path
    (folder,) = folders(home)
    for name in ("connection.json", "record.json", "kernel.log"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    assert json.loads((folder / "connection.json").read_text())["key"] == "secret"
    assert "secret" not in json.dumps(await visitor.request("list"))


async def test_nothing_stays_of_a_forgotten_kernel(visitor: Visitor, home: Path) -> None:
    """After `stop` with `forget` there is no process, no file and no count."""
    pid = (await visitor.ready("k1", standin()))["pid"]
    await visitor.request("stop", kernel="k1", grace=5, forget=True)
    assert not alive(pid)
    assert folders(home) == []
    assert await visitor.request("list") == []


async def test_a_stop_of_another_attempt_does_nothing(visitor: Visitor) -> None:
    """A start that was given up long ago cannot end the one that came after it."""
    await visitor.ready("k1", standin(), attempt="a2")
    assert await visitor.request("stop", kernel="k1", attempt="a1", grace=0) == {"stopped": False}
    assert (await visitor.request("list"))[0]["state"] == "running"


async def test_an_operators_log_folder_keeps_logs(visitor: Visitor, home: Path) -> None:
    """`log_dir` is on the node, may begin with ~, and its logs stay; an exit tells only of this start."""
    for word in ("first", "second"):
        await visitor.start("k1", standin(f"say:{word}", "leave:0"), log_dir="~/logs")
        assert (await visitor.event("exited", "k1"))["log"] == f"{word}\n"
        visitor.events.clear()
    await visitor.request("stop", kernel="k1", grace=0, forget=True)
    log = home / "logs" / "kernel-k1.log"
    assert log.read_text() == "first\nsecond\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_a_log_is_capped(visitor: Visitor, home: Path) -> None:
    """Of a log that outgrew its cap the newer half stays, and what the kernel writes meanwhile is not lost."""
    (home / "logs").mkdir()
    log = home / "logs" / "kernel-k1.log"
    log.write_bytes(b"old\n" * (LOG_CAP // 4) + b"newer\n")
    await visitor.ready("k1", standin("say:newest"), log_dir="~/logs")
    await until("the log is capped", lambda: log.stat().st_size < LOG_CAP)
    await until("its end is kept", lambda: b"newer\n" in log.read_bytes())
    lines = log.read_bytes().splitlines()
    # The kernel appends by itself, so its line may be the first one of the file that was made empty.
    assert lines.count(b"[older output was dropped here]") == 1
    assert lines.index(b"[older output was dropped here]") < 2
    assert b"newest" in lines
    assert LOG_CAP // 2 <= log.stat().st_size < LOG_CAP // 2 + 100


@pytest.mark.parametrize("has_folder", [True, False], ids=["log_dir", "each in its kernel's folder"])
async def test_one_look_is_for_all_logs_of_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_folder: bool
) -> None:
    """However many kernels run, one thread looks at their logs' sizes, and only those that are too large are cut."""
    monkeypatch.setattr(log_caps, "LOG_CAP", 1000)
    monkeypatch.setattr(kernels_module, "LOG_CAP", 1000)
    looks = []

    async def counted(*arguments: Any) -> Any:
        looks.append(arguments)
        return await aside(*arguments)

    monkeypatch.setattr(log_caps, "aside", counted)
    running = {}
    for number in range(20):
        running[f"k{number}"] = kernel = Kernel(f"k{number}", tmp_path / f"k{number}", lambda *_: None)
        kernel.has_log = True
        if has_folder:
            kernel.log = tmp_path / f"{number}.log"
        kernel.log.parent.mkdir(exist_ok=True)
        kernel.log.write_bytes(b"x" * (2000 if number == 7 else 900))
    caps = log_caps.LogCaps(running)
    caps.tick()
    assert not looks
    monkeypatch.setattr(log_caps, "CHECK", 0.0)
    caps.tick()
    caps.tick()
    await until("the one is cut", lambda: running["k7"].log.stat().st_size < 1000)
    assert len(looks) == 1
    assert [kernel.log.stat().st_size for kernel in running.values() if kernel.id != "k7"] == [900] * 19


# -- launchers ---------------------------------------------------------------------------------------------------


async def test_anothers_kernel_is_signalled_by_its_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind sudo, where the agent must not signal, the launcher's listener stays open and is asked; after a restart too."""
    asked: asyncio.Queue[object] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.put_nowait(json.loads(await reader.read()))
        writer.close()

    monkeypatch.setattr(processes, "may_signal", lambda pid: False)
    process = await asyncio.create_subprocess_exec(*SLEEPER, stdin=subprocess.PIPE, start_new_session=True)
    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    folder = tmp_path / "k" / "k1"
    folder.mkdir(parents=True)
    kernel = Kernel("k1", folder, lambda *_: None)
    kernel.state, kernel.transport = RUNNING, "launcher"
    kernel.pid, kernel.started = process.pid, processes.start_time(process.pid) or ""
    kernel.family = Family(kernel.pid, kernel.started)
    kernel.set_connection({"comm_port": server.sockets[0].getsockname()[1]}, process.pid)
    assert kernel.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(asked.get(), DEADLINE) == {"signum": signal.SIGINT}
    assert process.returncode is None
    assert await kernel._disk.settle(DEADLINE)
    again = Kernel.load(folder, lambda *_: None)
    assert again is not None
    assert again.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(asked.get(), DEADLINE) == {"signum": signal.SIGTERM}
    assert await asyncio.wait_for(process.wait(), DEADLINE) == -signal.SIGTERM
    server.close()


async def test_a_launchers_answer_is_handed_up(visitor: Visitor, home: Path) -> None:
    """With transport `launcher` the agent listens on loopback, and what comes there goes to the gateway as it is."""
    ipc = str(home / "s")
    argv = [*STANDIN, "{response_address}", "answer:c29tZXRoaW5n", f"note:{home / 'note'}"]
    described = await visitor.start("k1", argv, transport="launcher", env={"TMPDIR": str(home)})
    assert (await visitor.event("response", "k1"))["payload"] == "c29tZXRoaW5n"
    assert described["argv"][3].startswith("127.0.0.1:")
    # The gateway has decrypted it; here a second stand-in plays the kernel behind the launcher.
    info = {
        "transport": "ipc",
        "ip": ipc,
        **{f"{c}_port": n for n, c in enumerate(("shell", "iopub", "stdin", "hb", "control"))},
    }
    (home / "connection.json").write_text(json.dumps(info))
    inner = await asyncio.create_subprocess_exec(*STANDIN, str(home / "connection.json"), f"note:{home / 'inner'}")
    await visitor.request("endpoints", kernel="k1", connection=info, pid=inner.pid)
    await visitor.event("ready", "k1")
    assert await visitor.request("signal", kernel="k1", signum=signal.SIGINT)
    assert await written(home / "inner") == "SIGINT"
    assert not (home / "note").exists()
    left, others = (
        home / "kernel-k1_x.json",
        home / "kernel-k11_x.json",
    )  # as Enterprise Gateway's launcher names its own
    for path in (left, others):
        path.write_text("{}")
    await visitor.request("stop", kernel="k1", grace=5, forget=True)
    assert await asyncio.wait_for(inner.wait(), DEADLINE) == -signal.SIGTERM
    await until("the launcher's connection file is gone", lambda: not left.exists())
    assert others.exists()


STRANGER = """
import os, socket, sys
os.setuid(65534)
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(5)]
print(*[each.getsockname()[1] for each in held], flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can play another user")
async def test_an_answer_that_leads_to_another_user_is_refused(visitor: Visitor) -> None:
    """Whoever knows the public key can answer for a launcher, but not put a kernel of his own in its place."""
    stranger = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STRANGER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert stranger.stdout is not None
    ports = map(int, (await asyncio.wait_for(stranger.stdout.readline(), DEADLINE)).split())
    info = {f"{channel}_port": port for channel, port in zip(CHANNELS, ports, strict=True)}
    await visitor.start("k1", [*STANDIN, "{response_address}"], transport="launcher")
    await visitor.request("endpoints", kernel="k1", connection={"transport": "tcp", **info}, pid=0)
    ended = await visitor.event("exited", "k1")
    assert ended["exit_code"] == -signal.SIGKILL
    assert "listens as another user" in ended["log"]
    stranger.kill()
    await stranger.wait()
