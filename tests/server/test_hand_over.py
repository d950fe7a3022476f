"""Taking over a kernel of another server, whose disk may hang: all of it is done, or nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eg_distributed.errors import DistributedError
from eg_distributed.jupyter_server import hand_over
from eg_distributed.jupyter_server.store import Store
from tests.unit.jupyter_server.test_store import record
from tests.until import PROCESS_SECONDS, until


class Hanging(Store):
    """A store to which nothing can be moved until `goes_on` is set."""

    def __init__(self, folder: Path, *, is_late: bool) -> None:
        super().__init__(folder)
        self.goes_on, self.is_there = threading.Event(), threading.Event()
        self._is_late = is_late

    def take(self, other: Store, record: Any) -> None:
        """Hang before the record is moved, or when it is."""
        if self._is_late:
            super().take(other, record)
        self.is_there.set()
        assert self.goes_on.wait(PROCESS_SECONDS)
        if not self._is_late:
            super().take(other, record)


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_take_over_that_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool) -> None:
    """The record is at the other server in the end, however far its way to ours had come when the time was over."""
    monkeypatch.setattr(hand_over, "_FILES", 0.2)
    theirs, ours = Store(tmp_path / "theirs.d"), Hanging(tmp_path / "ours.d", is_late=is_late)
    for store in (theirs, ours):
        store.open()
    theirs.write(record("k-1"))
    adoption: Any = SimpleNamespace(kernels={})
    with pytest.raises(DistributedError, match="stays where it was"):
        await hand_over._take_one(adoption, ours, hand_over._Other("theirs", theirs), record("k-1"), running=False)
    assert ours.is_there.is_set()
    ours.goes_on.set()
    moving = [thread for thread in threading.enumerate() if "take" in thread.name]
    await until("the thread has ended", lambda: not any(thread.is_alive() for thread in moving))
    assert [each.kernel for each in theirs.read()[0]] == ["k-1"]
    assert not ours.read()[0]
