"""What a test left behind, found by comparing two snapshots."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from lab.drivers.machines import Machine
from lab.observe.leaks import Leak, View, clean, compare
from lab.observe.snapshots import Process, Snapshot, _port, _processes, _rules

SSHD = Process(7, "root", "/sbin/docker-init")
CLEAN = Snapshot(
    processes=(SSHD,),
    ports={"tcp 0.0.0.0:22": "sshd"},
    files=frozenset({"/tmp", "/tmp/old"}),
    guarded={"/etc/passwd": "1"},
    connections={"10.0.0.2": 1},
)


def left(after: Snapshot, **options: object) -> list[str]:
    """Return what is reported when node1 was CLEAN before and is *after* now."""
    return [str(leak) for leak in compare(View({"node1": CLEAN}, {}), View({"node1": after}, {}), **options)]  # type: ignore[arg-type]


def test_nothing_new_is_no_leak() -> None:
    """The same machine twice has no leak, nor has one whose server was started anew."""
    assert left(CLEAN) == []
    assert left(replace(CLEAN, processes=(replace(SSHD, pid=99),))) == []


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (replace(CLEAN, processes=(SSHD, Process(9, "lab", "sleep 99"))), "node1: process 9 sleep 99"),
        (
            replace(CLEAN, processes=(SSHD, Process(9, "lab", "python -f x", "ab-cd"))),
            "node1: kernel ab-cd as process 9 python -f x",
        ),
        (
            replace(CLEAN, ports={**CLEAN.ports, "tcp 0.0.0.0:99": "nc"}),
            "node1: port tcp 0.0.0.0:99 (nc)",
        ),
        (replace(CLEAN, ports={}), "node1: port tcp 0.0.0.0:22 (sshd) is gone"),
        (replace(CLEAN, files=CLEAN.files | {"/tmp/d", "/tmp/d/e", "/tmp/d/e/f"}), "node1: file /tmp/d"),
        (replace(CLEAN, guarded={"/etc/passwd": "2"}), "node1: file /etc/passwd is changed"),
        (replace(CLEAN, mounts=frozenset({"/home/lab"})), "node1: mount /home/lab"),
        (replace(CLEAN, rules=("filter -A INPUT -j DROP",)), "node1: rule filter -A INPUT -j DROP"),
        (replace(CLEAN, connections={"10.0.0.2": 3}), "node1: connection SSH from 10.0.0.2: 3, not 1"),
        (
            replace(CLEAN, files=CLEAN.files | {"/home/lab/.cache/eg-distributed/n/k/abc"}),
            "node1: kernel /home/lab/.cache/eg-distributed/n/k/abc",
        ),
    ],
)
def test_each_kind_is_named(after: Snapshot, name: str) -> None:
    """What is new, and a port or a file that is not as it was, has its kind and its name told."""
    assert left(after) == [name]


def test_a_gateway_keeps_its_one_connection() -> None:
    """A new connection from a gateway is no leak, a second one is."""
    assert left(replace(CLEAN, connections={"10.0.0.2": 1, "10.0.0.9": 1}), gateways=["10.0.0.9"]) == []
    [leak] = left(replace(CLEAN, connections={"10.0.0.2": 1, "10.0.0.9": 2}), gateways=["10.0.0.9"])
    assert leak == "node1: connection SSH from 10.0.0.9: 2, not 1"
    # Two gateways of a local lab are at one address.
    both = ["127.0.0.1", "127.0.0.1"]
    assert left(replace(CLEAN, connections={"10.0.0.2": 1, "127.0.0.1": 2}), gateways=both) == []


def test_what_lives_on_through_a_fault_s_proxy_is_no_leak() -> None:
    """A gateway's connection that a proxy carries stays when the fault heals, and the proxy with it; a second one doesn't."""
    proxy = Process(9, "root", "/usr/bin/python3.11 -I /run/lab-faults/ab12cd34/proxy.py /run/lab-faults/x.json 7")
    carried = replace(CLEAN, processes=(SSHD, proxy), connections={"10.0.0.2": 1, "127.0.0.1": 1})
    assert left(carried, gateways=["10.0.0.9"]) == []
    [leak] = left(replace(carried, connections={"127.0.0.1": 2}), gateways=["10.0.0.9"])
    assert leak == "node1: connection SSH from 127.0.0.1: 2, not 1"
    [leak] = left(replace(carried, processes=(SSHD,)), gateways=["10.0.0.9"])
    assert leak == "node1: connection SSH from 127.0.0.1: 1, not 0"


def test_what_a_fault_has_put_aside_is_never_removed() -> None:
    """The fault that put it there may still be to be healed: then it puts it back."""
    told: list[tuple[str, ...]] = []
    node = SimpleNamespace(name="node1", exec=lambda argv, user: told.append(tuple(argv)))
    kept = "/home/lab/.ssh/authorized_keys.lab-fault-ab12cd34"
    leaks = [Leak("node1", "file", path, ("rm", "-rf", "--", path)) for path in (kept, "/tmp/mine")]
    clean([cast("Machine", node)], leaks)
    assert told == [("rm", "-rf", "--", "/tmp/mine")]


def test_a_gateway_s_kernels_and_states_are_named() -> None:
    """A kernel that is still listed, and a machine that is down, are leaks."""
    before = View({}, {"gateway": {"old": "python"}})
    after = View({}, {"gateway": {"old": "python", "new": "spark"}}, {"node2": "is paused"})
    assert [str(leak) for leak in compare(before, after)] == ["gateway: kernel new (spark)", "node2: state is paused"]


def test_what_is_allowed_is_no_leak() -> None:
    """Patterns of `kind:what` take leaks out."""
    after = replace(CLEAN, files=CLEAN.files | {"/tmp/mine-1", "/tmp/other"})
    assert left(after, ignored=["file:/tmp/mine-*"]) == ["node1: file /tmp/other"]


def test_the_look_itself_is_not_seen() -> None:
    """Of a process table, the looking script and its parents, other looks, and SSH sessions are left out."""
    lines = [
        "1 0 root Ss /sbin/docker-init -- sshd",
        "20 1 lab Ss sshd: lab@notty",
        "30 0 root Ss timeout --foreground --kill-after=1 30 sh -c …",
        "31 30 root S sh -c …",
        "32 31 root R ps -ww",
        "40 0 root Ss timeout --foreground --kill-after=1 30 cat",
        "41 40 root S cat",
        "50 1 lab Z [python] <defunct>",
        "51 1 lab S sleep 9",
    ]
    found = {(process.pid, process.kernel) for process in _processes(lines, 31, {51: "k"})}
    assert found == {(1, ""), (50, ""), (51, "k")}


def test_rules_of_the_engine_and_of_nobody_are_left_out() -> None:
    """Built-in chains with their usual policy and the engine's resolver are no rules of anybody."""
    lines = [
        "*nat",
        ":OUTPUT ACCEPT [0:0]",
        ":DOCKER_OUTPUT - [0:0]",
        "-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT",
        "*filter",
        ":INPUT DROP [3:4]",
        ":LAB-x - [0:0]",
        "-A LAB-x -j DROP",
        "COMMIT",
    ]
    assert list(_rules(lines)) == ["filter :INPUT DROP", "filter :LAB-x -", "filter -A LAB-x -j DROP"]


def test_a_socket_without_an_owner() -> None:
    """A listening socket whose process can't be seen still has a name."""
    assert _port('tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=1,fd=3))') == ("tcp 0.0.0.0:22", "sshd")
    assert _port("tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:*") == ("tcp 0.0.0.0:22", "unknown")


@pytest.fixture
def stray() -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens and has a kernel's id."""
    code = "import socket,sys; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "KERNEL_ID": "k-1"},
    ) as child:
        yield child
        child.kill()


def test_a_local_process_tells_its_kernel_and_port(stray: subprocess.Popen[bytes]) -> None:
    """What local machines run is read from /proc: command, kernel's id, sockets."""
    from lab import processes
    from lab.observe import snapshots

    assert stray.stdout is not None
    port = stray.stdout.readline().decode().strip()
    assert processes.environment(stray.pid)["KERNEL_ID"] == "k-1"
    assert "create_server" in " ".join(processes.argv(stray.pid))
    owned = {local for local, _, status in snapshots._sockets(stray.pid) if status == "LISTEN"}
    assert owned == {f"127.0.0.1:{port}"}
