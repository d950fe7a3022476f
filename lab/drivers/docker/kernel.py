"""What `lab doctor` asks of the kernel: what faults stand on (iptables matches, queueing disciplines).

Each is tried for real, in a network namespace that ends with the command, so nothing of this machine's own rules is touched.
Kernel configurations were rejected as a source: a built-in option says nothing of what this user may do with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Final

from lab.drivers.findings import Finding
from lab.drivers.probing import run, tool

_RULE: Final = ("-A", "OUTPUT", "-p", "tcp")

IPTABLES: Final = {
    "statistic": ("-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "DROP"),
    "REJECT": ("-j", "REJECT", "--reject-with", "tcp-reset"),
    "conntrack": ("-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"),
    "connlimit": ("-m", "connlimit", "--connlimit-above", "2", "-j", "DROP"),
    "comment": ("-m", "comment", "--comment", "lab", "-j", "DROP"),
}
"""Match or target, and a rule that needs it: loss, refuse and reset, one way, limits, whose rule it is."""

QDISCS: Final = {
    "netem": ("netem", "delay", "1ms"),
    "tbf": ("tbf", "rate", "1mbit", "burst", "4kb", "latency", "50ms"),
}


def checks() -> Iterator[Finding]:
    """Yield what the kernel can do. On another system than Linux the engine's own kernel can't be asked from here."""
    if not sys.platform.startswith("linux"):
        yield Finding("iptables", "unknown", f"{sys.platform}: the engine's kernel can't be asked from here")
        return
    inside = _network_namespace()
    yield _iptables(inside)
    for name, words in QDISCS.items():
        yield _qdisc(inside, name, words)


def _network_namespace() -> list[str] | None:
    """Return what to put before a command so that it has a network of its own; None if this user can't."""
    unshare = tool("unshare")
    if unshare is None:
        return None
    for words in (["--net"], ["--user", "--map-root-user", "--net"]):
        if run([unshare, *words, "true"])[0]:
            return [unshare, *words]
    return None


def _iptables(inside: Sequence[str] | None) -> Finding:
    command = tool("iptables")
    if inside is None or command is None:
        why = "there is no iptables here" if command is None else "this user can't make a network namespace"
        remedy = "install iptables" if command is None else "run `lab doctor` as root"
        return Finding("iptables", "unknown", f"not tried: {why}; nodes have their own", remedy)
    ways = [way for way in (command, tool("iptables-legacy"), tool("iptables-nft")) if way]
    lacking = [
        name
        for name, words in IPTABLES.items()
        if not any(run([*inside, way, "-w", "5", *_RULE, *words])[0] for way in dict.fromkeys(ways))
    ]
    if not lacking:
        return Finding("iptables", "ok", ", ".join(IPTABLES))
    remedy = "`modprobe " + " ".join(f"xt_{name}" for name in lacking) + "`; without it, faults that need it say so"
    return Finding("iptables", "warning", f"the kernel lacks {', '.join(lacking)}", remedy)


def _qdisc(inside: Sequence[str] | None, name: str, words: Sequence[str]) -> Finding:
    command = tool("tc")
    if inside is None or command is None:
        why = "there is no tc here" if command is None else "this user can't make a network namespace"
        return Finding(name, "unknown", f"not tried: {why}; nodes have their own", "install iproute2")
    done, said = run([*inside, command, "qdisc", "add", "dev", "lo", "root", *words])
    if done:
        return Finding(name, "ok", "the kernel has it")
    remedy = f"`modprobe sch_{name}` if this kernel has it as a module; without it faults go another way and say which"
    return Finding(name, "warning", f"the kernel lacks it ({said})", remedy)
