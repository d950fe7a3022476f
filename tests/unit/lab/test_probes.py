import pytest

from lab.errors import LabNotReady
from lab.probes import ProbeFailed, wait_until


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
