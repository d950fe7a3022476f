"""The lab's lease: whose it is, until when, and what happens when the owner is no more."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import docker.errors
import pytest
import requests.exceptions

from lab import events, lease
from lab.errors import LabUsageError
from lab.lifetime import holding, keeper
from lab.processes import Process, identify
from lab.state import StateFolder
from tests.until import block_until


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that owns something until it is killed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def wait_until_gone(process: Process) -> None:
    block_until(f"{process} is gone", lambda: not process.status)


def test_a_lab_without_a_lease_stays() -> None:
    """No lease, no labels, no end."""
    assert lease.read("mine") is None
    assert lease.expiry("mine") is None
    assert lease.labels("mine") == {}
    holding.release("mine")


def test_labels_tell_what_the_folder_tells() -> None:
    """A fixed term is written down once, and a lab whose folder is gone is still known by its labels."""
    granted = holding.grant("mine", 60)
    found = lease.from_labels(lease.labels("mine"))
    assert found is not None
    assert (found.owner, found.host, found.pid) == (granted.owner, socket.gethostname(), 0)
    assert found.expires == pytest.approx(time.time() + 60, abs=5)
    assert not found.is_over()
    assert lease.expiry("mine") == granted.expires
    holding.release("mine")


@pytest.mark.parametrize(
    "labels", [{}, {lease.LABEL_OWNER: "x"}, {lease.LABEL_OWNER: "a@b/x/y", lease.LABEL_EXPIRES: "1"}]
)
def test_labels_that_no_lab_wrote_tell_nothing(labels: dict[str, str]) -> None:
    """Half a label or nonsense is no lease."""
    assert lease.from_labels(labels) is None


def test_a_term_that_has_passed_is_over() -> None:
    """A granted lease ends by the clock, and the lab is removed without anybody's doing."""
    assert not holding.grant("mine", 3).is_over()
    guard = Process(*lease.stored("mine")["keeper"])
    wait_until_gone(guard)
    assert not StateFolder("mine").path.exists()
    assert lease.Lease("x", "y", expires=time.time() - 1).is_over()


def test_a_lease_ends_with_its_process(child: subprocess.Popen[bytes]) -> None:
    """A process's lease is over when it has ended, whatever its term says; another process of the same number is not it."""
    held = lease.mine(child.pid)
    assert not held.is_over()
    assert lease.Lease(held.owner, held.host, held.pid, held.started + 1).is_over()
    child.kill()
    child.wait()
    assert held.is_over()
    with pytest.raises(LabUsageError):
        lease.mine(child.pid)


def test_an_owner_elsewhere_is_never_over_by_its_label() -> None:
    """What another host's process does can't be seen here, and a label's term is the first one only."""
    assert not lease.Lease("x", "elsewhere", 1, 1, expires=1.0).is_over()


def test_the_keeper_removes_the_lab_when_the_owner_is_killed(child: subprocess.Popen[bytes]) -> None:
    """The owner is killed, the keeper notices by itself, and the lab's folder is gone; so is the keeper."""
    holding.hold("mine", pid=child.pid, seconds=30)
    kept = lease.stored("mine")["keeper"]
    guard = Process(*kept)
    assert guard.status
    child.kill()
    child.wait()
    wait_until_gone(guard)
    assert not StateFolder("mine").path.exists()


def test_the_keeper_renews(child: subprocess.Popen[bytes]) -> None:
    """While the owner lives, the term goes on."""
    first = holding.hold("mine", pid=child.pid, seconds=3).expires
    assert first is not None
    block_until("the lease is renewed", lambda: (lease.expiry("mine") or 0) >= first + 1.5)
    guard = Process(*lease.stored("mine")["keeper"])
    holding.release("mine")
    wait_until_gone(guard)
    assert StateFolder("mine").path.exists()
    assert lease.read("mine") is None


def test_holding_again_ends_the_first_keeper(child: subprocess.Popen[bytes]) -> None:
    """One lab, one keeper."""
    holding.hold("mine", pid=child.pid)
    first = Process(*lease.stored("mine")["keeper"])
    holding.hold("mine")
    second = Process(*lease.stored("mine")["keeper"])
    wait_until_gone(first)
    assert second.status
    assert lease.read("mine") is not None
    assert lease.read("mine").pid == os.getpid()  # type: ignore[union-attr]
    holding.release("mine")
    wait_until_gone(second)
    assert [event["kind"] for event in events.read("mine")].count("lease.held") == 2


def test_a_renewal_does_not_bring_a_removed_lab_back() -> None:
    """Renewing after `lab down` writes nothing."""
    me = identify(os.getpid())
    assert me is not None
    lease.write("mine", lease.mine(), me)
    assert lease.renew("mine", me)
    StateFolder("mine").remove()
    assert not lease.renew("mine", me)
    assert not StateFolder("mine").path.exists()


def test_a_keeper_of_another_lease_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper whose number isn't in the lease ends without touching the lab."""
    monkeypatch.setattr(keeper, "NUMBER_SECONDS", 0.2)
    lease.write("mine", lease.mine(), Process(1, 1))
    keeper.keep("mine")
    assert lease.read("mine") is not None


def test_a_keeper_outlives_what_fails_in_passing(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that answers with an error for a while ends no keeper: it tells the machines at the next renewal."""
    me = identify(os.getpid())
    assert me is not None
    held = lease.mine(child.pid)
    lease.write("mine", lease.Lease(held.owner, held.host, held.pid, held.started, 0.05, time.time() + 60), me)
    failures = iter(
        [docker.errors.APIError("500"), requests.exceptions.ConnectionError("gone"), FileNotFoundError("x")]
    )
    told: list[float] = []

    def extend(_: str, until: float) -> None:
        if error := next(failures, None):
            raise error
        told.append(until)
        child.kill()
        child.wait()

    monkeypatch.setattr(keeper, "_extend", extend)
    keeper.keep("mine")
    assert len(told) == 1
    assert not StateFolder("mine").path.exists()


def test_a_keeper_tries_a_removal_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A docker lab is not gone because its engine is away: the folder and the lease stay for the next try."""
    monkeypatch.setattr(keeper, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(keeper, "TRIES", 3)
    me = identify(os.getpid())
    assert me is not None
    folder = StateFolder("mine")
    folder.write(folder.driver, "docker")
    lease.write("mine", lease.Lease("me", "here", expires=time.time() - 1), me)
    keeper.keep("mine")
    assert capsys.readouterr().out.count("could not be removed: no container engine answers") == 3
    assert folder.made_by == "docker"
    assert lease.read("mine") is not None


def test_a_keeper_leaves_a_lab_that_is_wanted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that was given anew while the keeper waited for the lab's lock is no reason to remove the lab."""
    me = identify(os.getpid())
    assert me is not None
    over = lease.Lease("me", "here", expires=time.time() - 1)
    lease.write("mine", lease.Lease("me", "here", expires=time.time() + 60), me)
    assert keeper._remove("mine", over)
    assert lease.read("mine") is not None
