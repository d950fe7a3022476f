"""What is kept for clients: each message in order, a bound for each client, and one for all of them."""

from __future__ import annotations

from eg_distributed.clients.kept_messages import KEPT_BYTES, Kept
from eg_distributed.streams import CHUNK, Budget

MEBIBYTE = bytes(1 << 20)


def test_the_oldest_give_way() -> None:
    """Beyond a client's own bound the oldest go, and are counted; what it confirms late was not lost."""
    kept = Kept(Budget(1 << 40))
    for number in range(20):
        kept.append(("iopub", [b"%d" % number, MEBIBYTE]))
    first, *_ = kept
    assert first[1][0] == b"5"
    assert (kept.lost, len(kept)) == (5, KEPT_BYTES // len(MEBIBYTE) - 1)
    kept.drop_to(3)
    assert kept.lost == 2


def test_all_clients_keep_no_more_than_their_budget() -> None:
    """Forty clients that confirm nothing stay within it, each with some; one that confirms has more beside them."""
    budget = Budget(64 << 20)
    clients = [Kept(budget) for _ in range(40)]
    for _ in range(60):
        for client in clients:
            client.append(("iopub", [MEBIBYTE[: CHUNK // 4]]))
    assert budget.kept <= budget.limit
    assert all(len(client) > 1 for client in clients)
    heard = Kept(budget)
    for number in range(40):
        heard.append(("iopub", [MEBIBYTE[: CHUNK // 2]]))
        if number % 2:
            heard.drop_to(max(number // 2, heard.number - 12))
    assert len(heard) == 12
    assert heard.lost == 0


def test_a_clients_share_comes_back() -> None:
    """With what it confirms, and with the connection that kept it."""
    budget = Budget(64 << 20)
    kept, other = Kept(budget), Kept(budget)
    for each in (kept, other):
        for _ in range(4):
            each.append(("iopub", [MEBIBYTE]))
    kept.drop_to(3)
    del other, each
    assert len(MEBIBYTE) < budget.kept < 2 * len(MEBIBYTE)
    del kept
    assert budget.kept == 0


def test_without_a_bound_all_is_kept() -> None:
    """And nothing of it counts for others: neither what comes, nor what was kept with a bound before, nor what takes it over."""
    budget = Budget(64 << 20)
    confirmed, kept, taker = Kept(budget), Kept.unbounded(), Kept(budget)
    confirmed.append(("iopub", [b"0", MEBIBYTE]))
    kept.take(confirmed)
    assert budget.kept == 0
    for number in range(1, 40):
        kept.append(("iopub", [b"%d" % number, MEBIBYTE]))
    taker.append(("iopub", [b"first", MEBIBYTE]))
    taker.take(kept)
    taker.append(("iopub", [b"last", MEBIBYTE]))
    assert [parts[0] for _, parts in taker] == [b"first", *(b"%d" % number for number in range(40)), b"last"]
    assert (taker.lost, budget.kept) == (0, 0)
    del confirmed, kept, taker
    assert budget.kept == 0
