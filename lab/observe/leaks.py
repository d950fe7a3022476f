"""What a test left behind on a machine: two snapshots, and the difference by name."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import httpx

from lab.drivers.machines import Gateway, Machine
from lab.errors import LabError
from lab.lab import Lab
from lab.observe.snapshots import Process, Snapshot, of_container, of_processes

IGNORED: Final = (
    # An agent stays for a while on purpose, with a folder of its own; kernels' folders in there count (see `_kind`).
    # A bridge lives as long as its gateway's SSH connection.
    "process:*/eg-distributed/*.zip*",
    "file:*/.cache/eg-distributed/*",
    "file:*/eg-distributed/*",
    "file:/tmp/eg-distributed-*",
    "port:*eg-distributed*",
    # A fault's proxy is dismissed when the fault heals, and leaves with the last connection that goes through it.
    "process:*/lab-faults/*/proxy.py*",
    # What any first login or first kernel leaves in a home.
    "file:*/.cache",
    "file:*/.ipython*",
    "file:*/.jupyter*",
    "file:*/.local",
    "file:*/.local/share*",
    "file:*/.config*",
    "file:*/__pycache__*",
    # Kernelspecs that a test offers at a gateway.
    "file:/usr/local/share/jupyter/kernels/*",
    # The lab's own, and the engine's; gateways know the host keys of nodes that other tests add.
    "file:/home/gateway/.ssh/* is changed",
    "file:/run/lab*",
    "file:/run/sshd*",
    "file:/run/motd*",
    "file:/run/utmp",
    "file:/run/systemd*",
    "file:/etc/*-",
    "file:/etc/.pwd.lock",
    "file:/etc/resolv.conf",
    "file:/etc/mtab",
)
"""What no test is blamed for, as `kind:pattern`; tests and suites add their own."""

PUT_ASIDE: Final = ".lab-fault-"
"""In the names of files that a fault has put aside and puts back when it heals: never to be deleted."""
HERE: Final = "127.0.0.1"
HTTP_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Leak:
    """One thing that was not there before, or is gone or changed: on which machine, of what kind, and which."""

    machine: str
    kind: str
    """process, port, file, mount, rule, connection, kernel, state."""
    what: str
    remove: tuple[str, ...] = ()
    """An argv that takes it away as root, where there is one; for `clean`."""

    def __str__(self) -> str:
        return f"{self.machine}: {self.kind} {self.what}"

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether one of the `kind:pattern`s (fnmatch) means it."""
        return any(fnmatch.fnmatchcase(f"{self.kind}:{self.what}", pattern) for pattern in patterns)


@dataclass(frozen=True)
class View:
    """All that is looked at: machines by name, gateways' kernels by id, and errors where a machine could not be asked."""

    machines: Mapping[str, Snapshot]
    kernels: Mapping[str, Mapping[str, str]]
    states: Mapping[str, str] = field(default_factory=dict)


def look(lab: Lab, machines: Sequence[Machine]) -> View:
    """Take a snapshot of *machines*, at once; called before and after a test. Raises nothing for a machine that is down."""
    with ThreadPoolExecutor(8, thread_name_prefix="lab-leaks") as pool:
        found = list(pool.map(_look_at, machines))
        gateways = [machine for machine in machines if isinstance(machine, Gateway)]
        kernels = list(pool.map(_kernels, gateways))
    names = [machine.name for machine in machines]
    return View(
        {name: each for name, each in zip(names, found, strict=True) if isinstance(each, Snapshot)},
        {gateway.name: each for gateway, each in zip(gateways, kernels, strict=True) if isinstance(each, dict)},
        {name: each for name, each in zip(names, found, strict=True) if isinstance(each, str)}
        | {gateway.name: each for gateway, each in zip(gateways, kernels, strict=True) if isinstance(each, str)},
    )


def _look_at(machine: Machine) -> Snapshot | str:
    try:
        state = machine.state
        if state != "running":
            return f"is {state}"
        share = machine.share()
        return of_container(machine) if share is None else of_processes(share)
    except LabError as error:
        return f"can't be looked at: {error}"


def _kernels(gateway: Gateway) -> dict[str, str] | str:
    """Return the gateway's kernels: id to name of the kernelspec."""
    try:
        answer = httpx.get(f"{gateway.url}/api/kernels", timeout=HTTP_SECONDS, trust_env=False, headers=gateway.headers)
        return {kernel["id"]: kernel["name"] for kernel in answer.raise_for_status().json()}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        return f"does not answer: {type(error).__name__} {error}"
    except LabError as error:
        return f"does not answer: {error}"


def compare(before: View, after: View, *, gateways: Iterable[str] = (), ignored: Sequence[str] = IGNORED) -> list[Leak]:
    """Return what is in *after* and was not in *before*, or is broken by now; sorted.

    *gateways* are addresses that may hold one SSH connection to each node, new or not: a gateway keeps its connection. In a
    local lab all have the same address, and it is there once for each. Where a fault's proxy still carries such a connection,
    it comes from the node itself.
    """
    leaks: list[Leak] = []
    held = Counter(gateways)
    leaks += [Leak(name, "state", state) for name, state in after.states.items() if before.states.get(name) != state]
    for name, new in after.machines.items():
        old = before.machines.get(name, Snapshot())
        leaks += _processes(name, old, new)
        leaks += [Leak(name, "port", f"{port} ({who})") for port, who in new.ports.items() if port not in old.ports]
        if name in before.machines:
            leaks += [Leak(name, "port", f"{port} ({who}) is gone") for port, who in _lost(old, new)]
            leaks += [Leak(name, "file", f"{path} is changed") for path in _changed(old, new)]
            leaks += [Leak(name, "mount", path) for path in sorted(new.mounts - old.mounts)]
        leaks += [Leak(name, _kind(path), path, ("rm", "-rf", "--", path)) for path in _topmost(old.files, new.files)]
        leaks += [Leak(name, "rule", rule) for rule in new.rules if rule not in old.rules]
        leaks += _connections(name, old, new, held)
    for name, kernels in after.kernels.items():
        known = before.kernels.get(name, {})
        leaks += [Leak(name, "kernel", f"{key} ({spec})") for key, spec in kernels.items() if key not in known]
    return sorted((leak for leak in leaks if not leak.matches(ignored)), key=str)


def _processes(name: str, old: Snapshot, new: Snapshot) -> list[Leak]:
    """By user and command line, not by pid: an SSH server that was started anew is the same to everybody."""

    def key(process: Process) -> tuple[str, str]:
        return process.user, process.command

    room = Counter(map(key, old.processes))
    leaks = []
    for process in sorted(new.processes, key=lambda each: each.pid):
        if room[key(process)] > 0:
            room[key(process)] -= 1
            continue
        what = f"{process.pid} {process.command[:160]}"
        kind = "process"
        if process.kernel:
            kind, what = "kernel", f"{process.kernel} as process {what}"
        leaks.append(Leak(name, kind, what, ("kill", "-9", "--", str(process.pid))))
    return leaks


def _lost(old: Snapshot, new: Snapshot) -> list[tuple[str, str]]:
    """Return ports towards the network that nobody listens on any more."""
    return [(port, who) for port, who in old.ports.items() if port not in new.ports and "127." not in port]


def _changed(old: Snapshot, new: Snapshot) -> list[str]:
    """Return guarded files (configuration, keys) with another content, or without any."""
    return [path for path, content in old.guarded.items() if new.guarded.get(path) != content]


def _topmost(old: Iterable[str], new: Iterable[str]) -> list[str]:
    """Return the new paths whose folder is not new itself, and folders of kernels."""
    added = set(new) - set(old)
    return sorted(path for path in added if path.rpartition("/")[0] not in added or _kind(path) == "kernel")


_KERNEL_FOLDER: Final = re.compile(r".*/eg-distributed/[^/]+/k/[^/]+|/tmp/eg-distributed-[^/]+/[0-9a-f-]{8,}")


def _kind(path: str) -> str:
    return "kernel" if _KERNEL_FOLDER.fullmatch(path) else "file"


def _connections(name: str, old: Snapshot, new: Snapshot, held: Mapping[str, int]) -> list[Leak]:
    leaks = []
    proxied = any(fnmatch.fnmatchcase(process.command, "*/lab-faults/*/proxy.py*") for process in new.processes)
    for peer, count in new.connections.items():
        allowed = max(
            old.connections.get(peer, 0), sum(held.values()) if proxied and peer == HERE else held.get(peer, 0)
        )
        if count > allowed:
            leaks.append(Leak(name, "connection", f"SSH from {peer}: {count}, not {allowed}"))
    return leaks


def clean(machines: Sequence[Machine], leaks: Iterable[Leak]) -> None:
    """Take away what can be, so that the next test starts clean; what can't shows there as it shows here.

    Called after the test was failed for it. Raises nothing: a machine that can't be cleaned is the next look's business.
    """
    by_name = {machine.name: machine for machine in machines}
    # Rules before their chains: a chain that is jumped to can't be removed.
    for leak in sorted(leaks, key=lambda each: (each.kind == "rule", " :" in each.what)):
        machine = by_name.get(leak.machine)
        if machine is None:
            continue
        try:
            if leak.kind == "state":
                machine.start()
            elif leak.kind == "rule":
                _remove_rule(machine, leak.what)
            elif isinstance(machine, Gateway) and leak.kind == "kernel" and not leak.remove:
                url = f"{machine.url}/api/kernels/{leak.what.split()[0]}"
                httpx.delete(url, timeout=HTTP_SECONDS, trust_env=False, headers=machine.headers)
            elif leak.remove and PUT_ASIDE not in leak.what:
                # As root in a container; a local machine's processes are this user's own.
                machine.exec(leak.remove, user="root")
        except (LabError, httpx.HTTPError):
            continue


def _remove_rule(machine: Machine, rule: str) -> None:
    """Undo one line of iptables-save: `filter -A INPUT …` by the same with -D; `filter :CHAIN -` by removing the chain."""
    table, _, text = rule.partition(" ")
    words = shlex.split(text)
    if table == "tc":
        machine.exec(["tc", "qdisc", "del", "dev", words[words.index("dev") + 1], "root"], user="root")
        return
    tool = "ip6tables" if table.endswith("6") else "iptables"
    command = [tool, "-w", "5", "-t", table.removesuffix("6")]
    if words[0] == "-A":
        machine.exec([*command, "-D", *words[1:]], user="root")
    else:
        chain = words[0].removeprefix(":")
        machine.exec([*command, "-F", chain], user="root")
        machine.exec([*command, "-X", chain], user="root")
