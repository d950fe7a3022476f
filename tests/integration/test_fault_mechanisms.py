"""Which mechanism a fault has where all can be had, and that the next ones do the same where the first can't be."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from lab import Lab, Node
from lab.faults import add, inject, kind
from tests.integration.fault_lab import (
    best,
    broken,
    failure,
    greeting,
    greets,
    knock,
    login,
    lookup,
    node,
    other,
    seen_from,
)

__all__ = ["broken", "node", "other"]

pytestmark = pytest.mark.timeout(120)

Look = Callable[[Lab, Node, Node], Any]


@dataclass
class Case:
    """A fault, its mechanisms in the order in which they are tried, and what is seen by each."""

    fault: str
    look: Look
    seen: Any
    healed: Any
    mechanisms: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


def knocked(lab: Lab, node: Node, other: Node) -> str:
    return knock(node)[:7]


def is_late(lab: Lab, node: Node, other: Node) -> bool:
    return best(lambda: greeting(node)) >= 0.5


def address(lab: Lab, node: Node, other: Node) -> str:
    return lookup(node, other.name)[0]


def hangs(lab: Lab, node: Node, other: Node) -> bool:
    """Say whether reading a file of the home takes for ever."""
    return node.exec(["timeout", "--signal=KILL", "1", "cat", "/home/lab/.profile"], user="root").exit_code == 137


CASES = (
    Case(
        "partition",
        lambda lab, node, other: seen_from(other, node),
        "timeout",
        "open",
        ("iptables DROP", "blackhole routes"),
    ),
    Case("drop-new", knocked, "timeout", "SSH-2.0", ("iptables DROP of SYN", "iptables DROP of SYN without conntrack")),
    Case(
        "refuse", knocked, "refused", "SSH-2.0", ("iptables REJECT of SYN", "iptables REJECT of SYN without conntrack")
    ),
    Case(
        "half-open",
        knocked,
        "silence",
        "SSH-2.0",
        ("iptables DROP of all but SYN", "iptables DROP of all but SYN without conntrack"),
    ),
    Case(
        "delay",
        is_late,
        True,
        False,
        ("tc netem delay", "userspace proxy behind nat REDIRECT"),
        {"milliseconds": 500},
    ),
    Case(
        "wrong-address",
        address,
        "192.0.2.7",
        None,
        ("resolver of its own behind nat REDIRECT", "lines in /etc/hosts"),
        {"names": "node2", "address": "192.0.2.7"},
    ),
    Case(
        "sshd-stopped",
        knocked,
        "refused",
        "SSH-2.0",
        ("sshd ended, its supervisor told to wait", "sshd moved to a loopback port"),
    ),
    Case(
        "readonly-home",
        lambda lab, node, other: failure(lab, node, "touch ~/written && rm ~/written") == "",
        False,
        True,
        ("read-only bind mount", "home owned by root"),
    ),
    Case(
        "hung-mount",
        hangs,
        True,
        False,
        ("FUSE mount that answers nothing", "fanotify permission events, never answered"),
    ),
    Case(
        "out-of-memory",
        lambda lab, node, other: failure(lab, node, "python3 -c 'bytearray(300 << 20)'") == "",
        False,
        True,
        ("engine's memory limit", "pam_limits on address space"),
        {"megabytes": 128},
    ),
    Case(
        "python-old",
        lambda lab, node, other: login(lab, node, "python3 -V")[:10],
        "Python 3.9",
        "Python 3.1",
        ("link to an older Python", "stand-in that knows its version only"),
        {"version": "3.9"},
    ),
)
LACKING = {"tc netem delay", "link to an older Python", "FUSE mount that answers nothing"}
"""What an engine's kernel may lack or its containers may not open, or an image that was built without the previous release."""


@pytest.mark.parametrize(
    ("case", "place"), [pytest.param(case, n, id=f"{case.fault}-{n}") for case in CASES for n in range(2)]
)
def test_each_mechanism_does_the_same(broken: Lab, node: Node, other: Node, case: Case, place: int) -> None:
    """Whichever is taken, the effect is the fault's, and it heals; a mechanism is left out where the one before it works."""
    healed = other.address if case.fault == "wrong-address" else case.healed
    whole = kind(case.fault)
    assert tuple(each.name for each in whole.mechanisms[:2]) == case.mechanisms
    rest = dataclasses.replace(whole, mechanisms=whole.mechanisms[place:])
    with inject.inflict(broken, rest, [node], duration=60, options=case.options) as fault:
        if case.mechanisms[place] not in LACKING:
            assert fault.mechanism == case.mechanisms[place]
        assert case.look(broken, node, other) == case.seen
    greets(node)
    assert case.look(broken, node, other) == healed


def test_a_mechanism_that_fails_is_undone_before_the_next(broken: Lab, node: Node) -> None:
    """What a first mechanism had done until it failed is not there beside the second."""
    whole = kind("refuse")
    first = whole.mechanisms[0]

    def fails(context: Any) -> Any:
        found = first.moves(context)
        return dataclasses.replace(found, apply=(*found.apply, ("false",)))

    broken_first = dataclasses.replace(whole, mechanisms=(dataclasses.replace(first, moves=fails), whole.mechanisms[1]))
    with inject.inflict(broken, broken_first, [node], duration=60, options={}) as fault:
        assert fault.mechanism == whole.mechanisms[1].name
        rules = node.exec(["iptables-save", "-t", "filter"], user="root").check().stdout
        assert "ctorigdstport" not in rules
        assert rules.count("REJECT") == 1
    with add(broken, "refuse", [node], duration=60) as fault:
        assert fault.mechanism == first.name
