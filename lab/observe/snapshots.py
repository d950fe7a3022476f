"""What is on a machine now: processes, ports, files, firewall rules, SSH connections. Compared by lab/observe/leaks.py."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from lab.drivers.machines import Machine, Share
from lab.errors import LabError, LabNotReady
from lab.processes import argv, environment

SECONDS: Final = 30.0
"""One snapshot of a container: 0.1 s on an idle machine."""


@dataclass(frozen=True)
class Process:
    """One process: *kernel* is the id in its KERNEL_ID, empty where it has none."""

    pid: int
    user: str
    command: str
    kernel: str = ""


@dataclass(frozen=True)
class Snapshot:
    """One machine at one moment."""

    processes: tuple[Process, ...] = ()
    ports: Mapping[str, str] = field(default_factory=dict)
    """`tcp 0.0.0.0:22` to the name of who listens."""
    files: frozenset[str] = frozenset()
    guarded: Mapping[str, str] = field(default_factory=dict)
    """Files whose content counts (configuration, keys), by checksum."""
    rules: tuple[str, ...] = ()
    """Lines of iptables-save behind their table's name, and queueing disciplines behind `tc`."""
    mounts: frozenset[str] = frozenset()
    """Where something is mounted; of a container."""
    connections: Mapping[str, int] = field(default_factory=dict)
    """How many SSH connections there are from which address."""


# One exec for everything: on a small machine an exec costs more than all that it runs. Nothing of ours is in the text.
# Root of a container may not look into other users' processes, so each is asked as its own user and group. $$ marks this shell,
# whose descendants are no part of what is looked at.
SCRIPT: Final = r"""
echo "==self"; echo $$
echo "==processes"; ps -ww -eo pid=,ppid=,user:32=,stat=,args=
users=$(ps -eo uid=,gid= | sort -u | tr -s ' ' | sed 's/^ //; s/ /:/')
echo "==kernels"; for user in $users; do
    setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups grep -Hsz -m1 '^KERNEL_ID=' /proc/[0-9]*/environ
done | tr '\0' '\n'
echo "==ports"; for user in $users; do
    setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups ss -Hlntup
done
echo "==connections"; ss -Htn state established '( sport = :22 )'
echo "==files"; find /tmp /var/tmp /dev/shm /home /root /run /etc /usr/local -xdev -mindepth 1 2>/dev/null
echo "==mounts"; cut -d' ' -f5 /proc/self/mountinfo
echo "==guarded"; find /etc /home/*/.ssh /root/.ssh -xdev -type f -exec cksum {} + 2>/dev/null
if [ "$(id -u)" = 0 ]; then
    for family in iptables ip6tables; do echo "==rules $family"; $family-save 2>/dev/null; done
    echo "==tc"; tc qdisc show 2>/dev/null
fi
echo "==end"
"""
UNKNOWN: Final = "unknown"
TRIES: Final = 3
"""An engine on a busy machine may hang up before an exec's output is whole; half a look is none."""


def of_container(machine: Machine) -> Snapshot:
    """Look at a machine that has its own process table and network; raise LabError if it can't be asked."""
    sections = _sections(machine)
    guarded = dict(_checksum(line) for line in sections["guarded"] if line.count(" ") >= 2)
    rules = [*_rules(sections.get("rules iptables", [])), *_rules(sections.get("rules ip6tables", []), "6")]
    return Snapshot(
        tuple(_processes(sections["processes"], int(sections["self"][0]), _kernels(sections["kernels"]))),
        _ports(sections["ports"]),
        frozenset(sections["files"]),
        guarded,
        (*rules, *(f"tc {line.strip()}" for line in sections.get("tc", []) if not _is_plain(line))),
        frozenset(sections["mounts"]),
        Counter(
            line.split()[-1].rpartition(":")[0].strip("[]").removeprefix("::ffff:") for line in sections["connections"]
        ),
    )


def _sections(machine: Machine) -> dict[str, list[str]]:
    """Run the script and return its sections' lines by their names."""
    for number in range(TRIES):
        try:
            text = machine.exec(["sh", "-c", SCRIPT], user="root", timeout=SECONDS).check().stdout
        except LabNotReady:
            raise
        except LabError:
            if number == TRIES - 1:
                raise
            continue
        if text.startswith("==self\n") and text.endswith("==end\n"):
            break
    else:
        raise LabError(f"a look at {machine.name} came back in part", cause=f"{len(text)} characters in the last try")
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line.startswith("=="):
            current = sections.setdefault(line[2:], [])
        elif line:
            current.append(line)
    return sections


def _kernels(lines: list[str]) -> dict[int, str]:
    """`/proc/12/environ:KERNEL_ID=…` by pid."""
    found = {}
    for line in lines:
        place, _, value = line.partition(":KERNEL_ID=")
        found[int(place.split("/")[2])] = value
    return found


def _processes(lines: list[str], own: int, kernels: Mapping[int, str]) -> Iterator[Process]:
    table: dict[int, tuple[int, str, str, str]] = {}
    for line in lines:
        pid, parent, user, stat, *rest = line.split(None, 4)
        table[int(pid)] = (int(parent), user, stat, rest[0] if rest else "")
    outer = table.get(own, (0,))[0]
    for number, (_, user, _, command) in table.items():
        lineage = {number, *_ancestors(number, table)}
        # The engine's exec runs `timeout`, and that this script. SSH sessions are counted as connections, by their peer.
        if own in lineage or (number == outer and command.startswith("timeout ")) or command.startswith("sshd:"):
            continue
        # Another exec that looks on meanwhile: a fault's watchdog or the keeper, over in a moment.
        if any(table[each][3].startswith("timeout --foreground") for each in lineage if each in table):
            continue
        yield Process(number, user, command, kernels.get(number, ""))


def _ancestors(pid: int, table: Mapping[int, tuple[int, str, str, str]]) -> Iterator[int]:
    seen = set()
    while pid in table and pid not in seen:
        seen.add(pid)
        pid = table[pid][0]
        yield pid


def _ports(lines: list[str]) -> dict[str, str]:
    """Each user's look has all ports, and the names of those that are its own."""
    found: dict[str, str] = {}
    for port, who in map(_port, lines):
        # 127.0.0.11 is the engine's own resolver.
        if "127.0.0.11:" not in port and (who != UNKNOWN or port not in found):
            found[port] = who
    return found


def _port(line: str) -> tuple[str, str]:
    """`tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=1,fd=3))` as (`tcp 0.0.0.0:22`, `sshd`)."""
    words = line.split()
    who = words[6].split('"')[1] if len(words) > 6 and '"' in words[6] else UNKNOWN
    return f"{words[0]} {words[4]}", who


def _checksum(line: str) -> tuple[str, str]:
    number, size, path = line.split(" ", 2)
    return path, f"{number} {size}"


def _rules(lines: list[str], family: str = "") -> Iterator[str]:
    table = ""
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = line.split()[:2]
            # A built-in chain with its usual policy is there as soon as somebody looks.
            if policy != "ACCEPT" and not name.startswith(":DOCKER_"):
                yield f"{table}{family} {name} {policy}"
        elif line.startswith("-A") and "DOCKER_" not in line:
            yield f"{table}{family} {line}"


def _is_plain(line: str) -> bool:
    """A queueing discipline that nobody has set."""
    return line.split()[1] in {"noqueue", "pfifo_fast", "mq", "fq_codel"}


# -- machines that are processes --------------------------------------------------------------------------------------


def of_processes(share: Share) -> Snapshot:
    """Look at a machine that has a share of this computer: its processes, what they listen on, and the files of its folders."""
    tables = {pid: " ".join(argv(pid)).strip() for pid in (share.main, *share.pids)}
    listening: dict[str, str] = {}
    peers = set[str]()
    for pid in tables:
        for local, peer, status in _sockets(pid):
            if status == psutil.CONN_LISTEN:
                listening[f"tcp {local}"] = Path(tables[pid].split(" ", 1)[0]).name
            elif status == psutil.CONN_ESTABLISHED and local.endswith(f":{share.port}"):
                # Once for each connection: sshd's processes share its socket.
                peers.add(peer)
    # Every peer is this machine; a count is all there is.
    connected = Counter(peer.rpartition(":")[0] for peer in peers)
    files = {str(path) for folder in share.folders for path in folder.rglob("*")}
    found = [
        Process(pid, str(os.getuid()), tables[pid], environment(pid).get("KERNEL_ID", ""))
        for pid in share.pids - share.servers
        if tables[pid]
    ]
    guarded = {str(path): _content(path) for path in share.guarded if path.is_file()}
    return Snapshot(tuple(found), listening, frozenset(files), guarded, connections=connected)


def _content(path: Path) -> str:
    try:
        return f"{zlib.crc32(path.read_bytes())}"
    except OSError:
        return ""


def _sockets(pid: int) -> Iterator[tuple[str, str, str]]:
    """Yield (local, peer, status) of a process's IPv4 TCP sockets: on loopback there are no others here."""
    with contextlib.suppress(psutil.Error):
        for found in psutil.Process(pid).net_connections("tcp4"):
            yield _address(found.laddr), _address(found.raddr), found.status


def _address(address: tuple[str, int] | tuple[()]) -> str:
    return "{}:{}".format(*address) if address else "0.0.0.0:0"
