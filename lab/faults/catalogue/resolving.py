"""Network faults of names: look-ups on a machine that are late, find nothing, or lie."""

from __future__ import annotations

import json

from lab.faults.catalogue.network import NETWORK
from lab.faults.catalogue.ssh import SYSTEM
from lab.faults.inside import source
from lab.faults.model import Context, FaultKind, Mechanism, Moves, Option
from lab.names import fqdn, short_name


def _resolver(context: Context, **behaviour: object) -> Moves:
    """Send the node's questions for names to a resolver of the fault's own, which asks the one that they went to."""
    folder = context.folder
    names = [name.lower() for name in context.options["names"]]
    # Both of a machine's names: whoever asks for one must not find it by the other.
    names = list(dict.fromkeys(n for name in names for n in _both(name, context)))
    config = {"names": names, **behaviour}
    return Moves(
        (
            ("@write", f"{folder}/resolver.py", source("resolver"), "644"),
            ("@write", f"{folder}/resolver.json", json.dumps(config)),
            ("@spawn", folder, "resolver", f"{folder}/resolver.json"),
            ("@redirect", folder, "resolver", context.chain, "udp", "53"),
        ),
        (("@unchain", "nat", context.chain), ("@end", folder, "resolver")),
    )


def _both(name: str, context: Context) -> list[str]:
    return [short_name(name), fqdn(name)] if short_name(name) in context.machines else [name]


def _hosts(context: Context) -> Moves:
    names = [n for name in context.options["names"] for n in _both(name, context)]
    line = f"{context.options['address']} {' '.join(names)}"
    return Moves((("@block", "/etc/hosts", context.mark, line),), (("@unblock", "/etc/hosts", context.mark),))


def _named(context: Context) -> str:
    return "" if context.options["names"] else "it needs `names`"


NAMES = Option("names", "names", (), "names that are met, as the node asks for them [all]")
RESOLVER = "resolver of its own behind nat REDIRECT"

KINDS = (
    FaultKind(
        "slow-dns",
        "network",
        "The node's questions for names are answered late.",
        "a look-up takes that long",
        (Mechanism(RESOLVER, lambda c: _resolver(c, delay=c.options["milliseconds"] / 1000), needs=NETWORK),),
        (Option("milliseconds", "number", 2000.0, "added to each answer", 0, 60_000), NAMES),
    ),
    FaultKind(
        "name-missing",
        "network",
        "Names don't resolve on the node.",
        "a look-up says that there is no such name",
        (Mechanism(RESOLVER, lambda c: _resolver(c, missing=True), needs=NETWORK),),
        (NAMES,),
    ),
    FaultKind(
        "wrong-address",
        "network",
        "Names lead to another address on the node.",
        "a look-up gives that address",
        (
            Mechanism(RESOLVER, lambda c: _resolver(c, address=c.options["address"]), needs=NETWORK),
            Mechanism("lines in /etc/hosts", _hosts, needs=SYSTEM, refuse=_named),
        ),
        (Option("address", "text", "192.0.2.1", "what they lead to; the default is reserved and nobody's"), NAMES),
    ),
)
