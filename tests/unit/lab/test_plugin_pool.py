"""The pool: who gets which nodes, in which order, and what becomes of the dead's."""

import json
import multiprocessing
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lab import events
from lab.errors import LabNotReady, LabUsageError
from lab.state import StateFolder
from lab.testing.pool import Pool
from tests.until import block_until

NODES = ["node1", "node2", "node3"]


def holders() -> dict[str, str]:
    """Return which test has which node, as the pool's file says."""
    leases = json.loads((StateFolder("mine").path / "pool.json").read_text())["leases"]
    return {name: each["test"] for name, each in leases.items()}


@pytest.fixture(autouse=True)
def folder() -> Path:
    path = StateFolder("mine").path
    path.mkdir(parents=True)
    return path


def other(work: Callable[[Pool, Connection], None]) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    """Run *work* in another process with a pool of its own; it waits at its end until it is told to go on, or killed."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=lambda: work(Pool("mine"), theirs), daemon=True)
    process.start()
    return process, ours


def take_two(pool: Pool, end: Connection) -> None:
    end.send(pool.acquire("other", lambda: NODES, 2))
    end.recv()
    pool.release(NODES)
    end.send("released")


def test_nodes_are_leased_and_given_back() -> None:
    """What is leased is nobody else's; what is given back can be had again, and only its holder gives it back."""
    pool = Pool("mine")
    assert pool.acquire("a", lambda: NODES, 2) == ["node1", "node2"]
    assert holders() == {"node1": "a", "node2": "a"}
    process, _ = other(lambda theirs, _: theirs.release(NODES))
    process.join(20)
    assert holders() == {"node1": "a", "node2": "a"}
    pool.release(["node1", "node2"])
    pool.release(["node1"])
    assert holders() == {}
    assert pool.acquire("b", lambda: NODES, None) == NODES


def test_a_wait_ends_when_nodes_come_back() -> None:
    """Who wants more than is free waits for the others, and gets it then."""
    _, end = other(take_two)
    assert end.recv() == ["node1", "node2"]
    taken: list[str] = []
    thread = threading.Thread(target=lambda: taken.extend(Pool("mine").acquire("whole", lambda: NODES, None)))
    thread.start()
    wait_for_ticket("whole")
    assert not taken
    end.send("go on")
    thread.join(20)
    assert taken == NODES


def test_the_dead_hold_nothing() -> None:
    """A killed process's nodes are free at once, and that is recorded."""
    process, end = other(take_two)
    end.recv()
    process.kill()
    process.join(20)
    assert Pool("mine").acquire("a", lambda: NODES, 3, seconds=5) == NODES
    assert [event["kind"] for event in events.read("mine")] == ["lease.lost"] * 2


def test_first_come_first_served() -> None:
    """A small wish that comes later does not overtake a large one that waits, so nobody waits for ever."""
    _, end = other(take_two)
    end.recv()
    order: list[str] = []

    def whole() -> None:
        pool = Pool("mine")
        pool.acquire("whole", lambda: NODES, None)
        order.append("whole")
        pool.release(NODES)

    def small(pool: Pool, end: Connection) -> None:
        pool.acquire("small", lambda: NODES, 1)
        end.send("small")

    thread = threading.Thread(target=whole)
    thread.start()
    wait_for_ticket("whole")
    _, later = other(small)
    wait_for_ticket("small")
    assert not later.poll()
    end.send("go on")
    assert later.recv() == "small"
    assert order == ["whole"]
    thread.join(20)


def wait_for_ticket(test: str) -> None:
    """Wait until *test* has looked for nodes and got none: it is in the queue. A test leaves that after it got its nodes."""

    def waits() -> bool:
        with Pool("mine")._open() as found:
            leased = [lease["test"] for lease in found["leases"].values()]
            return any(each["test"] == test for each in found["waiting"]) and test not in leased

    block_until(f"{test} waits for nodes", waits)


def _waiting() -> list[dict[str, object]]:
    with Pool("mine")._open() as found:
        return list(found["waiting"])


def test_too_much_is_refused_at_once() -> None:
    """A wish that can't be met by this lab names what there is; a wait that takes too long names who holds what."""
    pool = Pool("mine")
    with pytest.raises(LabUsageError, match="needs 4 nodes, the lab mine has 3"):
        pool.acquire("a", lambda: NODES, 4)
    with pytest.raises(LabUsageError, match="has 0 that fit"):
        pool.acquire("a", list, None)
    pool.acquire("a", lambda: NODES, 2)
    with pytest.raises(LabUsageError, match="b holds node1, node2 and wants 2 more"):
        pool.acquire("b", lambda: NODES, 2)
    pool.release(NODES)
    process, end = other(take_two)
    end.recv()
    with pytest.raises(LabNotReady, match=r"leased to other \(pid \d+\): node1; other"):
        pool.acquire("late", lambda: NODES, 3, seconds=0.3)
    assert _waiting() == []
    end.send("go on")
    process.join(20)


def test_waiting_for_each_other_is_refused() -> None:
    """Of two that hold one node each and want two more, one is told what to write instead, and the other gets them."""

    def greedy(pool: Pool, end: Connection) -> None:
        pool.acquire("greedy", lambda: NODES, 1)
        end.send("one")
        end.recv()
        end.send(want_two_more(pool, "greedy"))

    pool = Pool("mine")
    _, end = other(greedy)
    assert end.recv() == "one"
    pool.acquire("mine", lambda: NODES, 1)
    end.send("go on")
    assert {want_two_more(pool, "mine"), end.recv()} == {"refused", "two more"}


def want_two_more(pool: Pool, test: str) -> str:
    try:
        pool.acquire(test, lambda: NODES, 2, seconds=20)
        return "two more"
    except LabUsageError as error:
        return "refused" if "all who have some are waiting" in str(error) else str(error)
    finally:
        pool.release(NODES)
