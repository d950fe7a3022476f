"""Network faults that let packets through, but not as they were sent: fewer, later, slower, or up to some byte.

What the kernel can't do (delay without netem) a proxy in the path does: it meets connections that are made after it, and
sshd sees them come from the node itself.
"""

from __future__ import annotations

import json

from lab.faults.catalogue.network import IPTABLES, NETWORK, PORT, WAY, port
from lab.faults.inside import source
from lab.faults.model import Context, FaultKind, Mechanism, Moves, Option, Step


def _loss(context: Context) -> Moves:
    base = (*IPTABLES, "-t", "filter")
    probability = f"{context.options['percent'] / 100:.6f}"
    rule = ("-m", "statistic", "--mode", "random", "--probability", probability, "-j", "DROP")
    # The jump leaves loopback out: in a chain that both hooks use, no rule may name an interface of one way.
    inward, outward = (*base, "-I", "INPUT", "!", "-i", "lo"), (*base, "-I", "OUTPUT", "!", "-o", "lo")
    jumps = {"both": (inward, outward), "in": (inward,), "out": (outward,)}[context.options["direction"]]
    own: tuple[Step, ...] = ((*base, "-N", context.chain), (*base, "-A", context.chain, *rule))
    return Moves((*own, *((*jump, "-j", context.chain) for jump in jumps)), (("@unchain", "filter", context.chain),))


# -- qdiscs --------------------------------------------------------------------------------------------------------------


def _qdisc(*discipline: str) -> Moves:
    # `add`, never `replace`: a discipline that is there isn't ours. The handle says at the end which one is.
    return Moves(
        (("tc", "qdisc", "add", "dev", "eth0", "root", "handle", "1ab:", *discipline),),
        (("@tolerate", "tc", "qdisc", "del", "dev", "eth0", "root", "handle", "1ab:"),),
    )


def _netem_delay(context: Context) -> Moves:
    o = context.options
    return _qdisc("netem", "delay", f"{o['milliseconds']:g}ms", f"{o['jitter']:g}ms")


def _netem_loss(context: Context) -> Moves:
    return _qdisc("netem", "loss", f"{context.options['percent']:g}%")


def _tbf(context: Context) -> Moves:
    rate = context.options["kbit"]
    # A burst of a tenth of a second, but of one large packet at least: offloading hands down 64 KiB at a time.
    return _qdisc("tbf", "rate", f"{rate:g}kbit", "burst", f"{max(66000, int(rate * 12.5))}", "latency", "400ms")


def _only_out(context: Context) -> str:
    if context.options["direction"] != "out":
        return "it shapes what the node sends, and `direction` asks for more"
    return "it shapes all ports" if context.options["port"] else ""


def _whole_port(context: Context) -> str:
    return "it knows no ports" if context.options["port"] else ""


# -- the proxy -----------------------------------------------------------------------------------------------------------


def proxied(context: Context, **toxic: float) -> Moves:
    """Send new connections to the machine's port through a proxy of this fault, which does *toxic* to them.

    It is dismissed before the redirect goes, and leaves with its last connection.
    """
    folder = context.folder
    config = {"port": int(port(context)), "seed": context.seed, **toxic}
    return Moves(
        (
            ("@write", f"{folder}/proxy.py", source("proxy"), "644"),
            ("@write", f"{folder}/proxy.json", json.dumps(config)),
            ("@spawn", folder, "proxy", f"{folder}/proxy.json"),
            ("@redirect", folder, "proxy", context.chain, "tcp", port(context)),
        ),
        (("@unchain", "nat", context.chain), ("@dismiss", folder, "proxy")),
    )


def _proxy_delay(context: Context) -> Moves:
    return proxied(context, delay=context.options["milliseconds"] / 1000, jitter=context.options["jitter"] / 1000)


def _proxy_rate(context: Context) -> Moves:
    way = context.options["direction"]
    rate = context.options["kbit"] * 125
    return proxied(context, rate_in=rate if way != "out" else 0, rate_out=rate if way != "in" else 0)


def _proxy_stall(context: Context) -> Moves:
    return proxied(context, stall=context.options["bytes"])


PROXY = "userspace proxy behind nat REDIRECT"


KINDS = (
    FaultKind(
        "loss",
        "network",
        "Every packet is lost with the given probability.",
        "a share of datagrams or connects doesn't come through",
        (
            Mechanism(
                "tc netem loss",
                _netem_loss,
                claims=("qdisc",),
                needs=NETWORK,
                refuse=lambda c: "" if c.options["direction"] == "out" else "it shapes what the node sends only",
            ),
            Mechanism("iptables statistic", _loss, needs=NETWORK),
        ),
        (Option("percent", "number", 10.0, "packets lost of a hundred", 0.001, 100), WAY),
    ),
    FaultKind(
        "delay",
        "network",
        "What the node sends comes late, by a fixed time and a random one.",
        "an answer takes longer by that time",
        (
            Mechanism("tc netem delay", _netem_delay, claims=("qdisc",), needs=NETWORK, refuse=_whole_port),
            Mechanism(PROXY, _proxy_delay, needs=NETWORK),
        ),
        (
            Option("milliseconds", "number", 100.0, "added to each answer", 0, 60_000),
            Option("jitter", "number", 0.0, "milliseconds, up to that much more or less", 0, 60_000),
            Option("port", "integer", 0, "only this TCP port; 0: all where netem is, else the machine's own", 0, 65535),
        ),
    ),
    FaultKind(
        "bandwidth",
        "network",
        "The node's line is narrow.",
        "a transfer takes its size over the rate",
        (
            Mechanism("tc tbf", _tbf, claims=("qdisc",), needs=NETWORK, refuse=_only_out),
            Mechanism(PROXY, _proxy_rate, needs=NETWORK),
        ),
        (
            Option("kbit", "number", 1000.0, "kilobits a second, each way", 8, 10_000_000),
            Option("direction", "text", "out", "which way, seen from the node", choices=("both", "in", "out")),
            Option(
                "port", "integer", 0, "only this TCP port; 0: all where tbf does it, else the machine's own", 0, 65535
            ),
        ),
    ),
    FaultKind(
        "stall",
        "network",
        "New connections carry so many bytes towards the client, and then hang.",
        "the transfer stops there, the connection stays open",
        (Mechanism(PROXY, _proxy_stall, needs=NETWORK),),
        (Option("bytes", "integer", 4096, "bytes that come through", 0, 1 << 40), PORT),
    ),
)
