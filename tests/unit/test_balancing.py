"""Who takes the next kernel."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from eg_distributed.balancing import HostView, LeastConnection, LoadBalancer, RoundRobin, load_balancer
from eg_distributed.errors import RequestInvalid

HOSTS = ("a", "b", "c")


def views(**kernels: int) -> list[HostView]:
    """Return hosts with so many kernels each."""
    return [HostView(name, count) for name, count in kernels.items()]


def picks(balancer: LoadBalancer, candidates: list[HostView], count: int) -> str:
    """Return the names of *count* picks in a row."""
    return "".join(balancer.pick(candidates).name for _ in range(count))


def test_round_robin_goes_in_the_order_of_the_host_set() -> None:
    """It begins with the first host and takes each once before it takes one again, whatever runs where."""
    assert picks(RoundRobin(HOSTS), views(a=9, b=0, c=3), 7) == "abcabca"


def test_round_robin_skips_what_is_not_offered_and_goes_on_behind_it() -> None:
    """A host that is excluded loses its turn, and the turns after it stay in order."""
    balancer = RoundRobin(HOSTS)
    assert picks(balancer, views(b=0, c=0), 1) == "b"
    assert picks(balancer, views(a=0, b=0, c=0), 2) == "ca"
    assert picks(balancer, views(a=0, c=0), 3) == "cac"
    assert picks(balancer, views(c=0), 2) == "cc"


@pytest.mark.parametrize("size", range(1, 7))
def test_round_robin_takes_the_next_of_those_that_are_offered(size: int) -> None:
    """Whichever was the last and whichever are offered, it is the first of these behind that one; at first, the first one."""
    hosts = tuple("abcdef"[:size])
    assert picks(RoundRobin(hosts), views(**dict.fromkeys(hosts, 0)), size) == "abcdef"[:size]
    for last in range(size):
        behind = [*hosts[last + 1 :], *hosts[: last + 1]]
        for offered in (set(some) for count in range(1, size + 1) for some in combinations(hosts, count)):
            balancer = RoundRobin(hosts)
            picks(balancer, views(**{hosts[last]: 0}), 1)
            expected = next(name for name in behind if name in offered)
            assert (
                picks(balancer, [view for view in views(**dict.fromkeys(hosts, 0)) if view.name in offered], 1)
                == expected
            )


def test_round_robin_of_two_host_sets_are_independent() -> None:
    """A kernelspec with other hosts moves nobody else's turn."""
    one, other = RoundRobin(HOSTS), RoundRobin(("b", "c"))
    assert picks(one, views(a=0, b=0, c=0), 1) == "a"
    assert picks(other, views(b=0, c=0), 3) == "bcb"
    assert picks(one, views(a=0, b=0, c=0), 2) == "bc"


def test_one_host_is_always_picked() -> None:
    """A host set of one has one choice."""
    assert picks(RoundRobin(("a",)), views(a=5), 3) == "aaa"


def test_least_connection_picks_the_emptiest() -> None:
    """The fewest kernels win, wherever the turn is."""
    assert picks(LeastConnection(HOSTS), views(a=3, b=1, c=2), 3) == "bbb"


def test_least_connection_takes_turns_among_equals() -> None:
    """On an idle cluster hosts fill evenly even before anything is counted; the tie is among the emptiest only."""
    balancer = LeastConnection(HOSTS)
    first = picks(balancer, views(a=0, b=0, c=0), 6)
    assert sorted(first[:3]) == ["a", "b", "c"]
    assert first[3:] == first[:3]
    assert Counter(picks(balancer, views(a=1, b=0, c=0), 10)) == {"b": 5, "c": 5}
    assert picks(LeastConnection(HOSTS), views(a=10**9 + 1, b=int("1000000000"), c=10**9), 4) in ("bcbc", "cbcb")


def test_least_connection_takes_what_is_not_known_last() -> None:
    """A host that is not connected is picked where no other is left: it may have no kernels because it never answers."""
    balancer = LeastConnection(HOSTS)
    unknown = HostView("a", 0, known=False)
    assert picks(balancer, [unknown, *views(b=7, c=6)], 2) == "cc"
    assert picks(balancer, [unknown, HostView("b", 0, known=False)], 3) in ("aba", "bab")


def test_gateways_that_see_the_same_choose_different_hosts() -> None:
    """Starts of several gateways at the same moment do not all go to the same few of many empty hosts."""
    random.seed(1)
    hosts = tuple(f"host{number}" for number in range(50))
    taken: Counter[str] = Counter()
    for _ in range(10):
        balancer, own = LeastConnection(hosts), Counter[str]()
        for _ in range(5):
            own[balancer.pick([HostView(host, own[host]) for host in hosts]).name] += 1
        taken += own
    assert max(taken.values()) <= 5
    assert len(taken) > 25


def test_least_connection_evens_out() -> None:
    """After uneven pins, picks that count bring the hosts to within one kernel of each other."""
    counts = {"a": 5, "b": 0, "c": 2}
    balancer = LeastConnection(HOSTS)
    for _ in range(9):
        counts[balancer.pick(views(**counts)).name] += 1
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_balancer_of_a_sites_own_is_told_what_it_may_know() -> None:
    """A host that nothing is said against is healthy and known; what a balancer is told it cannot change, and it has to pick."""
    view = HostView("a", 0)
    assert (view.healthy, view.known) == (True, True)
    with pytest.raises(AttributeError):
        view.kernels = 1  # type: ignore[misc]
    with pytest.raises(TypeError, match="abstract"):
        LoadBalancer(HOSTS)  # type: ignore[abstract]


@pytest.mark.parametrize(("name", "kind"), [("round-robin", RoundRobin), ("least-connection", LeastConnection)])
def test_the_built_in_ones_have_names(name: str, kind: type[LoadBalancer]) -> None:
    """Enterprise Gateway's own names for the two algorithms are ours."""
    assert load_balancer(name) is kind


def test_others_come_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A balancer of an installed distribution is found by its entry point's name."""
    site = tmp_path
    info = site / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eg_distributed.load_balancers]\nlast = their_balancer:Last\n")
    (site / "their_balancer.py").write_text(
        "from eg_distributed.balancing import LoadBalancer\n"
        "class Last(LoadBalancer):\n    def pick(self, candidates):\n        return candidates[-1]\n"
    )
    monkeypatch.syspath_prepend(str(site))
    assert picks(load_balancer("last")(HOSTS), views(a=0, b=0), 2) == "bb"
    with pytest.raises(RequestInvalid, match="last"):
        load_balancer("first")


def test_an_unknown_name_is_an_error_that_lists_the_known() -> None:
    """Who mistypes an algorithm reads what there is."""
    with pytest.raises(RequestInvalid, match=r"'robin'.*least-connection, round-robin"):
        load_balancer("robin")
