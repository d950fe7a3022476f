"""Network faults: packets that vanish, connections that are refused, reset or half there.

Packets are met in the node's own network namespace, by rules in a chain of the fault's own. What is lost by chance, late or
slow is in shaping.py, names that don't resolve are in resolving.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from lab.drivers.capabilities import Capability
from lab.errors import LabUsageError
from lab.faults.model import Context, FaultKind, Mechanism, Moves, Option
from lab.faults.reach import is_node
from lab.names import short_name

NETWORK: Final[frozenset[Capability]] = frozenset({"network"})
IPTABLES = ("iptables", "-w", "5")
PEERS = Option("peers", "names", (), "machines or addresses that are met [all]")
PORT = Option("port", "integer", 0, "TCP port; 0: the machine's own, 22 of a node, 8888 of a gateway", 0, 65535)
WAY = Option("direction", "text", "both", "which packets, seen from the node", choices=("both", "in", "out"))


def chain(context: Context, rules: Sequence[Sequence[str]], hooks: Sequence[str], table: str = "filter") -> Moves:
    """Put *rules* into the fault's own chain, and a jump to it first into *hooks*."""
    base = (*IPTABLES, "-t", table)
    return Moves(
        (
            (*base, "-N", context.chain),
            *((*base, "-A", context.chain, *rule) for rule in rules),
            *((*base, "-I", hook, "-j", context.chain) for hook in hooks),
        ),
        (("@unchain", table, context.chain),),
    )


def port(context: Context) -> str:
    """Return the port that the option `port` means."""
    return str(context.options["port"] or context.node.own_port)


def hooks(context: Context) -> list[str]:
    """Return the chains that the option `direction` means."""
    return {"both": ["INPUT", "OUTPUT"], "in": ["INPUT"], "out": ["OUTPUT"]}[context.options["direction"]]


def met(context: Context) -> list[list[str]]:
    """Return the beginnings of incoming rules that match the option `peers`."""
    return [["-s", address] for address in context.addresses()] or [[]]


# -- iptables ----------------------------------------------------------------------------------------------------------


def _partition(context: Context) -> Moves:
    """Drop by peer, except what is on the node's own side, and never what the node says to itself."""
    rules: list[list[str]] = [["-i", "lo", "-j", "RETURN"], ["-o", "lo", "-j", "RETURN"]]
    ways = {"INPUT": "-s", "OUTPUT": "-d"}
    own, others = _sides(context)
    moves = Moves((), ())
    base = (*IPTABLES, "-t", "filter")
    for hook in hooks(context):
        # A chain for each way: one rule can't match by source in one hook and by destination in the other.
        name = f"{context.chain}{hook[0].lower()}"
        loopback = [rule for rule in rules if rule[0] == ("-i" if hook == "INPUT" else "-o")]
        side = [[ways[hook], address, "-j", "RETURN"] for address in own]
        drops = [[ways[hook], address, "-j", "DROP"] for address in others] or [["-j", "DROP"]]
        moves += Moves(
            (
                (*base, "-N", name),
                *((*base, "-A", name, *rule) for rule in (*loopback, *side, *drops)),
                (*base, "-I", hook, "-j", name),
            ),
            (("@unchain", "filter", name),),
        )
    return moves


def _sides(context: Context) -> tuple[list[str], list[str]]:
    """Return the addresses that stay reachable, and those that don't (none: all the rest)."""
    groups = context.options["groups"]
    if not groups:
        own = [machine.address for machine in context.side if machine.name != context.node.name]
        return own, context.addresses()
    if context.options["peers"]:
        raise LabUsageError("partition: groups and peers can't be given together")
    parsed = [[short_name(name.strip()) for name in group.split(",") if name.strip()] for group in groups.split("|")]
    named = [name for group in parsed for name in group]
    unknown = sorted(set(named) - set(context.machines))
    if unknown or len(set(named)) < len(named):
        wrong = unknown[0] if unknown else next(name for name in named if named.count(name) > 1)
        there = f"there are: {', '.join(context.machines)}"
        raise LabUsageError(f"partition: groups can't be {groups!r}", cause=f"{wrong!r} is unknown or twice; {there}")
    mine = short_name(context.node.name)
    # Whoever is in no group is in one with all others that are in none.
    rest = [name for name in context.machines if name not in named]
    side = next((group for group in parsed if mine in group), rest)
    return [], [address for name, address in context.machines.items() if name not in side and name != mine]


def _blackhole(context: Context) -> Moves:
    own, others = _sides(context)
    targets = others or [a for n, a in context.machines.items() if a not in own and a != context.node.address]
    return Moves(
        tuple(("ip", "route", "add", "blackhole", f"{address}/32") for address in targets),
        tuple(("@tolerate", "ip", "route", "del", "blackhole", f"{address}/32") for address in targets),
    )


def _others_cut(context: Context) -> str:
    """A gateway that can't be given rules, since this side may not, is cut off all the same if all others drop its packets."""
    nodes = {machine.address for machine in context.side if is_node(machine)}
    if is_node(context.node) or context.options["direction"] != "both" or not context.options["groups"]:
        return "only a gateway's part can be left to the nodes, and only between groups, both ways"
    return "" if set(_sides(context)[1]) <= nodes else "not all on the other sides are nodes of this fault"


def _at_port(name: str, *rule: str, state: Sequence[str] = (), elsewhere: Sequence[str] = ()) -> tuple[Mechanism, ...]:
    """Return the ways to meet what clients send to a port: by the port that they named, else by the one that it comes to.

    The two differ where another fault's proxy stands in between, and only conntrack knows the first. *state* is what it has to
    say besides, *elsewhere* is matched in its place. Replies to the node's own connections are never met.
    """

    def moves(match: Callable[[str], Sequence[str]]) -> Callable[[Context], Moves]:
        return lambda context: chain(
            context, [[*peer, "-p", "tcp", *match(port(context)), *rule] for peer in met(context)], ["INPUT"]
        )

    named = moves(lambda p: ("-m", "conntrack", *state, "--ctdir", "ORIGINAL", "--ctorigdstport", p))
    plain = moves(lambda p: ("--dport", p, *elsewhere))
    return Mechanism(name, named, needs=NETWORK), Mechanism(f"{name} without conntrack", plain, needs=NETWORK)


REJECT = ("-j", "REJECT", "--reject-with", "tcp-reset")


KINDS = (
    FaultKind(
        "partition",
        "network",
        "Packets between the named nodes and the rest vanish: both ways, one way, or by groups.",
        "connects time out, open connections hang",
        (
            Mechanism("iptables DROP", _partition, needs=NETWORK),
            Mechanism(
                "blackhole routes",
                _blackhole,
                needs=NETWORK,
                refuse=lambda c: "" if c.options["direction"] == "both" else "routes know no direction",
            ),
            Mechanism("cut at the nodes", lambda _: Moves((), ()), needs=NETWORK, refuse=_others_cut),
        ),
        (
            PEERS,
            WAY,
            Option("groups", "text", "", "`node1,node2|node3`: only within a group; who is unnamed forms one more"),
        ),
    ),
    FaultKind(
        "drop-new",
        "network",
        "New connections are dropped; those that are open live on.",
        "a connect times out, an open session answers",
        _at_port("iptables DROP of SYN", "--syn", "-j", "DROP"),
        (PORT, PEERS),
    ),
    FaultKind(
        "refuse",
        "network",
        "New connections are refused, as if nothing listened.",
        "a connect is refused at once",
        _at_port("iptables REJECT of SYN", "--syn", *REJECT),
        (PORT, PEERS),
    ),
    FaultKind(
        "reset",
        "network",
        "Connections are reset as soon as their client says something.",
        "an open session ends with a reset",
        _at_port(
            "iptables REJECT of established packets",
            *REJECT,
            state=("--ctstate", "ESTABLISHED"),
            elsewhere=("!", "--syn"),
        ),
        (PORT, PEERS),
    ),
    FaultKind(
        "half-open",
        "network",
        "Connections are accepted and then nothing arrives any more, in either state.",
        "a connect succeeds, no banner comes",
        # The client's SYN is answered, and nothing that it says after that arrives.
        _at_port("iptables DROP of all but SYN", "!", "--syn", "-j", "DROP"),
        (PORT, PEERS),
    ),
)
