import _thread
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from lab.errors import LabNotReady
from lab.probes import ProbeFailed, side_by_side, wait_until


def test_a_probe_is_tried_until_it_succeeds() -> None:
    """Failures before the deadline are forgotten once an attempt succeeds."""
    answers = iter([False, False, True])

    def probe() -> str:
        if not next(answers):
            raise ProbeFailed("not yet")
        return "there"

    assert wait_until("it", probe, seconds=10) == "there"


def test_a_late_probe_is_named_with_its_cause_and_the_log() -> None:
    """The error says which probe failed, why at last, and what the machine printed."""

    def probe() -> None:
        raise ProbeFailed("connection refused")

    with pytest.raises(LabNotReady) as caught:
        wait_until("an SSH login on node1", probe, seconds=0.1, logs=lambda: "sshd: no hostkeys\n")
    text = str(caught.value)
    assert "an SSH login on node1" in text
    assert "connection refused" in text
    assert "sshd: no hostkeys" in text
    assert caught.value.exit_code == 5
    assert isinstance(caught.value, TimeoutError)


def test_probes_side_by_side_answer_in_order() -> None:
    """Each machine's answer stands where the machine did, whoever was first."""
    gate = threading.Event()

    def probe(number: int) -> int:
        gate.set() if number == 2 else gate.wait(10)
        return number * 10

    assert side_by_side(probe, [1, 2]) == [10, 20]


def test_the_first_failure_gives_the_other_probes_up() -> None:
    """Nobody waits for the deadline of a machine that hangs once another's probe has failed; the failure is the one raised."""

    def fails(name: str) -> None:
        def attempt() -> None:
            if name == "broken":
                raise LabNotReady("broken can't succeed")
            raise ProbeFailed("not yet")

        wait_until(name, attempt, seconds=60)

    began = time.monotonic()
    with pytest.raises(LabNotReady, match="broken can't succeed"):
        side_by_side(fails, ["slow", "broken"])
    assert time.monotonic() - began < 30


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt, also where these tests are a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_gives_all_probes_up() -> None:
    """After ^C the threads end with their next look, long before their deadlines."""
    seen = threading.Event()

    def attempt() -> None:
        if not seen.is_set():
            seen.set()
            _thread.interrupt_main()
        raise ProbeFailed("not yet")

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(lambda name: wait_until(name, attempt, seconds=60), ["one", "two"])
    assert time.monotonic() - began < 30
