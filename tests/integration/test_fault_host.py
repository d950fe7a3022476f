"""Host faults, seen from outside, and that they heal."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncssh
import pytest

from lab import Lab, LabError, Node
from lab.errors import FaultUnavailable
from lab.faults import add
from tests.integration.fault_lab import (
    broken,
    connected,
    failure,
    inside,
    knock,
    login,
    node,
    open_for_ssh,
    other,
)
from tests.until import block_until, until_in_thread

__all__ = ["broken", "node", "other"]

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    ("fault", "seen"), [("pause", "silence"), ("sshd-hung", "silence"), ("sshd-out-of-fds", "silence")]
)
def test_a_connect_hears_nothing(broken: Lab, node: Node, fault: str, seen: str) -> None:
    """The kernel takes the connection, and nobody speaks; healed, it is greeted."""
    with add(broken, fault, [node], duration=30):
        assert knock(node) == seen
    block_until("a greeting", lambda: open_for_ssh(node))


def test_a_crashed_machine_comes_back_with_its_address(broken: Lab, node: Node) -> None:
    """Killed, it is gone from the network; healed, it runs with the same address and takes logins."""
    address = node.address
    with add(broken, "kill", [node], duration=30):
        assert node.state == "stopped"
        assert knock(node) in {"timeout", "OSError"}  # nobody answers to its address, or even to who has it
    assert (node.state, node.address) == ("running", address)
    assert login(broken, node, "hostname") == node.name


def test_a_reboot_is_done_at_once(broken: Lab, node: Node) -> None:
    """All processes are new, the address is not, and nothing is left to heal."""
    address, before = node.address, started(node)
    fault = add(broken, "reboot", [node])
    assert not fault.active
    assert started(node) > before
    assert node.address == address
    assert login(broken, node, "hostname") == node.name


@pytest.mark.parametrize(("fault", "seen"), [("sshd-stopped", "refused"), ("sshd-hung", "silence")])
async def test_sessions_outlive_their_listener(broken: Lab, node: Node, fault: str, seen: str) -> None:
    """No new connection is served, an open one goes on."""
    async with connected(broken, node) as connection:
        with add(broken, fault, [node], duration=30):
            assert knock(node) == seen
            assert (await connection.run("echo alive", timeout=5)).stdout == "alive\n"
    await until_in_thread("a greeting", lambda: open_for_ssh(node))


async def test_a_session_is_not_taken_for_a_later_listener(broken: Lab, node: Node) -> None:
    """A session that has outlived its listener is left alone by faults of the next one, and is a session to be killed."""
    async with connected(broken, node) as connection:
        await asyncio.to_thread(add(broken, "sshd-stopped", [node], duration=30).heal)
        with add(broken, "max-sessions", [node], duration=30, sessions=0):
            assert await asyncio.to_thread(login, broken, node, "true") == "ChannelOpenError"
            assert (await connection.run("echo alive", timeout=5)).stdout == "alive\n"
        with add(broken, "sshd-hung", [node], duration=30):
            assert knock(node) == "silence"
            assert (await connection.run("echo alive", timeout=5)).stdout == "alive\n"
        with add(broken, "sshd-stopped", [node], duration=30):
            assert knock(node) == "refused"
            add(broken, "sessions-killed", [node])
            with pytest.raises((asyncssh.Error, ConnectionError)):
                await connection.run("echo alive", timeout=5)


async def test_sessions_are_killed(broken: Lab, node: Node) -> None:
    """An open session ends, the next login works."""
    async with connected(broken, node) as connection:
        add(broken, "sessions-killed", [node])
        with pytest.raises((asyncssh.Error, ConnectionError)):
            await connection.run("echo alive", timeout=5)
    assert await asyncio.to_thread(login, broken, node, "echo alive") == "alive"


@pytest.mark.parametrize(
    ("fault", "options", "command", "said"),
    [
        ("disk-full", {}, "echo x > ~/written && rm ~/written", "No space left on device"),
        ("disk-full", {"path": "tmp"}, "echo x > /tmp/written && rm /tmp/written", "No space left on device"),
        ("readonly-home", {}, "echo x > ~/written && rm ~/written", "Read-only file system|Permission denied"),
        ("noexec-tmp", {}, "cp /bin/true /tmp/true && /tmp/true", "Permission denied"),
        ("out-of-memory", {"megabytes": 128}, "python3 -c 'bytearray(300 << 20)'", "KILL|Killed|137|MemoryError"),
        (
            "out-of-fds",
            {"count": 16},
            "python3 -c '[open(\"/dev/null\") for _ in range(20)]' ",
            "Too many open files",
        ),
    ],
)
def test_a_command_meets_the_fault(
    broken: Lab, node: Node, fault: str, options: dict[str, Any], command: str, said: str
) -> None:
    """A command over SSH fails for want of what is gone, and succeeds once healed."""
    keep = command.replace("[open", "x = [open")
    with add(broken, fault, [node], duration=30, **options):
        wrong = failure(broken, node, keep)
        assert any(part in wrong for part in said.split("|")), wrong
    assert failure(broken, node, keep) == ""


def test_who_waits_for_a_hung_mount_goes_on_once_it_is_healed(broken: Lab, node: Node) -> None:
    """A login hangs, and so does what looks for a file there, until it is healed or killed; elsewhere nothing is amiss."""
    waits = (
        "cat /home/lab/.profile >/tmp/read && mkdir /home/lab/made && rmdir /home/lab/made && mv /tmp/read /tmp/waited"
    )
    begin = "import subprocess\nsubprocess.Popen({argv!r}, start_new_session=True, stdout=-3, stderr=-3)"
    node.exec(["rm", "-f", "/tmp/read", "/tmp/waited"], user="root").check()
    with add(broken, "hung-mount", [node], duration=60):
        assert login(broken, node, "echo in", login_timeout=2) != "in"
        inside(node, begin.format(argv=["sh", "-c", waits]))
        inside(node, begin.format(argv=["cat", "/home/lab/.bashrc", "/dev/null"]))
        block_until("both wait", lambda: len(node.exec(["pgrep", "-x", "cat"]).stdout.split()) == 2)
        node.exec(["pkill", "-KILL", "-f", "^cat .* /dev/null"], user="root").check()
        block_until("the one is gone", lambda: len(node.exec(["pgrep", "-x", "cat"]).stdout.split()) == 1)
        assert node.exec(["test", "-e", "/tmp/waited"]).exit_code == 1
        assert open_for_ssh(node)
    block_until("the other went on", lambda: node.exec(["test", "-s", "/tmp/waited"]).exit_code == 0)
    node.exec(["rm", "-f", "/tmp/waited"], user="root").check()
    assert login(broken, node, "echo in") == "in"


def test_a_folder_is_removed(broken: Lab, node: Node) -> None:
    """Below the home or where cleaners go it is gone at once, with what is in it; anywhere else nothing is touched."""
    for path in (".cache/one", "/tmp/one"):
        assert login(broken, node, f"mkdir -p {path}/two && touch {path}/two/three && ls {path}") == "two"
        assert not add(broken, "folder-removed", [node], path=path).active
        assert (
            login(broken, node, f"ls -a {path} 2>&1 | grep -c such; ls -A $(dirname {path}) | grep -c lab-fault")
            == "1\n0"
        )
    for path in ("/etc/ssh", "../other", "/home/lab", "/tmp/../etc"):
        with pytest.raises(FaultUnavailable, match="is not below"):
            add(broken, "folder-removed", [node], path=path)
    with pytest.raises(FaultUnavailable, match="there is no"):
        add(broken, "folder-removed", [node], path=".cache/one")


async def test_open_sessions_have_no_descriptor_left(broken: Lab, node: Node) -> None:
    """What an open connection carries goes on, and it takes no further channel until it is healed; others are not met."""
    async with connected(broken, node) as connection, connection.create_process("cat") as process:
        with add(broken, "sshd-out-of-fds", [node], duration=30, of="sessions"):
            # Between its descriptors one or two may be free.
            opened = [connection.open_connection("127.0.0.1", 22) for _ in range(4)]
            found = await asyncio.gather(*opened, return_exceptions=True)
            assert any(isinstance(each, asyncssh.ChannelOpenError) for each in found)
            process.stdin.write("alive\n")
            assert await asyncio.wait_for(process.stdout.readline(), 5) == "alive\n"
            assert await asyncio.to_thread(login, broken, node, "echo in") == "in"
        reader, writer = await connection.open_connection("127.0.0.1", 22)
        assert bytes(await asyncio.wait_for(reader.read(4), 5)) == b"SSH-"
        writer.close()
        process.stdin.write_eof()


def test_no_process_can_be_started(broken: Lab, node: Node) -> None:
    """sshd can't fork, so a login fails; the fault is healed from outside, since nothing can be run inside."""
    with add(broken, "out-of-pids", [node], duration=30):
        assert login(broken, node, "echo alive", login_timeout=3) != "alive"
        with pytest.raises(LabError):
            node.exec(["true"], timeout=3).check()
    assert login(broken, node, "echo alive") == "alive"


def test_one_process_sees_another_time(broken: Lab, node: Node) -> None:
    """A running process' time of day jumps, and comes back; the machine's own doesn't move."""
    with ticking(node) as name:
        assert abs(offset(node)) < 5
        with add(broken, "clock-jump", [node], duration=30, process=name, seconds=-7200):
            block_until("the jump", lambda: abs(offset(node) + 7200) < 5)
            assert (
                abs(float(login(broken, node, "date +%s")) - float(inside(node, "import time; print(time.time())"))) < 5
            )
        block_until("the way back", lambda: abs(offset(node)) < 5)


def test_one_process_hangs(broken: Lab, node: Node) -> None:
    """It stands still, others don't, and it goes on once healed."""
    with ticking(node) as name:
        with add(broken, "process-stopped", [node], duration=30, process=name):
            block_until("a stop", lambda: offset(node) < -2)
            assert login(broken, node, "echo alive") == "alive"
        block_until("the way on", lambda: offset(node) > -1)


def test_one_process_is_killed(broken: Lab, node: Node) -> None:
    """By the name that one process alone has; nothing is left to heal."""
    with ticking(node) as name:
        assert not add(broken, "process-killed", [node], process=name).active
        block_until("its end", lambda: node.exec(["pgrep", "-f", f"^/.* {name}$"]).exit_code == 1)
        with pytest.raises(FaultUnavailable, match="0 processes match"):
            add(broken, "process-killed", [node], process=name)


def started(node: Node) -> float:
    """Return when the machine's first process began, in ticks since this host did."""
    return float(inside(node, "print(open('/proc/1/stat').read().rpartition(')')[2].split()[19])"))


TICKING = """
import os, time
while True:
    time.sleep(0.1)
    open('/tmp/t.new', 'w').write(str(time.time()))
    os.replace('/tmp/t.new', '/tmp/t')
"""


@contextmanager
def ticking(node: Node) -> Iterator[str]:
    """A process on the node that writes down the time of day ten times a second; its name."""
    name = "lab-ticking"
    start = f"[sys.executable, '-c', {TICKING!r}, {name!r}], start_new_session=True, stdout=-3, stderr=-3"
    inside(node, f"import subprocess, sys\nsubprocess.Popen({start})")
    try:
        block_until("its first time", lambda: node.exec(["test", "-s", "/tmp/t"]).exit_code == 0)
        yield name
    finally:
        node.exec(["pkill", "-f", f"^/.* {name}$"])
        node.exec(["rm", "-f", "/tmp/t", "/tmp/t.new"])


def offset(node: Node) -> float:
    """Return by how many seconds the ticking process is ahead of the machine."""
    return float(inside(node, "import time; print(float(open('/tmp/t').read()) - time.time())"))
