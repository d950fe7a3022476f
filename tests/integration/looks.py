"""What is on a machine of the lab, seen from outside: ports, processes, agents, and the files and sockets of kernels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from lab import Gateway, Node
from lab.drivers.machines import Machine
from tests.integration.client import Kernel
from tests.until import MACHINE_SECONDS, until_in_thread


def listening(machine: Machine, *, loopback: bool = False) -> set[int]:
    """Return the TCP ports that *machine* listens on towards the network, or, with *loopback*, on its loopback alone.

    Every ipykernel has one on loopback whatever its transport: the pipe on which its cells' subprocesses print.
    """
    lines = machine.exec(["ss", "-ltnH"]).check().stdout.splitlines()
    ports = set()
    for line in lines:
        address, _, port = line.split()[3].rpartition(":")  # State Recv-Q Send-Q Local-Address:Port Peer-Address:Port
        # 127.0.0.11 is the engine's own resolver.
        if address != "127.0.0.11" and (address.startswith("127.") or address == "[::1]") is loopback:
            ports.add(int(port))
    return ports


def processes(node: Machine) -> dict[int, str]:
    """Return what runs for the login user on *node*, by pid: kernels and what they left; without sshd and our own."""
    return {pid: args for pid, (_, args) in _table(node).items()}


def _table(node: Machine) -> dict[int, tuple[int, str]]:
    """As `processes`, each with its parent's pid before its command line."""
    lines = node.exec(["ps", "-u", user_of(node), "-o", "pid=,ppid=,stat=,args="]).stdout.splitlines()
    found = {}
    for line in lines:
        pid, parent, stat, args = line.split(None, 3)
        if not (args.startswith(_NO_KERNELS) or _LAB.search(args) or _is_ours(args) or stat.startswith("Z")):
            found[int(pid)] = (int(parent), args)
    return found


_NO_KERNELS = ("sshd", "/usr/sbin/sshd", "ps -u", "timeout --foreground")
_LAB = re.compile(r"\blab[./](drivers[./])?local[./]")
"""What a local node's main process and its SSH server have in their command lines."""


_OURS = re.compile(r"/eg-distributed(-\d+-[^/]+)?/.*\.zip$")
"""The agent's source: in the user's own folders, or, where a path would be too long for a socket, in one below /tmp."""


def user_of(node: Machine) -> str:
    """Return the login user of *node*."""
    assert isinstance(node, Node)
    return node.entry().user


def home_of(node: Machine) -> str:
    """Return the login user's home on *node*."""
    return node.exec(["sh", "-c", 'echo "$HOME"']).check().stdout.strip()


def zombies(node: Machine) -> int:
    """Return how many ended processes nobody has waited for on *node*."""
    return sum(line.strip().startswith("Z") for line in node.exec(["ps", "-eo", "stat="]).stdout.splitlines())


def _is_ours(args: str) -> bool:
    """Whether it is an agent, or a bridge, which lives as long as its gateway's SSH connection."""
    return any(_OURS.search(word) for word in args.split())


def _is_agent(args: str) -> bool:
    return _is_ours(args) and "agent" in args.split()


def agents(node: Machine) -> list[int]:
    """Return the pids of our agents on *node*."""
    lines = node.exec(["ps", "-u", user_of(node), "-o", "pid=,args="]).stdout.splitlines()
    return [int(line.split(None, 1)[0]) for line in lines if _is_agent(line)]


def kernel_files(node: Machine) -> list[str]:
    """Return the folders of kernels that *node*'s agents keep."""
    script = """cache="${XDG_CACHE_HOME:-$HOME/.cache}"
        short=$(printf %s "$cache" | sha256sum | cut -c1-8)  # where a path would be too long for a socket
        ls -d "$cache"/eg-distributed/*/k/* /tmp/eg-distributed-$(id -u)-$short/k/* 2>/dev/null"""
    return node.exec(["sh", "-c", script]).stdout.split()


async def no_kernels_left(node: Machine, seconds: float = MACHINE_SECONDS) -> None:
    """Wait until neither a process nor a file of kernels is on *node*."""
    await until_in_thread(
        f"{node.name} has nothing of kernels", lambda: not processes(node) and not kernel_files(node), seconds
    )


def kernel_sockets(gateway: Machine) -> list[str]:
    """Return the folders of kernels' sockets at *gateway*."""
    script = "ls -d ${EG_DISTRIBUTED_RUNTIME_DIR:-/tmp/eg-distributed-*}/*/ 2>/dev/null"
    found = gateway.exec(["sh", "-c", script]).stdout.split()
    # Where the gateway is a process, the folder of an agent of its own is there as well.
    return [folder for folder in found if not folder.endswith("/eg-distributed/")]


def gateway_memory(gateway: Gateway) -> float:
    """Return the MiB that the gateway's own process has in memory."""
    lines = gateway.exec(["ps", "-eo", "rss=,args="], user="root").check().stdout.splitlines()
    return max(int(line.split()[0]) for line in lines if "enterprisegateway" in line) / 1024


def count_kernels(nodes: Iterable[Node]) -> Counter[str]:
    """Return how many kernels run on each of *nodes*, by the nodes' own process tables."""
    looked_at = list(nodes)
    with ThreadPoolExecutor(8) as pool:
        tables = list(pool.map(_table, looked_at))
    return Counter({node.name: _kernels(table) for node, table in zip(looked_at, tables, strict=True)})


def _kernels(table: Mapping[int, tuple[int, str]]) -> int:
    """Count the kernels in a process table; one that forks to run a command is two alike for a moment, parent and child."""
    kernels = {
        pid: parent for pid, (parent, args) in table.items() if "ipykernel" in args and "python" in args.split()[0]
    }
    return sum(parent not in kernels for parent in kernels.values())


async def environment(kernel: Kernel) -> dict[str, str]:
    """Return the environment that *kernel* was started with, in bytes from the system and not as Python's copy of it."""
    found: dict[str, str] = await kernel.evaluate(
        "dict(e.split('=', 1) for e in open('/proc/self/environ', 'rb').read().decode().split(chr(0)) if e)"
    )
    return found


def nothing_ran(nodes: Iterable[Node], gateway: Gateway) -> bool:
    """Whether no value was taken for a command, on any node or at the gateway."""
    return all(m.exec(["test", "!", "-e", "/tmp/ran"]).exit_code == 0 for m in (*nodes, gateway))
