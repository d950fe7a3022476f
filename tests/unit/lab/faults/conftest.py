import pytest

from lab.faults import guard, reach
from tests.unit.lab.faults.machines import Reached


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Reached:
    """No machine is touched and no watchdog started; what would have been done is kept."""
    found = Reached()
    monkeypatch.setattr(reach, "carry_out", found.carry_out)
    monkeypatch.setattr(guard, "start", lambda name, folder: None)
    return found
